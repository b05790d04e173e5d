"""Vector quantisers with a codebook: one that is learned, code by code, and one that a linear map moves as a whole.

Unusual: with moving averages nothing here is a parameter. Cluster sizes, sums and the codebook are buffers, so a
checkpoint holds the whole state; all of it is float32 under autocast. A pass in training mode only adds to `pending`;
`settle` adds that up over the ranks and moves the averages, once a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.kmeans import kmeans, nearest, plus_plus, totals
from tokenizer.loss import codebook_terms
from tokenizer.quantize.base import (
    Estimator,
    Moved,
    OneGrid,
    Quantized,
    Quantizer,
    channels_first,
    channels_last,
    passed_through,
)
from tokenizer.ranks import broadcast, gathered, summed


@dataclass(frozen=True, kw_only=True)
class VQConfig(OneGrid):
    """Size of a learned codebook and how it moves.

    learn: by moving averages (arXiv:1711.00937, app. A.1), or by the gradient of the codebook term. distance: cosine
    compares directions, and the decoder sees unit vectors (arXiv:2110.04627, sec. 3.2).
    """

    kind: Literal["vq"] = "vq"
    codes: int = 512
    dim: int = 8
    learn: Literal["ema", "gradient"] = "ema"
    distance: Literal["euclidean", "cosine"] = "euclidean"
    estimator: Estimator = "straight"
    decay: float = 0.98  # of the moving averages, per step
    dead_share: float = 0.02  # a code is dead below this share of the mean cluster size
    rounds: int = 10  # of Lloyd's algorithm at initialisation

    def __post_init__(self) -> None:
        check_codebook(self.codes, self.dim)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay}, expected 0 <= decay < 1. Use 0.98 for short runs, 0.99 for long.")
        if not 0 <= self.dead_share < 1:
            raise ValueError(f"dead_share is {self.dead_share}, expected 0 <= dead_share < 1. Use 0.02.")
        if self.rounds < 0:
            raise ValueError(f"rounds is {self.rounds}, expected 0 or more. Use 10.")

    @property
    def started(self) -> int:
        """All codes start from the data."""
        return self.codes


@dataclass(frozen=True, kw_only=True)
class SimVQConfig(OneGrid):
    """A frozen random codebook behind a learned linear map, which leaves no code behind (SimVQ, arXiv:2411.02038)."""

    kind: Literal["sim"] = "sim"
    codes: int = 512
    dim: int = 8
    estimator: Estimator = "rotation"

    def __post_init__(self) -> None:
        check_codebook(self.codes, self.dim)


def check_codebook(codes: int, dim: int) -> None:
    """Raise ValueError for sizes that no codebook can have."""
    if codes < 2:
        raise ValueError(f"codes is {codes}, expected at least 2. Use 512 for small images.")
    if dim < 1:
        raise ValueError(f"dim is {dim}, expected at least 1. Use 8.")


class Codebook(Quantizer):
    """Nearest codeword for each vector; `codewords` says where they are."""

    def __init__(self, config: VQConfig | SimVQConfig) -> None:
        super().__init__(config)
        self.estimator: Estimator = config.estimator

    def forward(self, z: Tensor) -> Quantized:
        """z: (B, d, h, w)."""
        vectors = self.direction(channels_last(z).float())  # (B, h, w, d)
        codewords, codes = self.assign(vectors)
        own, commitment = codebook_terms(vectors, codewords)
        passed = passed_through(vectors, codewords, self.estimator)
        return Quantized(channels_first(passed), codes, own, commitment)

    def assign(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Codewords (B, h, w, d) and codes (B, h, w) of vectors, which training mode gathers for `settle`."""
        book = self.codewords()
        codes = nearest(vectors.flatten(0, 2), book)[0].view(vectors.shape[:3])
        if self.training:
            self.gather(vectors.detach().flatten(0, 2), codes.flatten())
        return F.embedding(codes, book), codes

    def codes(self, z: Tensor) -> Tensor:
        """Nearest codes: (B, d, h, w) -> (B, h, w) int64."""
        vectors = self.direction(channels_last(z).float())
        return nearest(vectors.flatten(0, 2), self.codewords())[0].view(vectors.shape[:3])

    def lookup(self, codes: Tensor) -> Tensor:
        """Codewords of codes: (B, h, w) int64 -> (B, d, h, w) float32."""
        return channels_first(F.embedding(codes, self.codewords()))

    def direction(self, vectors: Tensor) -> Tensor:
        """Vectors (..., d) as they are compared."""
        return vectors

    def read(self, z: Tensor) -> Tensor:
        """(B, d, h, w) -> (B, d, h, w), as they are compared."""
        return channels_first(self.direction(channels_last(z).float()))

    def gather(self, vectors: Tensor, codes: Tensor) -> None:
        """Note vectors (n, d) and their codes (n,) to learn from beside any gradient."""
        del vectors, codes


