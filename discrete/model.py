"""Bidirectional transformer over one sequence [text | image], or over the text alone.

Unusual: the words meet each other first, in a few blocks over the short text span with rotary positions, so that "red"
knows which object it belongs to before the image asks; tokens are scored by their own embeddings, which for codes start
from the codebook, so that what is learned of one code is learned of its neighbours (text and image find each other in
half the steps); the sequence may end after the text (about a fifth of the work), which stands for "no image was given";
and the network does not see the time unless asked, because the masks tell it (arXiv:2406.07524, sec. 3.2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.block import Block
from backbone.embed import Rotary, TimeEmbedding, rotary_1d, rotary_2d, time_condition
from discrete.layout import Layout


@dataclass(frozen=True, kw_only=True)
class MaskedTransformerConfig:
    """Size of the network: text_layers blocks over the text alone, then layers blocks over both spans.

    The text blocks have rotary positions; rotary gives them to the others too, beside the learned ones. time adds adaLN
    conditioning on t.
    """

    kind: Literal["masked"] = "masked"
    dim: int = 192
    text_layers: int = 2
    layers: int = 4
    heads: int = 6
    mlp_ratio: float = 4.0
    rotary: bool = False
    time: bool = False

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "mlp_ratio"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.text_layers < 0:
            raise ValueError(f"text_layers is {self.text_layers}; it must not be negative")
        if self.dim % self.heads or self.dim // self.heads % 4:
            raise ValueError(
                f"dim {self.dim} over {self.heads} heads is {self.dim / self.heads:g} per head; rotary positions need "
                "a multiple of 4"
            )


class SpanLogits(NamedTuple):
    """Logits over each span's own tokens: text (B, Lt, text_vocab), image (B, Li, image_vocab) or None.

    Where a picture has several grids, the logits of an image position are -inf outside of its own grid's codes.
    """

    text: Tensor
    image: Tensor | None


class MaskedTransformer(nn.Module):
    """Predicts the tokens behind the masks of [text | image] from all visible ones."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: MaskedTransformerConfig, layout: Layout) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        scale = config.dim**-0.5
        self.tokens = nn.Embedding(layout.mask_id + 1, config.dim)
        nn.init.normal_(self.tokens.weight, std=scale)
        self.text_positions = nn.Parameter(scale * torch.randn(layout.text_length, config.dim))
        self.rows = nn.Parameter(scale * torch.randn(sum(layout.sides), 1, config.dim))  # of each grid
        self.columns = nn.Parameter(scale * torch.randn(1, sum(layout.sides), config.dim))
        self.time = TimeEmbedding(config.dim) if config.time else None
        cond_dim = config.dim if config.time else None
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, cond_dim=cond_dim, mlp_ratio=config.mlp_ratio)
            for _ in range(config.text_layers + config.layers)
        )
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.bias = nn.Parameter(torch.zeros(layout.mask_id))
        cos, sin = _rotary(layout, config.dim // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @torch.no_grad()
    def initialise_codes(self, codebook: Tensor, generator: torch.Generator) -> None:
        """Start the image tokens at a random projection of the codebook (K, d), so that like codes start alike.

        The codes of each grid are centred and scaled by themselves.
        """
        layout = self.layout
        if len(codebook) != layout.image_vocab:
            raise ValueError(
                f"the codebook has {len(codebook)} codes, the layout {layout.image_vocab}; they must agree"
            )
        centred = torch.cat([_standardised(codebook[grid.codes]) for grid in layout.grids])
        projection = torch.randn(codebook.shape[1], self.config.dim, generator=generator)
        projection *= (codebook.shape[1] * self.config.dim) ** -0.5  # rows as long as the other tokens'
        self.tokens.weight[layout.text_vocab : layout.mask_id] = centred @ projection.to(centred)

    def forward(self, x_t: Tensor, t: Tensor | None = None) -> SpanLogits:
        """x_t: (B, L) [text | image] or (B, text_length) text alone; t: () or (B,), read only with config.time."""
        cut = self.layout.text_length
        length = x_t.shape[1]
        if length not in (cut, self.layout.length):
            raise ValueError(f"the sequence has {length} tokens, expected {cut} (text) or {self.layout.length} (both)")
        h = self.tokens(x_t) + self._positions()[:length]  # (B, L, D)
        cond = time_condition(self.time, t, x_t)
        text, image = h[:, :cut], h[:, cut:]
        for block in self.blocks[: self.config.text_layers]:
            text = block(text, cond, rotary=self._table(cut))
        h, rotary = torch.cat([text, image], 1), self._table(length) if self.config.rotary else None
        for block in self.blocks[self.config.text_layers :]:
            h = block(h, cond, rotary=rotary)
        h, v = self.norm(h), self.layout.text_vocab
        return SpanLogits(self._score(h[:, :cut], slice(v)), self._score_image(h[:, cut:]) if length > cut else None)

    def _score(self, h: Tensor, span: slice) -> Tensor:
        """Logits (B, L, K) of the tokens of one span, by their own embeddings."""
        return F.linear(h, self.tokens.weight[span], self.bias[span])

    def _score_image(self, h: Tensor) -> Tensor:
        """Logits (B, Li, image_vocab) of the codes, each position's over those of its own grid."""
        v, size, parts = self.layout.text_vocab, self.layout.image_vocab, []
        for grid in self.layout.grids:
            first, end = grid.codes.start, grid.codes.stop
            own = self._score(h[:, grid.positions], slice(v + first, v + end))
            parts.append(F.pad(own, (first, size - end), value=-torch.inf))
        return torch.cat(parts, 1)

    def logits(self, x_t: Tensor, t: Tensor | None = None) -> Tensor:
        """The same over the whole vocabulary: (B, L, V + 1) float32, -inf where a position may not go."""
        text, image = self(x_t, t)
        cut, v = self.layout.text_length, self.layout.text_vocab
        out = torch.full((*x_t.shape, self.layout.mask_id + 1), -torch.inf, device=x_t.device)
        out[:, :cut, :v] = text.float()
        if image is not None:
            out[:, cut:, v:-1] = image.float()
        return out

    def _positions(self) -> Tensor:
        sides = self.layout.sides
        pairs = zip(self.rows.split(sides), self.columns.split(sides, 1), strict=True)
        return torch.cat([self.text_positions, *((rows + columns).flatten(0, 1) for rows, columns in pairs)])  # (L, D)

    def _table(self, length: int) -> Rotary:
        return Rotary(self.cos[:length], self.sin[:length])


def _standardised(codewords: Tensor) -> Tensor:
    """Codewords (k, d) around 0, as long as vectors of d unit normals on average."""
    centred = codewords - codewords.mean(0)
    return centred / centred.square().mean().sqrt().clamp_min(1e-8)


def _rotary(layout: Layout, head_dim: int) -> Rotary:
    """Tables of the text and of each grid, one after the other; between them the learned positions speak.

    All grids share the coordinates of the finest: a coarser code stands in the middle of the square that it covers.
    """
    grids = [rotary_2d(side, side, head_dim, spacing=layout.side / side) for side in layout.sides]
    parts = [rotary_1d(layout.text_length, head_dim), *grids]
    return Rotary(torch.cat([part.cos for part in parts]), torch.cat([part.sin for part in parts]))
