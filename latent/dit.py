"""Diffusion transformer over latents, conditioned on frozen text tokens (arXiv:2212.09748, with cross-attention).

Unusual: the modulation of all blocks is fed by a condition narrower than the stream, which saves a third of the
parameters; positions come from the input, so one network serves all sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from backbone.block import Block, RMSNorm
from backbone.conv import zero_
from backbone.embed import Rotary, rotary_2d, sincos_2d
from latent.condition import Condition as Condition
from latent.condition import NetworkConfig, TextConditioned, require, require_heads
from latent.sizes import TRANSFORMER_SIZES, Default, SizeName, settle

Positions = Literal["rotary", "sincos", "both"]


@dataclass(frozen=True, kw_only=True)
class DiTConfig(NetworkConfig):
    """Sizes of a DiT: dim, layers and heads, or the `size` that stands for them in arXiv:2212.09748, table 1.

    There cond_dim is dim, the activation GELU, and positions are sincos.
    """

    kind: Literal["dit"] = "dit"
    size: SizeName | None = None
    dim: int = Default(256)
    layers: int = Default(6)
    heads: int = Default(4)
    positions: Positions = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, self.size, TRANSFORMER_SIZES)
        require(self.layers >= 1, "layers", self.layers, "at least 1")
        require_heads("dim", self.dim, self.heads)


class DiT(TextConditioned):
    """Network(x_t, t, cond) -> raw output, shaped like x_t; zero at initialisation."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.config = config
        area = config.patch**2
        self.linear_in = nn.Linear((config.channels + config.image_channels) * area, config.dim)
        self.blocks = nn.ModuleList(
            Block(
                config.dim,
                config.heads,
                cond_dim=config.cond_dim,
                cross_dim=config.text_dim,
                mlp_ratio=config.mlp_ratio,
                style=config.style,
            )
            for _ in range(config.layers)
        )
        self.norm = RMSNorm(config.dim, affine=False)
        self.modulation = nn.Linear(config.cond_dim, 2 * config.dim)
        self.out = nn.Linear(config.dim, config.channels * area)
        for layer in (self.modulation, self.out):
            zero_(layer)

    def trunk(self, x: Tensor, c: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Patches, blocks and back. Raises ValueError where the patch does not divide the sides."""
        config = self.config
        height, width = (side // config.patch for side in x.shape[-2:])
        x = self.linear_in(patchify(x, config.patch))  # (B, h w / patch^2, dim)
        x, rotary = place(x, height, width, config.heads, config.positions)
        for block in self.blocks:
            x = self.run(partial(block, cond=c, context=text, context_mask=mask, rotary=rotary), x)
        shift, scale = two_parts(self.modulation, c)
        return unpatchify(self.out(self.norm(x) * scale + shift), config.patch, height, width)


def place(x: Tensor, height: int, width: int, heads: int, positions: Positions) -> tuple[Tensor, Rotary | None]:
    """Tell tokens (B, height width, dim) where they stand: by sincos features added to them, by a rotary table."""
    dim = x.shape[-1]
    if positions != "rotary":
        x = x + sincos_2d(height, width, dim, x.device).to(x.dtype)
    return x, None if positions == "sincos" else rotary_2d(height, width, dim // heads, device=x.device)


def two_parts(modulation: nn.Linear, c: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and 1 + scale, (B, 1, dim) each. c: (B, cond_dim)."""
    shift, scale = modulation(F.silu(c))[:, None].chunk(2, -1)
    return shift, 1 + scale


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, c, h patch, w patch) -> (B, h w, c patch^2), rows first. Raises ValueError where the sides do not fit."""
    if x.shape[-2] % patch or x.shape[-1] % patch:
        raise ValueError(f"latents of {x.shape[-2]} x {x.shape[-1]} cannot be cut in patches of {patch} x {patch}")
    return F.pixel_unshuffle(x, patch).flatten(2).mT


def unpatchify(x: Tensor, patch: int, height: int, width: int) -> Tensor:
    """(B, height width, c patch^2) -> (B, c, height patch, width patch): the inverse of `patchify`."""
    return F.pixel_shuffle(x.mT.unflatten(2, (height, width)), patch)
