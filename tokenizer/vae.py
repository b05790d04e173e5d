"""Variational autoencoder (arXiv:1312.6114): images to a diagonal Gaussian over latents, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn

from backbone.conv import Decoder, Encoder, check_sizes
from backbone.noise import Randomness
from tokenizer.loss import Reconstruction
from tokenizer.posterior import Gaussian


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes and loss of a VAE. factor: side of the pixel square that one latent position stands for."""

    kind: Literal["vae"] = "vae"
    factor: int = 4
    channels: int = 96
    latent_channels: int = 4
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    reconstruction: Reconstruction = "mixed"
    kl_weight: float = 2e-3  # times nats per latent value

    def __post_init__(self) -> None:
        check_sizes(self.factor, self.channels, self.encoder_blocks, self.decoder_blocks)
        if self.latent_channels < 1:
            raise ValueError(f"latent_channels is {self.latent_channels}, expected at least 1. Use 4 for small images.")
        if not 0 <= self.kl_weight < float("inf"):
            raise ValueError(f"kl_weight is {self.kl_weight}, expected 0 or a positive number. Try 2e-3.")


class VAEOutput(NamedTuple):
    """One pass: the reconstruction (B, 3, H, W) and the posterior it was drawn from."""

    x_hat: Tensor
    posterior: Gaussian


class VAE(nn.Module):
    """Encoder to a Gaussian over (B, c, H/factor, W/factor), and a decoder from its samples."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.factor, config.channels, config.encoder_blocks, 2 * config.latent_channels)
        self.decoder = Decoder(config.factor, config.channels, config.decoder_blocks, config.latent_channels)

    @property
    def downsample(self) -> int:
        """Pixels per latent position along one side."""
        return self.config.factor

    def encode(self, x: Tensor) -> Gaussian:
        """x: (B, 3, H, W) in [-1, 1]. Raise ValueError when the factor does not divide both sides."""
        return Gaussian.of(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """z: (B, c, h, w), not normalised -> (B, 3, H, W) float32 around [-1, 1], not clamped."""
        return self.decoder(z).float()

    def forward(self, x: Tensor, generator: Randomness) -> VAEOutput:
        """Encode, draw once and decode."""
        posterior = self.encode(x)
        return VAEOutput(self.decode(posterior.sample(generator)), posterior)
