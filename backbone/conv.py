"""Convolutional encoder and decoder whose blocks all run at the low resolution, and the parts of a U-Net.

Unusual: the image is folded into channels at once (space-to-depth) and unfolded at the very end, because normalisation
and activation at full resolution would cost more than all convolutions together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResBlock(nn.Module):
    """Pre-activation residual block (arXiv:1603.05027, fig. 4e), the identity at initialisation.

    y = x + conv(silu(norm(conv(silu(norm(x))))));   x, y: (B, channels, h, w).
    """

    def __init__(self, channels: int, groups: int = 8) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_out = nn.GroupNorm(groups, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        zero_(self.conv_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, channels, h, w)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        return x + self.conv_out(F.silu(self.norm_out(h)))


class WideGroupNorm(nn.GroupNorm):
    """Group normalisation in float32 or wider, whatever the network runs in; the result has the input's dtype."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """(B, C, h, w) -> (B, C, h, w)."""
        x = input
        if torch.is_grad_enabled() and not x.requires_grad:
            x = x.contiguous()  # torch 2.13's backward pass on a CPU crashes here in channels_last
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.group_norm(x.to(wide), self.num_groups, weight, bias, self.eps).to(x.dtype)


class AdaptiveResBlock(nn.Module):
    """Residual block that a condition steers through its second norm (AdaGN, arXiv:2105.05233, section 3.1).

        h = conv(silu(norm(x)));   y = skip(x) + conv(silu(norm(h) (1 + scale) + shift)),   [shift, scale] = W silu(c)

    skip is the identity, or a 1x1 convolution where the channels change; the rest is zero at initialisation.
    """

    def __init__(self, inputs: int, outputs: int, cond_dim: int, groups: int = 8) -> None:
        super().__init__()
        self.norm_in = WideGroupNorm(groups, inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(cond_dim, 2 * outputs)
        self.norm_out = WideGroupNorm(groups, outputs)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        zero_(self.conv_out)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x: (B, inputs, h, w); c: (B, cond_dim). Returns (B, outputs, h, w)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        shift, scale = self.modulation(F.silu(c))[:, :, None, None].chunk(2, 1)  # (B, outputs, 1, 1) each
        h = self.norm_out(h) * (1 + scale) + shift
        return self.skip(x) + self.conv_out(F.silu(h))


def halve(channels: int) -> nn.Conv2d:
    """Convolution of stride 2: (B, channels, h, w) -> (B, channels, h / 2, w / 2)."""
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)


def double(channels: int) -> nn.Sequential:
    """Nearest neighbours, then a convolution: (B, channels, h, w) -> (B, channels, 2 h, 2 w)."""
    return nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1))


class Head(nn.Sequential):
    """Norm, activation and the last convolution: (B, channels, h, w) -> (B, outputs, h, w)."""

    def __init__(self, channels: int, outputs: int, groups: int = 8) -> None:
        super().__init__(nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, outputs, 3, padding=1))


class Encoder(nn.Module):
    """Images to features at 1/factor of their size: (B, inputs, H, W) -> (B, outputs, H/factor, W/factor)."""

    def __init__(self, factor: int, channels: int, blocks: int, outputs: int, *, inputs: int = 3) -> None:
        super().__init__()
        self.factor = factor
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(factor),  # (B, inputs factor^2, h, w)
            nn.Conv2d(inputs * factor**2, channels, 3, padding=1),
            *(ResBlock(channels) for _ in range(blocks)),
            Head(channels, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Raise ValueError when the factor does not divide both sides."""
        check_divides(x, self.factor)
        return self.layers(x)


class Decoder(nn.Module):
    """Features back to images: (B, inputs, h, w) -> (B, outputs, h factor, w factor)."""

    def __init__(self, factor: int, channels: int, blocks: int, inputs: int, *, outputs: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, padding=1),
            *(ResBlock(channels) for _ in range(blocks)),
            Head(channels, outputs * factor**2),
            nn.PixelShuffle(factor),  # (B, outputs, H, W)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Outputs are not clamped."""
        return self.layers(z)


def check_divides(x: Tensor, factor: int) -> None:
    """Raise ValueError unless height and width of x (..., H, W) are positive multiples of the factor."""
    height, width = x.shape[-2:]
    if height % factor or width % factor or not height or not width:
        fit = f"{max(height // factor, 1) * factor} x {max(width // factor, 1) * factor}"
        raise ValueError(
            f"images or latents of {height} x {width} do not fit: both sides must be multiples of factor = {factor}. "
            f"Resize or crop them, for example to {fit}."
        )


def check_sizes(factor: int, channels: int, encoder_blocks: int, decoder_blocks: int) -> None:
    """Raise ValueError for sizes that no encoder and decoder can have."""
    if factor < 1:
        raise ValueError(f"factor is {factor}, expected at least 1. Use 4 for images of 32 pixels, 8 for larger ones.")
    if channels < 16 or channels % 8:
        raise ValueError(f"channels is {channels}, expected a multiple of 8 (groups) from 16 up. Try 96.")
    if min(encoder_blocks, decoder_blocks) < 0:
        raise ValueError(
            f"encoder_blocks and decoder_blocks are {encoder_blocks} and {decoder_blocks}, expected 0 or more. "
            "Try 2 and 3."
        )


def zero_(layer: nn.Conv2d | nn.Linear) -> None:
    """Set the weights and the bias to zero, so that the branch which ends here starts as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