class VectorQuantizer(Codebook):
    """A codebook that is learned code by code, from the data on."""

    codebook: Tensor
    cluster_size: Tensor
    sums: Tensor
    pending: Tensor

    def __init__(self, config: VQConfig) -> None:
        super().__init__(config)
        self.config = config
        codebook = self.direction(torch.randn(config.codes, config.dim) / config.dim**0.5)
        self.register_buffer("cluster_size", torch.ones(config.codes))
        if config.learn == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("sums", codebook.clone())
        gathers = 1 if config.learn == "gradient" else 1 + config.dim  # of each code: a count, and the sum of vectors
        self.register_buffer("pending", torch.zeros(config.codes, gathers), persistent=False)  # 0 between two steps

    def codewords(self) -> Tensor:
        """The codebook, (codes, d)."""
        return self.direction(self.codebook) if self.config.learn == "gradient" else self.codebook

    def direction(self, vectors: Tensor) -> Tensor:
        """Vectors (..., d) as they are compared: of unit length where directions are."""
        return F.normalize(vectors, dim=-1) if self.config.distance == "cosine" else vectors

    @torch.no_grad()
    def gather(self, vectors: Tensor, codes: Tensor) -> None:
        """Add vectors (n, d) with codes (n,) to those that the averages move by when the step is done."""
        finite = vectors.isfinite().all(1)  # a batch that blew up must not reach the averages
        counts, sums = totals(vectors[finite], codes[finite], self.config.codes)
        self.pending += torch.cat([counts[:, None], sums], 1)[:, : self.pending.shape[1]]

    def settle(self) -> None:
        """Move the averages by one step, over the vectors of all ranks."""
        self.absorb(summed(self.pending))

    @torch.no_grad()
    def absorb(self, gathered: Tensor) -> None:
        """Move the averages by the counts and sums (codes, 1 + d) of a step, if it had any (eq. 6 to 8).

        N <- g N + (1 - g) n;   m <- g m + (1 - g) sum;   e = m / N, with N smoothed so that no code divides by zero
        """
        counts, sums = gathered[:, 0].clone(), gathered[:, 1:].clone()
        self.pending.zero_()
        if not counts.any():
            return
        self.cluster_size.lerp_(counts, 1 - self.config.decay)
        if self.config.learn == "gradient":
            return
        self.sums.lerp_(sums, 1 - self.config.decay)
        total, eps = self.cluster_size.sum(), 1e-5
        smoothed = (self.cluster_size + eps) / (total + self.config.codes * eps) * total
        self.codebook.copy_(self.direction(self.sums / smoothed[:, None]))

    @torch.no_grad()
    def initialise(self, vectors: Tensor, generator: torch.Generator) -> list[Moved]:
        """Start the codebook at k-means centres of the vectors (n, d) of all ranks; rank 0's hold everywhere."""
        vectors = gathered(self.direction(vectors.float()))
        centres = kmeans(vectors, self.config.codes, generator, self.config.rounds)
        return [self.place(torch.arange(self.config.codes, device=centres.device), broadcast(centres))]

    @torch.no_grad()
    def revive(self, vectors: Tensor, generator: torch.Generator) -> list[Moved]:
        """Move dead codes to badly served vectors (n, d) of all ranks; return which.

        k-means++ given the living codes: each drawn in proportion to its squared distance to the nearest one, those
        just placed included, so that two never go to the same gap; no more of them than there are vectors.
        """
        alive = self.cluster_size >= self.config.dead_share * self.cluster_size.mean()
        dead = torch.nonzero(~alive).flatten()
        if not len(dead):
            return []
        vectors = gathered(self.direction(vectors.float()))
        dead = dead[: len(vectors)]
        _, distances = nearest(vectors, self.codewords()[alive])
        return [self.place(dead, broadcast(plus_plus(vectors, len(dead), generator, distances)))]

    @torch.no_grad()
    def place(self, rows: Tensor, codewords: Tensor) -> Moved:
        """Put codewords (m, d) into rows (m,), with moving averages that forget what stood there.

        Each starts at the mean cluster size: less is below the death line where steps have many vectors of each code.
        """
        codewords, size = self.direction(codewords), self.cluster_size.mean()
        self.codebook[rows] = codewords
        self.cluster_size[rows] = size
        if self.config.learn == "ema":
            self.sums[rows] = size * codewords
        return Moved(self.codebook, rows)


class SimVQ(Codebook):
    """The codewords C W, the rows of C being frozen, so that a step for one code moves all of them."""

    frozen: Tensor

    def __init__(self, config: SimVQConfig) -> None:
        super().__init__(config)
        self.register_buffer("frozen", torch.randn(config.codes, config.dim) / config.dim**0.5)
        self.map = nn.Linear(config.dim, config.dim, bias=False)

    def codewords(self) -> Tensor:
        """The frozen codebook behind the map, (codes, d)."""
        with torch.autocast(self.frozen.device.type, enabled=False):
            return self.map(self.frozen)
