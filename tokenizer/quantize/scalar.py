"""Quantisers without a codebook: each feature is rounded by itself, and a code counts through all combinations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizer.quantize.base import OneGrid, Quantized, Quantizer, channels_first, channels_last
from tokenizer.ranks import averaged

LARGEST = 1 << 24  # codes
FINEST = 512  # levels of a feature


@dataclass(frozen=True, kw_only=True)
class FSQConfig(OneGrid):
    """Finite scalar quantisation (arXiv:2309.15505): each feature takes one of so many levels."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 3 or max(self.levels) > FINEST:
            raise ValueError(f"levels is {self.levels}, expected 3 to {FINEST} of each feature. Use (8, 5, 5, 5).")
        if self.codes > LARGEST:
            raise ValueError(
                f"levels {self.levels} make {self.codes:,} codes, expected at most {LARGEST:,}. Use fewer features."
            )

    @property
    def dim(self) -> int:
        """Features of a vector."""
        return len(self.levels)

    @property
    def codes(self) -> int:
        """Combinations of levels."""
        return math.prod(self.levels)


@dataclass(frozen=True, kw_only=True)
class LFQConfig(OneGrid):
    """Lookup-free quantisation (arXiv:2310.05737, sec. 3.1): each feature is a bit, its sign.

    Its own term is weight (E H(code | z) - diversity H(code)), which makes each vector sure of its code, and all codes
    used. temperature: of the soft codes in it; spherical: vectors of unit length (BSQ, arXiv:2406.07548); group: the
    entropy of the codes is that of so many bits together, summed over the groups.
    """

    kind: Literal["lfq"] = "lfq"
    bits: int = 10
    entropy_weight: float = 0.1
    diversity: float = 1.0
    temperature: float = 0.01
    spherical: bool = False
    group: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 24:
            raise ValueError(f"bits is {self.bits}, expected 1 to 24. Use 10, for 1,024 codes.")
        if not 1 <= self.group <= 14:
            raise ValueError(
                f"group is {self.group}, expected 1 to 14 bits, of which all combinations are kept. Use 10."
            )
        if not all(0 <= weight < math.inf for weight in (self.entropy_weight, self.diversity)) or not (
            0 < self.temperature < math.inf
        ):
            raise ValueError(
                f"entropy_weight is {self.entropy_weight}, diversity {self.diversity} and temperature "
                f"{self.temperature}, expected 0 or more, and a temperature above 0. Use 0.1, 1 and 0.01."
            )

        for name in ("diversity", "temperature", "group"):
            if not self.entropy_weight and getattr(self, name) != getattr(LFQConfig, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but entropy_weight is 0, so that it does nothing. Leave it out, "
                    "or use entropy_weight = 0.1."
                )

    @property
    def dim(self) -> int:
        """Features of a vector."""
        return self.bits

    @property
    def codes(self) -> int:
        """Combinations of bits."""
        return 2**self.bits


