"""The transformer block that every model package shares.

Unusual: pre-norm with RMSNorm; queries and keys are normalised per head, which keeps bfloat16 runs stable
(arXiv:2302.05442); the activation is ReLU^2 (arXiv:2109.08668), several times cheaper than GELU-tanh on a CPU. A block
is the identity at initialisation. Small enough that `block.compile()` takes it whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbone.attention import attention
from backbone.embed import Rotary, rotate

Activation = Literal["relu2", "gelu", "swiglu"]
Output = TypeVar("Output")


@dataclass(frozen=True, kw_only=True)
class BlockStyle:
    """What blocks are made of, whatever their size."""

    activation: Activation = "relu2"
    qk_norm: bool = True


PLAIN = BlockStyle()


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) w (arXiv:1910.07467, eq. 4), computed in float32; w is learned when `affine`."""

    def __init__(self, dim: int, *, affine: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim), in x's dtype."""
        wide = x.float()
        y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (y if self.weight is None else y * self.weight).to(x.dtype)


class Memory:
    """Keys and values of what one attention layer has read: a later piece of the sequence attends to them as well.

    While `keep` is set, the layer remembers what it is shown; otherwise a piece passes without a trace.
    """

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.keep = True

    def __len__(self) -> int:
        return 0 if self.k is None else self.k.shape[2]

    def join(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What is remembered and the piece (B, heads, L, d), one behind the other."""
        if self.k is not None and self.v is not None:
            k, v = torch.cat([self.k, k], 2), torch.cat([self.v, v], 2)
        if self.keep:
            self.k, self.v = k, v
        return k, v


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself, or to a context when `context_dim` is given.

    Raises ValueError when heads do not divide dim.
    """

    def __init__(self, dim: int, heads: int, *, context_dim: int | None = None, qk_norm: bool = True) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        self.heads = heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim if context_dim is None else context_dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.query_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()
        self.key_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        rotary: Rotary | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """x: (B, L, dim); context: (B, S, context_dim), x itself when None; mask: bool, as in `attention`.

        memory: what came before x; mask then speaks of those keys, too.
        """
        q = self.queries(x)
        k, v = self.keys_values(x if context is None else context)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if memory is not None:
            k, v = memory.join(k, v)
        return self.out(join_heads(attention(q, k, v, mask)))

    def queries(self, x: Tensor) -> Tensor:
        """(B, L, dim) -> (B, heads, L, d)."""
        return self.query_norm(split_heads(self.query(x), self.heads))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, context_dim) -> twice (B, heads, S, d)."""
        k, v = (split_heads(part, self.heads) for part in self.key_value(context).chunk(2, -1))
        return self.key_norm(k), v


class FeedForward(nn.Module):
    """Two linear maps with an activation between them, token by token.

        relu2   out(relu(in(x))^2)         (arXiv:2109.08668)
        gelu    out(gelu(in(x)))           (arXiv:1606.08415; exact, the tanh form is slower on a CPU)
        swiglu  out(silu(a) b),  [a, b] = in(x)   (arXiv:2002.05202, eq. 6)

    With swiglu `hidden` shrinks to two thirds, a multiple of 8, so that the number of parameters stays.
    """

    def __init__(self, dim: int, hidden: int, activation: Activation = "relu2") -> None:
        super().__init__()
        gated = activation == "swiglu"
        self.activation: Activation = activation
        hidden = max(round(hidden / 12), 1) * 8 if gated else hidden
        self.linear_in = nn.Linear(dim, 2 * hidden if gated else hidden)
        self.out = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, dim) -> (B, L, dim)."""
        return self.out(self._activate(self.linear_in(x)))

    def _activate(self, h: Tensor) -> Tensor:
        match self.activation:
            case "relu2":
                return F.relu(h).square()
            case "gelu":
                return F.gelu(h)
            case "swiglu":
                a, b = h.chunk(2, -1)
                return F.silu(a) * b
            case _:
                assert_never(self.activation)


class Block(nn.Module):
    """Self-attention, optional cross-attention and a feed-forward network, each added to the stream.

        x = x + g_1 attend(m_1(x));   x = x + cross(norm(x), context);   x = x + g_2 feed(m_2(x))
        m_i(x) = norm(x) (1 + scale_i) + shift_i

    With `cond_dim` the scales, shifts and gates g are a zero-initialised linear map of silu(cond) (adaLN-Zero,
    arXiv:2212.09748, section 3.2); without it they are learned constants of the norm, and g = 1. With `cross_dim` the
    block attends to a context of that width. Branches end in zeros, so a new block is the identity.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        cond_dim: int | None = None,
        cross_dim: int | None = None,
        mlp_ratio: float = 4.0,
        style: BlockStyle = PLAIN,
    ) -> None:
        super().__init__()
        affine, qk_norm = cond_dim is None, style.qk_norm
        self.attention_norm = RMSNorm(dim, affine=affine)
        self.attention = Attention(dim, heads, qk_norm=qk_norm)
        self.cross_norm = RMSNorm(dim) if cross_dim is not None else None
        self.cross = Attention(dim, heads, context_dim=cross_dim, qk_norm=qk_norm) if cross_dim is not None else None
        self.feed_norm = RMSNorm(dim, affine=affine)
        self.feed = FeedForward(dim, round(dim * mlp_ratio), style.activation)
        self.modulation = nn.Linear(cond_dim, 6 * dim) if cond_dim is not None else None
        ends = [self.modulation] if self.modulation is not None else [self.attention.out, self.feed.out]
        for layer in [*ends, *([self.cross.out] if self.cross is not None else [])]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        rotary: Rotary | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """x: (B, L, dim); cond: (B, cond_dim); context: (B, S, cross_dim). Returns (B, L, dim).

        mask: bool, broadcastable to (B, heads, L, L); context_mask: bool, to (B, heads, L, S); rotary: (L, d/2);
        memory: of the self-attention, where x is a piece of a longer sequence.
        """
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self._modulation(cond)
        h = self.attention_norm(x) * scale_1 + shift_1
        x = x + gate_1 * self.attention(h, mask=mask, rotary=rotary, memory=memory)
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.cross(self.cross_norm(x), context, mask=context_mask)
        h = self.feed_norm(x) * scale_2 + shift_2
        return x + gate_2 * self.feed(h)

    def _modulation(self, cond: Tensor | None) -> tuple[Tensor | float, ...]:
        if self.modulation is None or cond is None:
            return 0.0, 1.0, 1.0, 0.0, 1.0, 1.0
        return six_parts(self.modulation, cond)


def six_parts(modulation: nn.Linear, cond: Tensor) -> tuple[Tensor, ...]:
    """Shift, 1 + scale and gate of each of two branches, (B, 1, dim) all. cond: (B, cond_dim)."""
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation(F.silu(cond))[:, None].chunk(6, -1)
    return shift_1, 1 + scale_1, gate_1, shift_2, 1 + scale_2, gate_2


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads d) -> (B, heads, L, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, L, d) -> (B, L, heads d)."""
    return x.transpose(1, 2).flatten(2)


def recomputed(block: Callable[..., Output], *inputs: Tensor) -> Output:
    """block(*inputs), keeping the inputs alone for the backward pass, which runs the block again (arXiv:1604.06174).

    Costs about a third more time. The block must draw no random numbers.
    """
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # type: ignore[return-value]
