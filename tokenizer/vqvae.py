"""VQ-VAE (arXiv:1711.00937): images to a grid of codes, and back.

With a learned codebook it trains in two phases: first without quantisation, until the encoder's vectors have a shape
worth clustering; then the codebook starts from them by k-means. One that starts at random collapses to a dozen codes
within 300 steps. Quantisers without such a codebook act from the first step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from backbone.codec import CodecConfig, decoder_of, encoder_of
from backbone.folded import FoldedConfig
from tokenizer.loss import Reconstruction
from tokenizer.quantize import Quantized, QuantizerConfig, ResidualConfig, VQConfig, channels_last, quantizer_of


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig:
    """Networks, loss and phases of a VQ-VAE."""

    kind: Literal["vqvae"] = "vqvae"
    network: CodecConfig = field(default_factory=FoldedConfig)
    quantizer: QuantizerConfig = field(default_factory=VQConfig)
    reconstruction: Reconstruction = "mixed"
    beta: float = 0.25  # weight of the commitment term
    unquantised: float = 0.05  # share of the steps before the codebook starts
    initial_vectors: int = 24_576  # encoder vectors that the codebook starts from
    revive_every: int = 20  # steps

    def __post_init__(self) -> None:
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta is {self.beta}, expected 0 or a positive number. Use 0.25.")
        if not 0 <= self.unquantised < 1:
            raise ValueError(f"unquantised is {self.unquantised}, expected 0 <= unquantised < 1. Use 0.05.")
        if self.initial_vectors < (codes := self._started_codes()):
            raise ValueError(
                f"initial_vectors is {self.initial_vectors}, expected at least one for each of {codes} codes. "
                f"Use {48 * codes}."
            )
        if self.revive_every < 1:
            raise ValueError(f"revive_every is {self.revive_every}, expected at least 1 step. Use 20.")

    def _started_codes(self) -> int:
        """How many codes start from the encoder's vectors at once."""
        match self.quantizer:
            case VQConfig(codes=codes) | ResidualConfig(level=VQConfig(codes=codes)):
                return codes
            case _:
                return 0


class VQVAEOutput(NamedTuple):
    """One pass: the reconstruction (B, 3, H, W), and what the quantiser did (None where it was left out)."""

    x_hat: Tensor
    quantized: Quantized | None


class VQVAE(nn.Module):
    """Encoder to vectors (B, d, H/factor, W/factor), quantiser, and a decoder from codewords."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder_of(config.network, config.quantizer.dim)
        self.quantizer = quantizer_of(config.quantizer)
        self.decoder = decoder_of(config.network, config.quantizer.dim)

    @property
    def downsample(self) -> int:
        """Pixels per code along one side."""
        return self.config.network.factor

    def encode(self, x: Tensor) -> Tensor:
        """x: (B, 3, H, W) in [-1, 1] -> (B, d, h, w) float32, not quantised. Raise ValueError on odd sizes."""
        return self.encoder(x).float()

    def codes(self, x: Tensor) -> Tensor:
        """x: (B, 3, H, W) in [-1, 1] -> codes (B, grids h, w) int64, grids being the quantiser's."""
        return self.quantizer.codes(self.encode(x))

    def decode(self, z: Tensor) -> Tensor:
        """z: (B, d, h, w) -> (B, 3, H, W) float32 around [-1, 1], not clamped."""
        return self.decoder(z).float()

    def decode_codes(self, codes: Tensor) -> Tensor:
        """codes: (B, grids h, w) int64 -> (B, 3, H, W) float32 around [-1, 1], not clamped."""
        return self.decode(self.quantizer.lookup(codes))

    def forward(self, x: Tensor, quantise: bool = True) -> VQVAEOutput:
        """Encode, quantise unless it is too early for that, and decode.

        In training mode the quantiser's `settle` is due once a step, behind its passes that quantise.
        """
        z = self.encode(x)
        if not quantise:  # all parameters take part, as training on several devices needs
            idle = sum((parameter.sum() for parameter in self.quantizer.parameters()), z.new_zeros(()))
            return VQVAEOutput(self.decode(self.quantizer.read(z) + 0 * idle), None)
        quantized = self.quantizer(z)
        return VQVAEOutput(self.decode(quantized.z), quantized)

    @torch.no_grad()
    def vectors(self, x: Tensor) -> Tensor:
        """Encoder vectors of images, as the quantiser's `initialise` and `revive` take them: (B h w, d)."""
        return channels_last(self.encode(x)).flatten(0, 2)
