"""Convolutional encoder and decoder whose blocks all run at the low resolution.

Unusual: the image is folded into channels at once (space-to-depth) and unfolded at the very end, because normalisation
and activation at full resolution would cost more than all convolutions together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from backbone.conv import Head, ResBlock, check_divides


@dataclass(frozen=True, kw_only=True)
class FoldedConfig:
    """Sizes of a folded encoder and decoder. factor: side of the pixel square that one position stands for."""

    kind: Literal["folded"] = "folded"
    factor: int = 4
    channels: int = 96
    encoder_blocks: int = 2
    decoder_blocks: int = 3

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(
                f"factor is {self.factor}, expected at least 1. Use 4 for images of 32 pixels, 8 for larger ones."
            )
        if self.channels < 16 or self.channels % 8:
            raise ValueError(f"channels is {self.channels}, expected a multiple of 8 (groups) from 16 up. Try 96.")
        for name in ("encoder_blocks", "decoder_blocks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more. Try 2 and 3.")


class FoldedEncoder(nn.Module):
    """Images to features at 1/factor of their size: (B, inputs, H, W) -> (B, outputs, H/factor, W/factor)."""

    def __init__(self, config: FoldedConfig, outputs: int, *, inputs: int = 3) -> None:
        super().__init__()
        self.factor = config.factor
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(config.factor),  # (B, inputs factor^2, h, w)
            nn.Conv2d(inputs * config.factor**2, config.channels, 3, padding=1),
            *(ResBlock(config.channels) for _ in range(config.encoder_blocks)),
            Head(config.channels, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Raise ValueError when the factor does not divide both sides."""
        check_divides(x, self.factor)
        return self.layers(x)


class FoldedDecoder(nn.Module):
    """Features back to images: (B, inputs, h, w) -> (B, outputs, h factor, w factor)."""

    def __init__(self, config: FoldedConfig, inputs: int, *, outputs: int = 3) -> None:
        super().__init__()
        head = Head(config.channels, outputs * config.factor**2)
        last = head[2]
        assert isinstance(last, nn.Conv2d)
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, config.channels, 3, padding=1),
            *(ResBlock(config.channels) for _ in range(config.decoder_blocks)),
            head,
            nn.PixelShuffle(config.factor),  # (B, outputs, H, W)
        )
        self.last: tuple[nn.Conv2d] = (last,)  # a tuple, so that its weights are not listed twice

    def forward(self, z: Tensor) -> Tensor:
        """Outputs are not clamped."""
        return self.layers(z)
