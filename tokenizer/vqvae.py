"""VQ-VAE (arXiv:1711.00937): images to a grid of codes, and back; or to two grids, one coarser (`tokenizer.hierarchy`).

With a learned codebook it trains in two phases: first without quantisation, until the encoder's vectors have a shape
worth clustering; then the codebook starts from them by k-means. One that starts at random collapses to a dozen codes
within 300 steps. Quantisers without such a codebook act from the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from backbone.codec import CodecConfig, decoder_of, encoder_of
from backbone.conv import check_divides
from backbone.folded import FoldedConfig
from tokenizer.hierarchy import Top, TopConfig, stacked
from tokenizer.loss import Reconstruction
from tokenizer.quantize import (
    FSQConfig,
    Quantized,
    Quantizer,
    QuantizerConfig,
    VQConfig,
    channels_last,
    quantizer_of,
)


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig:
    """Networks, loss and phases of a VQ-VAE."""

    kind: Literal["vqvae"] = "vqvae"
    network: CodecConfig = field(default_factory=FoldedConfig)
    quantizer: QuantizerConfig = field(default_factory=VQConfig)
    reconstruction: Reconstruction = "mixed"
    top: TopConfig | None = None  # a coarser level of codes above the others
    beta: float = 0.25  # weight of the commitment term
    unquantised: float = 0.05  # share of the steps before the codebook starts
    initial_vectors: int = 24_576  # encoder vectors that the codebook starts from
    revive_every: int = 20  # steps

    def __post_init__(self) -> None:
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta is {self.beta}, expected 0 or a positive number. Use 0.25.")
        if not 0 <= self.unquantised < 1:
            raise ValueError(f"unquantised is {self.unquantised}, expected 0 <= unquantised < 1. Use 0.05.")
        if self.initial_vectors < (codes := self.started_codes):
            raise ValueError(
                f"initial_vectors is {self.initial_vectors}, expected at least one for each of {codes} codes. "
                f"Use {48 * codes}."
            )
        if self.revive_every < 1:
            raise ValueError(f"revive_every is {self.revive_every}, expected at least 1 step. Use 20.")
        if not self.started_codes:
            self._refuse_idle(("unquantised", "initial_vectors", "revive_every"), "does not start from the data")
        if all(isinstance(level, FSQConfig) for level in self.levels):
            self._refuse_idle(("beta",), "has no commitment term")

    @property
    def levels(self) -> tuple[QuantizerConfig, ...]:
        """The quantisers, coarse to fine."""
        return (self.quantizer,) if self.top is None else (self.top.quantizer, self.quantizer)

    @property
    def codes(self) -> int:
        """Codes of all levels: those of a level begin where those of the one above end."""
        return sum(level.codes for level in self.levels)

    @property
    def grid_levels(self) -> tuple[QuantizerConfig, ...]:
        """The quantiser of each grid of codes, coarse to fine."""
        return tuple(level for level in self.levels for _ in range(level.grids))

    @property
    def vocabularies(self) -> tuple[int, ...]:
        """How many codes each grid has for itself, in the order of `VQVAE.grids`."""
        return tuple(level.codes // level.grids for level in self.grid_levels)

    @property
    def multiple(self) -> int:
        """What the sides of a picture must be multiples of."""
        return self.network.factor * 2 ** (len(self.levels) - 1)

    @property
    def started_codes(self) -> int:
        """How many codes start from the encoder's vectors at once; 0 where none do."""
        return max(level.started for level in self.levels)

    def _refuse_idle(self, names: tuple[str, ...], reason: str) -> None:
        """Raise ValueError for settings, other than their defaults, that the quantisers make no use of."""
        for name in names:
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but a quantizer of kind {self.quantizer.kind!r} {reason}. "
                    f"Leave {name} out."
                )


class VQVAEOutput(NamedTuple):
    """One pass: the reconstruction (B, 3, H, W), and what the quantisers did (None where they were left out).

    Of `quantized`, z is what the decoder reads, the codes are (B, L) as in `VQVAE.codes`, and the terms of the loss are
    sums over the levels.
    """

    x_hat: Tensor
    quantized: Quantized | None


Step = Callable[[Quantizer, Tensor], Tensor]
"""What is done with a level's vectors (B, d, h, w) -> what goes on to the next level and to the decoder, as large."""


