"""What every quantiser is: vectors to codes and back, the gradient passed through, and its own terms of the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, Protocol, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Estimator = Literal["straight", "rotation"]


class Sizes(Protocol):
    """What the configuration of every quantiser says of its codes."""

    @property
    def dim(self) -> int:
        """Features of a vector."""
        ...

    @property
    def codes(self) -> int:
        """How many there are, those of all grids together."""
        ...

    @property
    def grids(self) -> int:
        """How many grids of codes stand for one of vectors, each with as many codes for itself."""
        ...

    @property
    def started(self) -> int:
        """How many codes start from vectors of the data at once; 0 where none do."""
        ...


class OneGrid:
    """The usual case: one grid, whose codes stand before there are data."""

    @property
    def grids(self) -> int:
        """One code for each vector."""
        return 1

    @property
    def started(self) -> int:
        """None."""
        return 0


class Quantized(NamedTuple):
    """Result of one pass.

    z: (B, d, h, w) codewords with the gradient passed through; codes: (B, grids h, w) int64; own: () what the quantiser
    itself asks to minimise, weighted (a codebook term, or entropies); commitment: () before its weight beta.
    """

    z: Tensor
    codes: Tensor
    own: Tensor
    commitment: Tensor


class Moved(NamedTuple):
    """Codewords that were put elsewhere by hand: rows (m,) int64 of a codebook (n, d), a parameter or a buffer."""

    codebook: Tensor
    rows: Tensor


class Quantizer(nn.Module, ABC):
    """Vectors (B, dim, h, w) to codes (B, grids h, w) below `vocabulary`, and back.

    Each of several grids stands below the one before it. starts_from_data: whether `initialise`, `revive` do anything.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.dim, self.vocabulary, self.grids = sizes.dim, sizes.codes, sizes.grids
        self.starts_from_data = sizes.started > 0

    @abstractmethod
    def forward(self, z: Tensor) -> Quantized:
        """z: (B, d, h, w). In training mode a pass may also gather what `settle` learns from."""

    @abstractmethod
    def codes(self, z: Tensor) -> Tensor:
        """(B, d, h, w) -> (B, grids h, w) int64."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """(B, grids h, w) int64 -> (B, d, h, w) float32."""

    @abstractmethod
    def codewords(self) -> Tensor:
        """What each code adds to a vector: (vocabulary, d) float32."""

    def read(self, z: Tensor) -> Tensor:
        """What a decoder reads of vectors before they are quantised, as it will read codewords: both (B, d, h, w)."""
        return z

    def settle(self) -> None:
        """Learn what the passes of a step have gathered on all ranks, once a step, however many passes it has."""

    def initialise(self, vectors: Tensor, generator: torch.Generator) -> list[Moved]:
        """Start from the vectors (n, d) of all ranks; return what was moved."""
        del vectors, generator
        return []

    def revive(self, vectors: Tensor, generator: torch.Generator) -> list[Moved]:
        """Move dead codes to badly served vectors (n, d) of all ranks; return which."""
        del vectors, generator
        return []


def passed_through(vectors: Tensor, codewords: Tensor, estimator: Estimator) -> Tensor:
    """The codewords (..., d), with a gradient to the vectors (..., d).

    straight: the gradient of a codeword is that of its vector (arXiv:1711.00937, sec. 3.2); rotation: turned and scaled
    as the vector is to reach its codeword (arXiv:2410.06424, eq. 4), so that it also says which way the vectors of a
    region should spread.
    """
    match estimator:
        case "straight":
            return vectors + (codewords - vectors).detach()
        case "rotation":
            size, goal = (one.detach().norm(dim=-1, keepdim=True).clamp_min(1e-6) for one in (vectors, codewords))
            e, q = vectors.detach() / size, codewords.detach() / goal
            r = F.normalize(e + q, dim=-1)
            dot = (vectors * r).sum(-1, keepdim=True), (vectors * e).sum(-1, keepdim=True)
            turned = (vectors - 2 * dot[0] * r + 2 * dot[1] * q) * (goal / size)
            return torch.where(size > 1e-6, turned, vectors + (codewords - vectors).detach())  # a zero has no direction
        case _:
            assert_never(estimator)


def channels_last(z: Tensor) -> Tensor:
    """(B, d, h, w) -> (B, h, w, d)."""
    return z.permute(0, 2, 3, 1)


def channels_first(vectors: Tensor) -> Tensor:
    """(B, h, w, d) -> (B, d, h, w)."""
    return vectors.permute(0, 3, 1, 2)
