"""Vector quantiser with a codebook that follows the data by moving averages (arXiv:1711.00937, app. A.1).

Unusual: nothing here is a parameter. Cluster sizes, sums and the codebook are buffers, so a checkpoint holds the whole
state; all of it is float32 under autocast, and the counts of a step are added up over the ranks before they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.kmeans import kmeans, nearest, plus_plus, totals
from tokenizer.loss import codebook_terms


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """Size of the codebook and how it moves."""

    codes: int = 512
    dim: int = 8
    decay: float = 0.98  # of the moving averages, per step
    dead_share: float = 0.02  # a code is dead below this share of the mean cluster size
    rounds: int = 10  # of Lloyd's algorithm at initialisation

    def __post_init__(self) -> None:
        if self.codes < 2:
            raise ValueError(f"codes is {self.codes}, expected at least 2. Use 512 for small images.")
        if self.dim < 1:
            raise ValueError(f"dim is {self.dim}, expected at least 1. Use 8.")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay}, expected 0 <= decay < 1. Use 0.98 for short runs, 0.99 for long.")
        if not 0 <= self.dead_share < 1:
            raise ValueError(f"dead_share is {self.dead_share}, expected 0 <= dead_share < 1. Use 0.02.")
        if self.rounds < 0:
            raise ValueError(f"rounds is {self.rounds}, expected 0 or more. Use 10.")


class Quantized(NamedTuple):
    """Result of one pass; the last three are ().

    z: (B, d, h, w) codewords with the gradient passed straight through; codes: (B, h, w) int64;
    codebook, commitment: unweighted terms of the loss; perplexity: of this batch's codes, on this rank.
    """

    z: Tensor
    codes: Tensor
    codebook: Tensor
    commitment: Tensor
    perplexity: Tensor


class VectorQuantizer(nn.Module):
    """Nearest codeword for each vector. In training mode each pass also moves the codebook."""

    codebook: Tensor
    cluster_size: Tensor
    sums: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("codebook", torch.randn(config.codes, config.dim) / config.dim**0.5)
        self.register_buffer("cluster_size", torch.ones(config.codes))
        self.register_buffer("sums", self.codebook.clone())

    def forward(self, z: Tensor) -> Quantized:
        """z: (B, d, h, w), straight-through: the gradient of the output is that of z."""
        vectors = channels_last(z).float()  # (B, h, w, d)
        codes = self.codes(z)
        codewords = F.embedding(codes, self.codebook)
        codebook, commitment = codebook_terms(vectors, codewords)
        straight = vectors + (codewords - vectors).detach()
        if self.training:
            self.update(vectors.detach().flatten(0, 2), codes.flatten())
        return Quantized(
            straight.permute(0, 3, 1, 2), codes, codebook, commitment, perplexity(code_counts(codes, self.config.codes))
        )

    def codes(self, z: Tensor) -> Tensor:
        """Nearest codes: (B, d, h, w) -> (B, h, w) int64."""
        vectors = channels_last(z)
        return nearest(vectors.flatten(0, 2), self.codebook)[0].view(vectors.shape[:3])

    def lookup(self, codes: Tensor) -> Tensor:
        """Codewords of codes: (B, h, w) int64 -> (B, d, h, w) float32."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor) -> None:
        """Move the averages by one step, over the vectors (n, d) and codes (n,) of all ranks (eq. 6 to 8).

        N <- g N + (1 - g) n;   m <- g m + (1 - g) sum;   e = m / N, with N smoothed so that no code divides by zero
        """
        finite = vectors.isfinite().all(1)  # a batch that blew up must not reach the averages
        counts, sums = totals(vectors[finite], codes[finite], self.config.codes)
        self.cluster_size.lerp_(summed(counts), 1 - self.config.decay)
        self.sums.lerp_(summed(sums), 1 - self.config.decay)
        total, eps = self.cluster_size.sum(), 1e-5
        smoothed = (self.cluster_size + eps) / (total + self.config.codes * eps) * total
        self.codebook.copy_(self.sums / smoothed[:, None])

    @torch.no_grad()
    def initialise(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Start the codebook at k-means centres of the vectors (n, d) of all ranks; rank 0's hold everywhere."""
        centres = kmeans(gathered(vectors.float()), self.config.codes, generator, self.config.rounds)
        self.place(torch.arange(self.config.codes, device=centres.device), broadcast(centres))

    @torch.no_grad()
    def revive(self, vectors: Tensor, generator: torch.Generator) -> int:
        """Move dead codes to badly served vectors (n, d) of all ranks; return how many.

        k-means++ given the living codes: each drawn in proportion to its squared distance to the nearest one, those
        just placed included, so that two never go to the same gap.
        """
        alive = self.cluster_size >= self.config.dead_share * self.cluster_size.mean()
        dead = torch.nonzero(~alive).flatten()
        if len(dead):
            vectors = gathered(vectors.float())
            _, distances = nearest(vectors, self.codebook[alive])
            self.place(dead, broadcast(plus_plus(vectors, len(dead), generator, distances)))
        return len(dead)

    def place(self, rows: Tensor, codewords: Tensor) -> None:
        """Put codewords (m, d) into rows (m,), with moving averages that forget what stood there."""
        self.codebook[rows] = codewords
        self.cluster_size[rows] = 1.0
        self.sums[rows] = codewords


def channels_last(z: Tensor) -> Tensor:
    """(B, d, h, w) -> (B, h, w, d)."""
    return z.permute(0, 2, 3, 1)


def code_counts(codes: Tensor, size: int) -> Tensor:
    """How often each code occurs: (size,) float64."""
    return torch.bincount(codes.flatten(), minlength=size).double()


def usage(counts: Tensor) -> Tensor:
    """Share of the codes that occur at all: ()."""
    return (counts > 0).double().mean()


def perplexity(counts: Tensor) -> Tensor:
    """Exponential of the entropy of the codes' frequencies, between 1 and the number of codes: ()."""
    return torch.distributions.Categorical(probs=counts).entropy().exp()


def summed(values: Tensor) -> Tensor:
    """Sum over the ranks, in place; the values themselves in a single process."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def broadcast(values: Tensor) -> Tensor:
    """Take rank 0's values, in place, on every rank."""
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(values, src=0)
    return values


def gathered(vectors: Tensor) -> Tensor:
    """Concatenate the vectors (n, d) of all ranks, in rank order; n is the same on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, vectors.contiguous())
    return torch.cat(parts)
