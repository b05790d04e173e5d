"""The upper of two levels of codes (VQ-VAE-2, arXiv:1906.00446, sec. 3.1, fig. 2a).

A coarse grid says what the picture is as a whole; the fine grid below it is chosen knowing the coarse one, so that it
need only say what that leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.conv import Head, ResBlock, double, halve
from tokenizer.quantize import QuantizerConfig, VQConfig, quantizer_of


@dataclass(frozen=True, kw_only=True)
class TopConfig:
    """The upper level: a quantiser with codes of its own, and the layers that lead to it and back.

    channels: of the features that both levels are made from; blocks: residual blocks on each way.
    """

    quantizer: QuantizerConfig = field(default_factory=VQConfig)
    channels: int = 96
    blocks: int = 2

    def __post_init__(self) -> None:
        if self.channels < 16 or self.channels % 8:
            raise ValueError(f"top.channels is {self.channels}, expected a multiple of 8 (groups) from 16 up. Try 96.")
        if self.blocks < 0:
            raise ValueError(f"top.blocks is {self.blocks}, expected 0 or more. Try 2.")


class Top(nn.Module):
    """Features (B, channels, h, w) to vectors of half the size, and their codewords back to where the features are."""

    def __init__(self, config: TopConfig, outputs: int) -> None:
        """outputs: width of the vectors of the lower level."""
        super().__init__()
        channels, dim = config.channels, config.quantizer.dim
        self.encoder = nn.Sequential(
            halve(channels), *(ResBlock(channels) for _ in range(config.blocks)), Head(channels, dim)
        )
        self.quantizer = quantizer_of(config.quantizer)
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, channels, 3, padding=1),
            *(ResBlock(channels) for _ in range(config.blocks)),
            double(channels),
        )
        self.joint = Head(2 * channels, outputs)

    def encode(self, features: Tensor) -> Tensor:
        """Vectors of the upper level, not quantised: (B, channels, h, w) -> (B, d, h / 2, w / 2) float32."""
        return self.encoder(features).float()

    def join(self, features: Tensor, z: Tensor) -> Tensor:
        """Vectors of the lower level, given the upper one's codewords z (B, d, h / 2, w / 2): (B, outputs, h, w)."""
        return self.joint(torch.cat([features, self.decoder(z)], 1)).float()


def stacked(top: Tensor, bottom: Tensor) -> Tensor:
    """What the image decoder reads: (B, d, h / 2, w / 2) repeated over its squares, above (B, e, h, w)."""
    return torch.cat([F.interpolate(top, scale_factor=2.0, mode="nearest"), bottom], 1)  # (B, d + e, h, w)
