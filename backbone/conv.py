"""Convolutional parts of autoencoders and of U-Nets."""

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


def check_divides(x: Tensor, factor: int) -> None:
    """Raise ValueError unless height and width of x (..., H, W) are positive multiples of the factor."""
    height, width = x.shape[-2:]
    if height % factor or width % factor or not height or not width:
        fit = f"{max(height // factor, 1) * factor} x {max(width // factor, 1) * factor}"
        raise ValueError(
            f"images or latents of {height} x {width} do not fit: both sides must be multiples of factor = {factor}. "
            f"Resize or crop them, for example to {fit}."
        )


def zero_(layer: nn.Conv2d | nn.Linear) -> None:
    """Set the weights and the bias to zero, so that the branch which ends here starts as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
