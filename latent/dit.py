"""Diffusion transformer over latents, conditioned on frozen text tokens (arXiv:2212.09748, with cross-attention).

Unusual: a small trainable transformer refines the frozen text tokens first, since an encoder that was trained to match
whole pictures says little about which colour stands where; the modulation of all blocks is fed by a condition narrower
than the stream, which saves a third of the parameters; positions come from the input, so one network serves all sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.block import Block, RMSNorm
from backbone.embed import TimeEmbedding, rotary_1d, rotary_2d, sincos_1d, sincos_2d


class Condition(NamedTuple):
    """Text of a batch: `tokens` (B, L, D); `mask` (B, L) bool, True = a word or the end token; `pooled` (B, P)."""

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of a DiT. text_width D, text_length L and pooled_width P are those of the text encoder.

    text_dim: width of the refined text; cond_dim: width of time and pooled text together.
    """

    kind: Literal["dit"] = "dit"
    channels: int = 4
    patch: int = 2
    dim: int = 256
    layers: int = 6
    heads: int = 4
    mlp_ratio: float = 4.0
    cond_dim: int = 128
    text_width: int = 128
    text_length: int = 32
    pooled_width: int = 128
    text_dim: int = 128
    text_heads: int = 4
    refiner_layers: int = 2

    def __post_init__(self) -> None:
        for name in ("channels", "patch", "layers", "text_width", "text_length", "pooled_width"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.refiner_layers >= 0, "refiner_layers", self.refiner_layers, "0 (no refiner) or more; use 2")
        _require(self.mlp_ratio > 0, "mlp_ratio", self.mlp_ratio, "a positive number; use 4")
        _require(self.cond_dim >= 1, "cond_dim", self.cond_dim, "at least 1; use half of dim")
        for name, heads in (("dim", self.heads), ("text_dim", self.text_heads)):
            wanted = f"a positive multiple of 4 x its heads = {4 * heads}"
            _require(heads >= 1 and getattr(self, name) > 0, name, getattr(self, name), wanted)
            _require(getattr(self, name) % (4 * heads) == 0, name, getattr(self, name), wanted)


class Refiner(nn.Module):
    """A transformer over frozen text tokens with their positions: (B, L, D) -> (B, L, text_dim).

    Positions enter twice: added, and as rotary angles, without which word order is learned several times later.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads = config.text_heads
        self.linear_in = nn.Linear(config.text_width, config.text_dim)
        self.blocks = nn.ModuleList(Block(config.text_dim, config.text_heads) for _ in range(config.refiner_layers))
        self.norm = RMSNorm(config.text_dim)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens: (B, L, D); mask: bool, (B, 1, 1, L). Masked positions of the result carry no meaning."""
        x = self.linear_in(tokens)
        x = x + sincos_1d(x.shape[1], x.shape[2], x.device).to(x.dtype)
        rotary = rotary_1d(x.shape[1], x.shape[2] // self.heads, device=x.device)
        for block in self.blocks:
            x = block(x, mask=mask, rotary=rotary)
        return self.norm(x)


class DiT(nn.Module):
    """Network(x_t, t, cond) -> raw output, shaped like x_t; zero at initialisation."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        area = config.channels * config.patch**2
        self.null_token = nn.Parameter(torch.randn(config.text_width) * 0.02)
        self.null_pooled = nn.Parameter(torch.zeros(config.pooled_width))
        self.refiner = Refiner(config)
        self.time = TimeEmbedding(config.cond_dim)
        self.pooled = nn.Linear(config.pooled_width, config.cond_dim)
        self.linear_in = nn.Linear(area, config.dim)
        self.blocks = nn.ModuleList(
            Block(
                config.dim,
                config.heads,
                cond_dim=config.cond_dim,
                cross_dim=config.text_dim,
                mlp_ratio=config.mlp_ratio,
            )
            for _ in range(config.layers)
        )
        self.norm = RMSNorm(config.dim, affine=False)
        self.modulation = nn.Linear(config.cond_dim, 2 * config.dim)
        self.out = nn.Linear(config.dim, area)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition, dropped: Tensor | None = None) -> Tensor:
        """x_t: (B, channels, h, w), the patch divides h and w; t: (B,) in [0, 1]. Returns (B, channels, h, w).

        dropped: (B,) bool, items that are trained without their condition, for guidance; here, so that in a distributed
        run the null condition's gradients meet as well. Raises ValueError where the patch does not divide the sides.
        """
        if dropped is not None:
            cond = self.drop(cond, dropped)
        height, width = (side // self.config.patch for side in x_t.shape[-2:])
        x = self.linear_in(patchify(x_t, self.config.patch))  # (B, h w / patch^2, dim)
        x = x + sincos_2d(height, width, self.config.dim, x.device).to(x.dtype)
        mask = cond.mask[:, None, None]  # (B, 1, 1, L)
        context = self.refiner(cond.tokens, mask)
        c = self.time(t) + self.pooled(cond.pooled)  # (B, cond_dim)
        rotary = rotary_2d(height, width, self.config.dim // self.config.heads, device=x.device)
        for block in self.blocks:
            x = block(x, c, context, context_mask=mask, rotary=rotary)
        shift, scale = self.modulation(F.silu(c))[:, None].chunk(2, -1)
        x = self.out(self.norm(x) * (1 + scale) + shift)
        return unpatchify(x, self.config.patch, height, width)

    def null_condition(self, batch: int) -> Condition:
        """The learned condition that says nothing: the null token once, alone in its mask."""
        tokens = self.null_token.expand(batch, self.config.text_length, -1)
        mask = torch.arange(self.config.text_length, device=tokens.device) < 1
        return Condition(tokens, mask.expand(batch, -1), self.null_pooled.expand(batch, -1))

    def drop(self, cond: Condition, dropped: Tensor) -> Condition:
        """Replace the conditions of some items by the null one, for guidance. dropped: (B,) bool, True = replaced."""
        null = self.null_condition(len(dropped))
        return Condition(
            torch.where(dropped[:, None, None], null.tokens.to(cond.tokens.dtype), cond.tokens),
            torch.where(dropped[:, None], null.mask, cond.mask),
            torch.where(dropped[:, None], null.pooled.to(cond.pooled.dtype), cond.pooled),
        )


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, c, h patch, w patch) -> (B, h w, c patch^2), rows first. Raises ValueError where the sides do not fit."""
    if x.shape[-2] % patch or x.shape[-1] % patch:
        raise ValueError(f"latents of {x.shape[-2]} x {x.shape[-1]} cannot be cut in patches of {patch} x {patch}")
    return F.pixel_unshuffle(x, patch).flatten(2).mT


def unpatchify(x: Tensor, patch: int, height: int, width: int) -> Tensor:
    """(B, height width, c patch^2) -> (B, c, height patch, width patch): the inverse of `patchify`."""
    return F.pixel_shuffle(x.mT.unflatten(2, (height, width)), patch)


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}, expected {wanted}")