class FSQ(Quantizer):
    """Rounding behind a tanh; code = sum of the levels' numbers times the product of the levels before."""

    sizes: Tensor
    basis: Tensor

    def __init__(self, config: FSQConfig) -> None:
        super().__init__(config)
        self.config = config
        sizes = torch.tensor(config.levels)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("basis", torch.cat([sizes.new_ones(1), sizes[:-1]]).cumprod(0), persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        """z: (B, d, h, w); nothing has to be learned, so both terms are 0."""
        bounded = self._bounded(channels_last(z).float())
        rounded = bounded + (bounded.round() - bounded).detach()
        zero = z.new_zeros((), dtype=torch.float32)
        return Quantized(channels_first(rounded / self._half), self._number(bounded.round()), zero, zero)

    def read(self, z: Tensor) -> Tensor:
        """(B, d, h, w) -> (B, d, h, w), between the outermost levels and not rounded."""
        return channels_first(self._bounded(channels_last(z).float()) / self._half)

    def codes(self, z: Tensor) -> Tensor:
        """(B, d, h, w) -> (B, h, w) int64."""
        return self._number(self._bounded(channels_last(z).float()).round())

    def lookup(self, codes: Tensor) -> Tensor:
        """(B, h, w) int64 -> (B, d, h, w) float32 in [-1, 1]."""
        return channels_first(self._values(codes))

    def codewords(self) -> Tensor:
        """All combinations, (codes, d)."""
        return self._values(torch.arange(self.vocabulary, device=self.sizes.device))

    @property
    def _half(self) -> Tensor:
        return self.sizes // 2

    def _bounded(self, z: Tensor) -> Tensor:
        """Between the outermost levels, which are -(L // 2) and (L - 1) // 2: (..., d) (app. A.1)."""
        reach = (self.sizes - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.sizes % 2 == 0, 0.5, 0.0)
        return torch.tanh(z + torch.atanh(offset / reach)) * reach - offset

    def _number(self, rounded: Tensor) -> Tensor:
        return ((rounded.nan_to_num().long() + self._half) * self.basis).sum(-1)

    def _values(self, codes: Tensor) -> Tensor:
        digits = codes[..., None] // self.basis % self.sizes
        return (digits - self._half).float() / self._half


class LFQ(Quantizer):
    """Signs; bit i of a code is 1 where feature i is above 0."""

    weights: Tensor

    def __init__(self, config: LFQConfig) -> None:
        super().__init__(config)
        self.config = config
        self.size = config.bits**-0.5 if config.spherical else 1.0  # of each feature of a codeword
        self.register_buffer("weights", 2 ** torch.arange(config.bits), persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        """z: (B, d, h, w)."""
        vectors = self._directed(z)
        signs = torch.where(vectors > 0, self.size, -self.size)
        straight = vectors + (signs - vectors).detach()
        own = self._entropies(vectors.flatten(0, 2)) if self.training else vectors.new_zeros(())
        return Quantized(channels_first(straight), self._number(vectors), own, F.mse_loss(vectors, signs))

    def read(self, z: Tensor) -> Tensor:
        """(B, d, h, w) -> (B, d, h, w), of unit length where codewords are."""
        return channels_first(self._directed(z))

    def codes(self, z: Tensor) -> Tensor:
        """(B, d, h, w) -> (B, h, w) int64."""
        return self._number(self._directed(z))

    def lookup(self, codes: Tensor) -> Tensor:
        """(B, h, w) int64 -> (B, d, h, w) float32."""
        return channels_first(self._values(codes))

    def codewords(self) -> Tensor:
        """All combinations, (codes, d)."""
        return self._values(torch.arange(self.vocabulary, device=self.weights.device))

    def _directed(self, z: Tensor) -> Tensor:
        vectors = channels_last(z).float()
        return F.normalize(vectors, dim=-1) if self.config.spherical else vectors

    def _number(self, vectors: Tensor) -> Tensor:
        return ((vectors > 0) * self.weights).sum(-1)

    def _values(self, codes: Tensor) -> Tensor:
        return torch.where(codes[..., None] // self.weights % 2 == 1, self.size, -self.size)

    def _entropies(self, vectors: Tensor) -> Tensor:
        """The weighted difference of entropies: of each of this rank's vectors (n, d), and of the codes of all ranks.

        softmax over codes of -|z - c|^2 / temperature is a product over bits, each sigmoid(4 z size / temperature).
        """
        config = self.config
        logits = 4 * self.size * vectors / config.temperature  # (n, d)
        p = torch.sigmoid(logits)
        sure = F.binary_cross_entropy_with_logits(logits, p, reduction="none").sum(-1).mean()
        laws = []
        for part in p.split(config.group, -1):
            joint = part.new_ones(len(part), 1)
            for bit in part.unbind(-1):
                joint = torch.cat([joint * (1 - bit[:, None]), joint * bit[:, None]], 1)  # (n, 2^k)
            laws.append(joint.mean(0))
        law = averaged(torch.cat(laws))
        varied = torch.special.entr(law.clamp_min(torch.finfo(law.dtype).tiny)).sum()  # 0 log 0 has no slope to pass on
        return config.entropy_weight * (sure - config.diversity * varied)
