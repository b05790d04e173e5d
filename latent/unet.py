"""U-Net over latents or pixels, conditioned on time and text (arXiv:2105.05233, with cross-attention to the text).

Unusual: where ADM has self-attention stands a whole transformer block, which also reads the refined text; `patch`
folds pixels into channels at the very start, because normalisation at full resolution costs more than it teaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.block import Block
from backbone.conv import AdaptiveResBlock, WideGroupNorm, check_divides, double, halve, zero_
from latent.condition import NetworkConfig, TextConditioned, require
from latent.sizes import UNET_SIZES, Default, SizeName, settle

GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class UNetConfig(NetworkConfig):
    """Sizes of a U-Net: width and blocks, or the `size` that stands for them.

    Level i has width x multipliers[i] channels at 1/2^i of the sides and as many `blocks` on the way down, one more on
    the way up. attention_levels: those with transformer blocks, whose heads are head_width wide (64 in
    arXiv:2105.05233); the middle always has one. patch: 1 for latents, 2 or 4 for pixels.
    """

    kind: Literal["unet"] = "unet"
    size: SizeName | None = None
    patch: int = 1
    width: int = Default(48)
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = Default(2)
    attention_levels: tuple[int, ...] = (1,)
    head_width: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, self.size, UNET_SIZES)
        multipliers, levels = self.multipliers, range(len(self.multipliers))
        require(self.width > 0 and self.width % GROUPS == 0, "width", self.width, f"a positive multiple of {GROUPS}")
        require(self.blocks >= 1, "blocks", self.blocks, "at least 1; use 2")
        require(min(multipliers, default=0) >= 1, "multipliers", multipliers, "one number from 1 up for each level")
        wanted = f"levels from 0 to {len(levels) - 1}, of which there are as many as multipliers"
        require(set(self.attention_levels) <= set(levels), "attention_levels", self.attention_levels, wanted)
        for level in {*self.attention_levels, levels[-1]}:
            channels = self.width * multipliers[level]
            wanted = f"a divisor of the {channels} channels of level {level}, which attends"
            require(self.head_width >= 1 and channels % self.head_width == 0, "head_width", self.head_width, wanted)

    @property
    def factor(self) -> int:
        """What must divide both sides of the input."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


class Stage(nn.Module):
    """A residual block, and a transformer block over its places where the level attends."""

    def __init__(self, config: UNetConfig, inputs: int, outputs: int, *, attends: bool) -> None:
        super().__init__()
        self.residual = AdaptiveResBlock(inputs, outputs, config.cond_dim, GROUPS)
        self.attention = _transformer(config, outputs) if attends else None

    def forward(self, x: Tensor, c: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """x: (B, inputs, h, w); c: (B, cond_dim); text: (B, L, text_dim). Returns (B, outputs, h, w)."""
        x = self.residual(x, c)
        if self.attention is None:
            return x
        places = self.attention(x.flatten(2).mT, context=text, context_mask=mask)  # (B, h w, outputs)
        return places.mT.unflatten(2, x.shape[2:])


class UNet(TextConditioned):
    """Network(x_t, t, cond) -> raw output, shaped like x_t; zero at initialisation."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.config = config
        area = config.patch**2
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.stem = nn.Conv2d((config.channels + config.image_channels) * area, widths[0], 3, padding=1)
        self.down, skips = _way_down(config, widths)
        self.middle = nn.ModuleList(Stage(config, widths[-1], widths[-1], attends=i == 0) for i in range(2))
        self.up = _way_up(config, widths, skips)
        self.norm = WideGroupNorm(GROUPS, widths[0])
        self.out = nn.Conv2d(widths[0], config.channels * area, 3, padding=1)
        zero_(self.out)

    def trunk(self, x: Tensor, c: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Down, through the middle, and up beside what was kept. Raises ValueError where the sides do not fit."""
        check_divides(x, self.config.factor)
        x = F.pixel_unshuffle(x, self.config.patch).contiguous(memory_format=torch.channels_last)  # faster convolutions

        def through(layer: nn.Module, x: Tensor) -> Tensor:
            return self.run(partial(layer, c=c, text=text, mask=mask), x) if isinstance(layer, Stage) else layer(x)

        kept = [self.stem(x)]
        for layer in self.down:
            kept.append(through(layer, kept[-1]))
        x = kept[-1]
        for layer in self.middle:
            x = through(layer, x)
        for layer in self.up:
            x = through(layer, torch.cat([x, kept.pop()], 1) if isinstance(layer, Stage) else x)
        return F.pixel_shuffle(self.out(F.silu(self.norm(x))), self.config.patch)


def _way_down(config: UNetConfig, widths: list[int]) -> tuple[nn.ModuleList, list[int]]:
    """Layers of every level, and the channels that each of them, after the stem, keeps for the way up."""
    layers, kept = nn.ModuleList(), [widths[0]]
    for level, width in enumerate(widths):
        for _ in range(config.blocks):
            layers.append(Stage(config, kept[-1], width, attends=level in config.attention_levels))
            kept.append(width)
        if level < len(widths) - 1:
            layers.append(halve(width))
            kept.append(width)
    return layers, kept


def _way_up(config: UNetConfig, widths: list[int], kept: list[int]) -> nn.ModuleList:
    """Layers of every level from the lowest: each stage takes one of the kept, last first."""
    layers, kept, channels = nn.ModuleList(), list(kept), widths[-1]
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(config.blocks + 1):
            layers.append(Stage(config, channels + kept.pop(), width, attends=level in config.attention_levels))
            channels = width
        if level > 0:
            layers.append(double(width))
    return layers


def _transformer(config: UNetConfig, channels: int) -> Block:
    return Block(
        channels,
        channels // config.head_width,
        cross_dim=config.text_dim,
        mlp_ratio=config.mlp_ratio,
        style=config.style,
    )
