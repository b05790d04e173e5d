"""Convolutional encoder and decoder that halve and double the resolution level by level (arXiv:2112.10752, app. E).

Unusual: the modules bear the names that the weights of Stable Diffusion's autoencoders have, so that such a file loads
as it is; and normalisation is in float32 whatever the network runs in, because pretrained ones overflow otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from backbone.attention import attention
from backbone.conv import WideGroupNorm, check_divides, zero_

EPS = 1e-6  # of the norms


@dataclass(frozen=True, kw_only=True)
class PyramidConfig:
    """Sizes of a pyramid: channels by level, each level half as large as the one before it.

    blocks: residual blocks of a level of the encoder; the decoder has one more. attention: one layer of it in the
    middle, on both sides. projected: 1x1 convolutions between the pyramid and the latents, which are `inner` channels
    wide on the pyramid's side (None: as wide as the latents).
    """

    kind: Literal["pyramid"] = "pyramid"
    channels: tuple[int, ...] = (64, 128, 256)  # f4; (128, 256, 512, 512) is f8, and a fifth level f16
    blocks: int = 2
    attention: bool = True
    groups: int = 32
    projected: bool = True
    inner: int | None = None

    def __post_init__(self) -> None:
        if not self.channels or self.groups < 1 or any(width < 1 or width % self.groups for width in self.channels):
            raise ValueError(
                f"channels is {self.channels}, expected one multiple of groups = {self.groups} for each level. "
                "Use (64, 128, 256) for images of 64 pixels, (128, 256, 512, 512) for 256."
            )
        if self.blocks < 1:
            raise ValueError(f"blocks is {self.blocks}, expected at least 1 for each level. Use 2.")
        if self.inner is not None and (self.inner < 1 or not self.projected):
            raise ValueError(
                f"inner is {self.inner} with projected = {str(self.projected).lower()}, expected at least 1 channel "
                "and projected = true. Leave it out."
            )

    @property
    def factor(self) -> int:
        """Side of the pixel square that one position stands for."""
        return 2 ** (len(self.channels) - 1)


class Residual(nn.Module):
    """Pre-activation residual block, its skip a 1x1 convolution where the channels change.

    y = skip(x) + conv2(silu(norm2(conv1(silu(norm1(x))))));   the second convolution is zero at initialisation
    """

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = WideGroupNorm(groups, inputs, EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = WideGroupNorm(groups, outputs, EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None
        zero_(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class SpatialAttention(nn.Module):
    """All positions attend to all, with one head, as a residual (arXiv:2012.09841, sec. 3.1)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = WideGroupNorm(groups, channels, EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        for layer in self.to_out:
            assert isinstance(layer, nn.Linear)
            zero_(layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, channels, h, w)."""
        h = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, 1, h w, channels)
        found = self.to_out[0](attention(self.to_q(h), self.to_k(h), self.to_v(h)))
        return x + found[:, 0].transpose(1, 2).view_as(x)


class Middle(nn.Module):
    """A block, attention where it is asked for, and a block."""

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        channels, groups = config.channels[-1], config.groups
        self.resnets = nn.ModuleList(Residual(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups)] if config.attention else [])

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, channels, h, w)."""
        x = self.resnets[0](x)
        for layer in self.attentions:
            x = layer(x)
        return self.resnets[1](x)


class Halve(nn.Module):
    """Convolution of stride 2, padded on the right and below alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, channels, h / 2, w / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """Nearest neighbours, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, channels, 2 h, 2 w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, and the step to the next one."""

    def __init__(self, widths: Sequence[int], groups: int, *, halve: bool = False, double: bool = False) -> None:
        """widths: channels before the first block and after each."""
        super().__init__()
        self.resnets = nn.ModuleList(Residual(before, after, groups) for before, after in pairwise(widths))
        self.downsamplers = nn.ModuleList([Halve(widths[-1])] if halve else [])
        self.upsamplers = nn.ModuleList([Double(widths[-1])] if double else [])

    def forward(self, x: Tensor) -> Tensor:
        """(B, widths[0], h, w) -> (B, widths[-1], ...)."""
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class PyramidEncoder(nn.Module):
    """Images to features at 1/factor of their size: (B, 3, H, W) -> (B, outputs, H/factor, W/factor)."""

    def __init__(self, config: PyramidConfig, outputs: int) -> None:
        super().__init__()
        self.factor = config.factor
        widths, last = config.channels, len(config.channels) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level([before, *[width] * config.blocks], config.groups, halve=level < last)
            for level, (before, width) in enumerate(pairwise([widths[0], *widths]))
        )
        self.mid_block = Middle(config)
        self.conv_norm_out = WideGroupNorm(config.groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.inner or outputs, 3, padding=1)
        self.projection = nn.Conv2d(config.inner or outputs, outputs, 1) if config.projected else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Raise ValueError when the factor does not divide both sides."""
        check_divides(x, self.factor)
        h = self.conv_in(x)
        for level in self.down_blocks:
            h = level(h)
        return self.projection(self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h)))))


class PyramidDecoder(nn.Module):
    """Features back to images: (B, inputs, h, w) -> (B, 3, h factor, w factor)."""

    def __init__(self, config: PyramidConfig, inputs: int) -> None:
        super().__init__()
        widths, last = config.channels[::-1], len(config.channels) - 1
        self.projection = nn.Conv2d(inputs, config.inner or inputs, 1) if config.projected else nn.Identity()
        self.conv_in = nn.Conv2d(config.inner or inputs, widths[0], 3, padding=1)
        self.mid_block = Middle(config)
        self.up_blocks = nn.ModuleList(
            Level([before, *[width] * (config.blocks + 1)], config.groups, double=level < last)
            for level, (before, width) in enumerate(pairwise([widths[0], *widths]))
        )
        self.conv_norm_out = WideGroupNorm(config.groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)
        self.last: tuple[nn.Conv2d] = (self.conv_out,)  # a tuple, so that its weights are not listed twice

    def forward(self, z: Tensor) -> Tensor:
        """Outputs are not clamped."""
        h = self.mid_block(self.conv_in(self.projection(z)))
        for level in self.up_blocks:
            h = level(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))