class VQVAE(nn.Module):
    """Encoder to vectors (B, d, H/factor, W/factor), quantiser, and a decoder from codewords.

    With a level on top, whose grid is half as large, the lower one's vectors depend on the codes of the upper one, and
    the decoder reads both.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.quantizer.dim
        self.encoder = encoder_of(config.network, dim if config.top is None else config.top.channels)
        self.top = None if config.top is None else Top(config.top, dim)
        self.quantizer = quantizer_of(config.quantizer)
        self.decoder = decoder_of(config.network, sum(level.dim for level in config.levels))

    @property
    def downsample(self) -> int:
        """Pixels per code of the finest grid along one side."""
        return self.config.network.factor

    @property
    def levels(self) -> tuple[Quantizer, ...]:
        """The quantisers, coarse to fine."""
        return (self.quantizer,) if self.top is None else (self.top.quantizer, self.quantizer)

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """Shapes (h, w) of the grids of codes that stand for a picture of so many pixels, coarse to fine."""
        return [shape for shape, level in self._shapes(height, width) for _ in range(level.grids)]

    def encode(self, x: Tensor) -> Tensor:
        """x: (B, 3, H, W) in [-1, 1] -> what the decoder would read without quantisation, (B, dim, h, w) float32.

        Raises ValueError on sizes that do not fit.
        """
        return self._pass(x, _unquantised)

    def codes(self, x: Tensor) -> Tensor:
        """x: (B, 3, H, W) in [-1, 1] -> codes (B, L) int64, grid after grid in the order of `grids`, rows first.

        The codes of a grid begin where those of the one before end. Raises ValueError on sizes that do not fit.
        """
        return self.numbered(self.level_codes(x))

    def level_codes(self, x: Tensor) -> list[Tensor]:
        """x: (B, 3, H, W) in [-1, 1] -> codes (B, grids h, w) of each level, coarse to fine, each from 0 on."""
        found: list[Tensor] = []

        def step(quantizer: Quantizer, z: Tensor) -> Tensor:
            found.append(quantizer.codes(z))
            return quantizer.lookup(found[-1])

        self._pass(x, step)
        return found

    def decode(self, z: Tensor) -> Tensor:
        """z: (B, dim, h, w) -> (B, 3, H, W) float32 around [-1, 1], not clamped."""
        return self.decoder(z).float()

    def decode_codes(self, codes: Tensor, height: int, width: int) -> Tensor:
        """codes: (B, L) int64 of pictures of so many pixels -> (B, 3, height, width) float32, not clamped."""
        return self.decode(self.lookup(codes, height, width))

    def lookup(self, codes: Tensor, height: int, width: int) -> Tensor:
        """codes: (B, L) int64 of pictures of so many pixels -> what the decoder reads, (B, dim, h, w)."""
        parts, start, first = [], 0, 0
        for (h, w), level in self._shapes(height, width):
            end = start + level.grids * h * w
            parts.append(level.lookup((codes[:, start:end] - first).unflatten(1, (-1, w))))
            start, first = end, first + level.vocabulary
        return parts[0] if len(parts) == 1 else stacked(*parts)

    def codewords(self) -> Tensor:
        """What each code adds to what the decoder reads: (codes, dim) float32; each level has features of its own."""
        return torch.block_diag(*(level.codewords() for level in self.levels))

    def forward(self, x: Tensor, quantise: bool = True) -> VQVAEOutput:
        """Encode, quantise unless it is too early for that, and decode.

        In training mode the quantisers' `settle` is due once a step, behind its passes that quantise.
        """
        if not quantise:
            return VQVAEOutput(self.decode(self.encode(x)), None)
        found: list[Quantized] = []

        def step(quantizer: Quantizer, z: Tensor) -> Tensor:
            found.append(quantizer(z))
            return found[-1].z

        z = self._pass(x, step)
        codes = self.numbered([one.codes for one in found])
        own, commitment = torch.stack([torch.stack([one.own, one.commitment]) for one in found]).sum(0)
        return VQVAEOutput(self.decode(z), Quantized(z, codes, own, commitment))

    @torch.no_grad()
    def vectors(self, x: Tensor, level: int = 0) -> Tensor:
        """Vectors of images at a level, as its quantiser's `initialise` and `revive` take them: (B h w, d).

        Those above it are quantised, as they are in use.
        """
        found: list[Tensor] = []

        def step(quantizer: Quantizer, z: Tensor) -> Tensor:
            found.append(channels_last(z).flatten(0, 2))
            return quantizer.lookup(quantizer.codes(z))

        self._pass(x, step)
        return found[level]

    def _pass(self, x: Tensor, step: Step) -> Tensor:
        """Take the vectors of each level through a step, coarse to fine: what the decoder reads, (B, dim, h, w)."""
        check_divides(x, self.config.multiple)
        features = self.encoder(x)
        if self.top is None:
            return step(self.quantizer, features.float())
        above = step(self.top.quantizer, self.top.encode(features))
        return stacked(above, step(self.quantizer, self.top.join(features, above)))

    def _shapes(self, height: int, width: int) -> list[tuple[tuple[int, int], Quantizer]]:
        """Shape of the vectors of each level, and its quantiser."""
        sides = [self.downsample * 2**above for above in reversed(range(len(self.levels)))]
        return [((height // side, width // side), level) for side, level in zip(sides, self.levels, strict=True)]

    def numbered(self, found: Sequence[Tensor]) -> Tensor:
        """Codes (B, grids h, w) of each level as one sequence (B, L) over one vocabulary."""
        firsts = accumulate((level.vocabulary for level in self.levels), initial=0)
        return torch.cat([(codes + first).flatten(1) for codes, first in zip(found, firsts, strict=False)], 1)


def _unquantised(quantizer: Quantizer, z: Tensor) -> Tensor:
    """What the decoder reads without codes; all parameters take part, as training on several devices needs."""
    return quantizer.read(z) + 0 * sum((parameter.sum() for parameter in quantizer.parameters()), z.new_zeros(()))
