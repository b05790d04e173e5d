"""What every quantiser is: vectors to codes and back, the gradient passed through, and its own terms of the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Estimator = Literal["straight", "rotation"]


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

    grids: how many grids of codes stand for one of vectors, each below the one before it.
    """

    dim: int
    vocabulary: int
    grids: int = 1
    starts_from_data: bool = False  # whether `initialise` and `revive` do anything

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


def code_counts(codes: Tensor, size: int) -> Tensor:
    """How often each code occurs: (size,) float64."""
    return torch.bincount(codes.flatten(), minlength=size).double()


def perplexity(counts: Tensor) -> Tensor:
    """Exponential of the entropy of the codes' frequencies, between 1 and the number of codes: (..., n) -> (...)."""
    return torch.distributions.Categorical(probs=counts).entropy().exp()
