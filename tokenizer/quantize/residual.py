"""Residual quantisation: a codebook for the vectors, another for what is left, and so on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from tokenizer.kmeans import nearest
from tokenizer.loss import codebook_terms
from tokenizer.quantize.base import Moved, Quantized, Quantizer, channels_first, channels_last, passed_through
from tokenizer.quantize.codebook import VectorQuantizer, VQConfig
from tokenizer.ranks import summed


@dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """`depth` codebooks like `level`, one after the other (arXiv:2107.03312, alg. 1; for images arXiv:2203.01941)."""

    kind: Literal["residual"] = "residual"
    depth: int = 4
    level: VQConfig = field(default_factory=lambda: VQConfig(codes=256))

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth is {self.depth}, expected at least 1 level. Use 4.")
        if self.level.distance == "cosine":
            raise ValueError(
                "level.distance is 'cosine', but what a level leaves over has a length that counts. Use 'euclidean'."
            )

    @property
    def dim(self) -> int:
        """Features of a vector."""
        return self.level.dim

    @property
    def codes(self) -> int:
        """Codes of all levels: level i has those from i n on."""
        return self.depth * self.level.codes

    @property
    def grids(self) -> int:
        """One of each level."""
        return self.depth

    @property
    def started(self) -> int:
        """The codes of one level start at once."""
        return self.level.started


class ResidualVQ(Quantizer):
    """The grid of each level stands below that of the one before; its codes begin where those end."""

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__(config)
        self.config = config
        self.levels = nn.ModuleList(VectorQuantizer(config.level) for _ in range(config.depth))

    def forward(self, z: Tensor) -> Quantized:
        """z: (B, d, h, w). The terms of the loss are means over the levels."""
        vectors = channels_last(z).float()  # (B, h, w, d)
        left, found, grids, terms = vectors, torch.zeros_like(vectors), list[Tensor](), list[Tensor]()
        for level in self._levels():
            codewords, codes = level.assign(left)
            terms.append(torch.stack(codebook_terms(left, codewords)))
            found, left = found + codewords.detach(), left - codewords.detach()
            grids.append(codes)
        own, commitment = torch.stack(terms).mean(0)
        passed = passed_through(vectors, found, self.config.level.estimator)
        return Quantized(channels_first(passed), self._joined(grids), own, commitment)

    def codes(self, z: Tensor) -> Tensor:
        """(B, d, h, w) -> (B, grids h, w) int64."""
        left, grids = z.float(), list[Tensor]()
        for level in self._levels():
            grids.append(level.codes(left))
            left = left - level.lookup(grids[-1])
        return self._joined(grids)

    def lookup(self, codes: Tensor) -> Tensor:
        """The sum over the levels: (B, grids h, w) int64 -> (B, d, h, w) float32.

        A code of another level counts as that of its own with the same number.
        """
        grids = (codes % self.config.level.codes).chunk(self.config.depth, 1)
        parts = [level.lookup(grid) for level, grid in zip(self._levels(), grids, strict=True)]
        return torch.stack(parts).sum(0)

    def codewords(self) -> Tensor:
        """Those of all levels, (depth n, d)."""
        return torch.cat([level.codewords() for level in self._levels()])

    def settle(self) -> None:
        """Move the averages of all levels by one step, after one sum over the ranks."""
        gathered = summed(torch.stack([level.pending for level in self._levels()]))
        for level, part in zip(self._levels(), gathered, strict=True):
            level.absorb(part)

    @torch.no_grad()
    def initialise(self, vectors: Tensor, generator: torch.Generator) -> list[Moved]:
        """Start each level from what those before leave over of the vectors (n, d)."""
        moved = []
        for level in self._levels():
            moved += level.initialise(vectors, generator)
            vectors = _left_over(vectors, level)
        return moved

    @torch.no_grad()
    def revive(self, vectors: Tensor, generator: torch.Generator) -> list[Moved]:
        """Move the dead codes of each level; return which."""
        moved = []
        for level in self._levels():
            moved += level.revive(vectors, generator)
            vectors = _left_over(vectors, level)
        return moved

    def _levels(self) -> list[VectorQuantizer]:
        return [level for level in self.levels if isinstance(level, VectorQuantizer)]

    def _joined(self, grids: list[Tensor]) -> Tensor:
        """The grids (B, h, w) of the levels, each below the one before: (B, grids h, w)."""
        return torch.cat([grid + number * self.config.level.codes for number, grid in enumerate(grids)], 1)


def _left_over(vectors: Tensor, level: VectorQuantizer) -> Tensor:
    book = level.codewords()
    return vectors.float() - book[nearest(vectors.float(), book)[0]]
