"""The autoregressive prior over the codes of a picture with its text in front (arXiv:2012.09841, arXiv:2102.12092).

One causal transformer reads [text | image] and prices each token given all before it, so that log p(codes | text) is
exact. Unusual: each place knows the position that it asks about, not the one that it reads; a place is scored against
its own span's tokens alone, so no probability leaks into the other's; and a text that is hidden behind masks, as masked
models hide it, is the null condition of guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.block import Block, Memory
from backbone.noise import Randomness, uniform
from discrete.attend import causal
from discrete.guide import extrapolate
from discrete.layout import Layout
from discrete.predict import Sharpen
from discrete.sample import draw
from discrete.spans import SpanLogits, SpanNetwork, check_sizes


@dataclass(frozen=True, kw_only=True)
class PicturePriorConfig:
    """Size of the network: layers blocks over both spans, with rotary positions beside the learned ones."""

    kind: Literal["picture_prior"] = "picture_prior"
    dim: int = 192
    layers: int = 6
    heads: int = 6
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        check_sizes(self)


class PicturePrior(SpanNetwork):
    """Predicts each token of [text | image] from those before it."""

    def __init__(self, config: PicturePriorConfig, layout: Layout) -> None:
        super().__init__(config, layout)
        self.config = config
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, mlp_ratio=config.mlp_ratio) for _ in range(config.layers)
        )

    def forward(self, read: Tensor, memory: Sequence[Memory] | None = None) -> SpanLogits:
        """Logits of the tokens that follow each token read, of those in the text and of those in the image.

        read: (B, n), a start symbol (the mask) and the first tokens of the sequence, or, where `memory` holds what came
        before, one for each block, the next n. Returns (B, n_text, text_vocab) and (B, n_image, image_vocab), the two
        making n together. Raises ValueError where there are more than the layout has.
        """
        start, cut = len(memory[0]) if memory else 0, self.layout.text_length
        end = start + read.shape[1]
        if end > self.layout.length:
            raise ValueError(f"{end} tokens are read, expected at most {self.layout.length}: the last one is not read")
        h = self.tokens(read) + self.places()[start:end]  # (B, n, D)
        mask = causal(end, read.device)[start:] if read.shape[1] > 1 else None  # a single token sees all before it
        rotary = self.table(start, end)
        for block, kept in zip(self.blocks, memory or [None] * len(self.blocks), strict=True):
            h = block(h, mask=mask, rotary=rotary, memory=kept)
        text, image = self.norm(h).tensor_split([max(0, cut - start)], 1)
        return SpanLogits(self.score_text(text), self.score_image(image, max(0, start - cut)))

    def memories(self) -> list[Memory]:
        """Empty memories, one for each block."""
        return [Memory() for _ in self.blocks]


Network = Callable[[Tensor], SpanLogits]
"""A `PicturePrior`, or one that is wrapped for several devices: read (B, L) -> logits of both spans."""


class SpanNats(NamedTuple):
    """-log p of each token given those before it, float32: text (B, Lt), image (B, Li)."""

    text: Tensor
    image: Tensor


def shifted(x: Tensor, layout: Layout, hidden: Tensor | None = None) -> Tensor:
    """What is read to predict x (B, L): a start symbol and all but the last; the texts of `hidden` (B,) masked."""
    read = F.pad(x[:, :-1], (1, 0), value=layout.mask_id)
    if hidden is None:
        return read
    cut = layout.text_length + 1
    return torch.cat([read[:, :cut].masked_fill(hidden[:, None], layout.mask_id), read[:, cut:]], 1)


def next_token_nll(network: Network, x: Tensor, layout: Layout, hidden: Tensor | None = None) -> SpanNats:
    """-log p(x_i | x_<i) of every token of x (B, L) over its own span's vocabulary.

        -log p(text, codes) = text.sum(1) + image.sum(1),      -log p(codes | text) = image.sum(1)

    hidden: (B,) bool, whose text is not read; their text costs say nothing, their image costs are those of the codes
    alone, as the null branch of guidance has them.
    """
    logits = network(shifted(x, layout, hidden))
    assert logits.image is not None
    text, codes = layout.split(x)
    return SpanNats(_nll(logits.text, text), _nll(logits.image, codes))


def _nll(logits: Tensor, truth: Tensor) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.flatten(0, 1), truth.flatten(), reduction="none").view_as(truth)


class PriorLosses(NamedTuple):
    """total is minimised; the others are nats per token of their span, padding included. All ()."""

    total: Tensor
    image: Tensor
    text: Tensor


def losses(
    network: Network, x: Tensor, layout: Layout, *, text_weight: float, caption_dropout: float, generator: Randomness
) -> PriorLosses:
    """One step's losses of pairs x (B, L).

        total = image + text_weight text,    each a mean over its own tokens (arXiv:2102.12092)

    caption_dropout: the probability that the text of a pair is hidden; only texts that are read are learned.
    """
    hidden = uniform((len(x),), generator, device=x.device) < caption_dropout
    nats = next_token_nll(network, x, layout, hidden)
    shown = (~hidden)[:, None].expand_as(nats.text)
    text = torch.where(shown, nats.text, 0).mean() / (1 - caption_dropout)  # a mean over items, unbiased
    image = nats.image.mean()
    return PriorLosses(image + text_weight * text, image, text)


@torch.no_grad()
def draw_codes(
    network: PicturePrior,
    text: Tensor,
    *,
    generator: Randomness,
    scale: float = 1.0,
    sharpen: Sharpen | None = None,
) -> Tensor:
    """Draw the codes of pictures for texts (B, Lt), one after the other: (B, Li).

        logits = logits_null + scale (logits_text - logits_null);     scale 1 is the model itself

    Both branches go through the network as one batch (arXiv:2207.12598, eq. 6), and each remembers keys and values, so
    that a code costs one column of attention. sharpen: logits (..., K) -> logits, such as temperature or top-p
    (`discrete.predict.sharpener`), after guidance.
    """
    layout, memory, codes = network.layout, network.memories(), list[Tensor]()
    branches = [text] if scale == 1 else [text, torch.full_like(text, layout.mask_id)]
    piece = F.pad(torch.cat(branches), (1, 0), value=layout.mask_id)  # (branches B, 1 + Lt)
    for _ in range(layout.image_length):
        _, logits = network(piece, memory)
        assert logits is not None
        logits = logits[:, -1:]  # (branches B, 1, K)
        logits = logits if scale == 1 else extrapolate(*logits.chunk(2), scale)
        codes.append(draw(logits if sharpen is None else sharpen(logits), generator))  # (B, 1)
        piece = (layout.text_vocab + codes[-1]).repeat(len(branches), 1)
    return torch.cat(codes, 1)
