"""What networks over one sequence [text | image] share: tokens, places, and scores over each span's own vocabulary.

Unusual: tokens are scored by their own embeddings, which for codes start from the codebook, so that what is learned of
one code is learned of its neighbours (text and image find each other in half the steps).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.embed import Rotary, rotary_1d, rotary_2d
from discrete.layout import Layout


class Sizes(Protocol):
    """What the configuration of every such network says."""

    @property
    def dim(self) -> int: ...  # noqa: D102
    @property
    def layers(self) -> int: ...  # noqa: D102
    @property
    def heads(self) -> int: ...  # noqa: D102
    @property
    def mlp_ratio(self) -> float: ...  # noqa: D102


def check_sizes(sizes: Sizes) -> None:
    """Raise ValueError for sizes of which no network can be built."""
    for name in ("dim", "layers", "heads", "mlp_ratio"):
        if getattr(sizes, name) <= 0:
            raise ValueError(f"{name} is {getattr(sizes, name)}; it must be above 0")
    if sizes.dim % sizes.heads or sizes.dim // sizes.heads % 4:
        raise ValueError(
            f"dim {sizes.dim} over {sizes.heads} heads is {sizes.dim / sizes.heads:g} per head; rotary positions need "
            "a multiple of 4"
        )


class SpanLogits(NamedTuple):
    """Logits over each span's own tokens: text (B, Lt, text_vocab), image (B, Li, image_vocab) or None.

    Where a picture has several grids, the logits of an image position are -inf outside of its own grid's codes.
    """

    text: Tensor
    image: Tensor | None


class SpanNetwork(nn.Module):
    """Embeddings of the tokens and places of [text | image], and scores of hidden states."""

    cos: Tensor
    sin: Tensor

    def __init__(self, sizes: Sizes, layout: Layout) -> None:
        super().__init__()
        scale = sizes.dim**-0.5
        self.layout = layout
        self.tokens = nn.Embedding(layout.mask_id + 1, sizes.dim)
        nn.init.normal_(self.tokens.weight, std=scale)
        self.text_positions = nn.Parameter(scale * torch.randn(layout.text_length, sizes.dim))
        self.rows = nn.Parameter(scale * torch.randn(sum(layout.sides), 1, sizes.dim))  # of each grid
        self.columns = nn.Parameter(scale * torch.randn(1, sum(layout.sides), sizes.dim))
        self.norm = nn.RMSNorm(sizes.dim, eps=1e-6)
        self.bias = nn.Parameter(torch.zeros(layout.mask_id))
        cos, sin = _rotary(layout, sizes.dim // sizes.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @torch.no_grad()
    def initialise_codes(self, codebook: Tensor, generator: torch.Generator) -> None:
        """Start the image tokens at a random projection of the codebook (K, d), so that like codes start alike.

        The codes of each grid are centred and scaled by themselves.
        """
        layout, dim = self.layout, self.tokens.embedding_dim
        if len(codebook) != layout.image_vocab:
            raise ValueError(
                f"the codebook has {len(codebook)} codes, the layout {layout.image_vocab}; they must agree"
            )
        centred = torch.cat([_standardised(codebook[grid.codes]) for grid in layout.grids])
        projection = torch.randn(codebook.shape[1], dim, generator=generator)
        projection *= (codebook.shape[1] * dim) ** -0.5  # rows as long as the other tokens'
        self.tokens.weight[layout.text_vocab : layout.mask_id] = centred @ projection.to(centred)

    def score_text(self, h: Tensor) -> Tensor:
        """Logits (..., text_vocab) of hidden states (..., D)."""
        return self._score(h, slice(self.layout.text_vocab))

    def score_image(self, h: Tensor, start: int) -> Tensor:
        """Logits (B, n, image_vocab) of hidden states (B, n, D) of the image's positions from `start` on.

        Each position's are over the codes of its own grid.
        """
        v, size, parts = self.layout.text_vocab, self.layout.image_vocab, []
        for grid in self.layout.grids:
            first, end = grid.codes.start, grid.codes.stop
            inside = slice(max(0, grid.positions.start - start), max(0, grid.positions.stop - start))
            own = self._score(h[:, inside], slice(v + first, v + end))
            parts.append(F.pad(own, (first, size - end), value=-torch.inf))
        return torch.cat(parts, 1)

    def _score(self, h: Tensor, span: slice) -> Tensor:
        return F.linear(h, self.tokens.weight[span], self.bias[span])

    def places(self) -> Tensor:
        """Embedding of each position, (L, D)."""
        sides = self.layout.sides
        pairs = zip(self.rows.split(sides), self.columns.split(sides, 1), strict=True)
        return torch.cat([self.text_positions, *((rows + columns).flatten(0, 1) for rows, columns in pairs)])

    def table(self, start: int, end: int) -> Rotary:
        """Rotary table of the positions from start to end."""
        return Rotary(self.cos[start:end], self.sin[start:end])


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
