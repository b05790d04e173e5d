"""Transformer over text alone: masked, autoregressive or block by block, as the attention mask says (discrete.attend).

Unusual: one network for every order of reading, so that an autoregressive baseline differs from a masked model by its
mask and its loss and by nothing else; positions are rotary, so any length can be read; tokens are scored by their own
embeddings, unless asked otherwise; and the network does not see the time unless asked (arXiv:2406.07524, sec. 3.2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.block import Block, BlockStyle, Memory
from backbone.embed import TimeEmbedding, rotary_1d, time_condition
from discrete.attend import documents


@dataclass(frozen=True, kw_only=True)
class TextTransformerConfig:
    """Size of the network; time adds adaLN conditioning on t.

    tied: tokens are scored by their own embeddings. Where a network is asked about the very tokens that it reads, as
    with uniform states, it then begins by repeating them, and is long in unlearning that: take false.
    """

    kind: Literal["text"] = "text"
    dim: int = 192
    layers: int = 6
    heads: int = 3
    mlp_ratio: float = 4.0
    time: bool = False
    tied: bool = True

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "mlp_ratio"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ValueError(
                f"dim {self.dim} over {self.heads} heads is {self.dim / self.heads:g} per head; rotary positions need "
                "an even number"
            )


class TextTransformer(nn.Module):
    """Tokens to logits. The id `vocab` is the mask, or what stands before the first token."""

    def __init__(self, config: TextTransformerConfig, vocab: int) -> None:
        super().__init__()
        self.config, self.vocab = config, vocab
        self.tokens = nn.Embedding(vocab + 1, config.dim)
        nn.init.normal_(self.tokens.weight, std=config.dim**-0.5)
        self.time = TimeEmbedding(config.dim) if config.time else None
        cond_dim = config.dim if config.time else None
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, cond_dim=cond_dim, mlp_ratio=config.mlp_ratio, style=BlockStyle())
            for _ in range(config.layers)
        )
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.head = None if config.tied else nn.Linear(config.dim, vocab + 1, bias=False)
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
        self.bias = nn.Parameter(torch.zeros(vocab))

    @property
    def mask_id(self) -> int:
        """Id of the mask, the last one."""
        return self.vocab

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        memory: Sequence[Memory] | None = None,
        asked: Tensor | None = None,
        wide: bool = False,
    ) -> Tensor:
        """Logits (B, L, vocab) of x_t (B, L), or (n, vocab) of the n positions where asked (B, L) is True.

        t: () or (B,), read only with config.time; mask: as in `discrete.attend`, all see all when None; positions: (L,)
        where they are not 0 .. L - 1 after what `memory` holds, one for each block; wide: -inf for the mask behind the
        logits, vocab + 1 in all.
        """
        states = self.states(x_t, t, mask=mask, positions=positions, memory=memory)
        states = states if asked is None else states[asked]
        if not wide:
            return self.score(states)
        return F.linear(states, self._scores, F.pad(self.bias, (0, 1), value=-torch.inf))  # no copy behind it

    def score(self, states: Tensor) -> Tensor:
        """Logits (..., vocab) of hidden states (..., dim)."""
        return F.linear(states, self._scores[: self.vocab], self.bias)

    @property
    def _scores(self) -> Tensor:
        """What hidden states are scored by, (vocab + 1, dim); the last row, the mask's, is never heeded."""
        return self.tokens.weight if self.head is None else self.head.weight

    def states(
        self,
        x_t: Tensor,
        t: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        memory: Sequence[Memory] | None = None,
    ) -> Tensor:
        """The last hidden states (B, L, dim), normalised, from which the logits are read."""
        if positions is None:
            start = len(memory[0]) if memory else 0
            positions = torch.arange(start, start + x_t.shape[1], device=x_t.device)
        rotary = rotary_1d(positions, self.config.dim // self.config.heads)
        h, cond = self.tokens(x_t), time_condition(self.time, t, x_t)
        for block, kept in zip(self.blocks, memory or [None] * len(self.blocks), strict=True):
            h = block(h, cond, mask=mask, rotary=rotary, memory=kept)
        return self.norm(h)

    def logits(
        self,
        x_t: Tensor,
        t: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        memory: Sequence[Memory] | None = None,
    ) -> Tensor:
        """The same with -inf for the mask: (B, L, vocab + 1) float32, which `discrete.predict.subs` takes."""
        return self(x_t, t, mask=mask, memory=memory, wide=True).float()

    def memories(self) -> list[Memory]:
        """Empty memories, one for each block."""
        return [Memory() for _ in self.blocks]


@dataclass(frozen=True)
class Wrapped:
    """A wrapped network, through which calls must go, with what it hides."""

    network: nn.Module
    vocab: int

    @property
    def mask_id(self) -> int:
        """Id of the mask, the last one."""
        return self.vocab

    def __call__(self, *inputs: Tensor | None, **options: Tensor | None) -> Tensor:
        """Ask the network."""
        return self.network(*inputs, **options)


@dataclass(frozen=True)
class PerDocument:
    """A network that reads each document of a packed batch x (B, L) on its own, whoever else may attend to whom.

    Asked about several maskings of the batch, one behind the other, or about [x_t | x], it knows the documents of all.
    """

    network: TextTransformer | Wrapped
    mask: Tensor  # (B, 1, L, L), `discrete.attend.documents`
    end_id: int

    @classmethod
    def of(cls, network: TextTransformer | Wrapped, x: Tensor, end_id: int) -> PerDocument:
        """Bind the documents of x, all of which end with end_id."""
        return cls(network, documents(x, end_id), end_id)

    @property
    def vocab(self) -> int:
        """Tokens without the mask."""
        return self.network.vocab

    @property
    def mask_id(self) -> int:
        """Id of the mask, the last one."""
        return self.network.mask_id

    def __call__(self, x_t: Tensor, t: Tensor | None = None, *, mask: Tensor | None = None, **options: Any) -> Tensor:
        """Ask the network."""
        rows, length = x_t.shape[0] // self.mask.shape[0], x_t.shape[1] // self.mask.shape[-1]
        own = self.mask.repeat(rows, 1, length, length)
        return self.network(x_t, t, mask=own if mask is None else own & mask, **options)


TextNetwork = TextTransformer | Wrapped | PerDocument
"""What objectives ask: the network, or one that is wrapped for several devices or that keeps documents apart."""
