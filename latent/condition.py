"""What the networks are told, and what all of them do with it: text, the null condition, an image to start from.

Unusual: a small trainable transformer refines the frozen text tokens first, since an encoder that was trained to match
whole pictures says little about which colour stands where.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from backbone.block import Activation, Block, BlockStyle, Output, RMSNorm, recomputed
from backbone.embed import TimeEmbedding, rotary_1d, sincos_1d


class Condition(NamedTuple):
    """Text of a batch: `tokens` (B, L, D); `mask` (B, L) bool, True = a word or the end token; `pooled` (B, P)."""

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


class ImageCondition(NamedTuple):
    """The text, and an image at the size of x_t: `image` (B, image_channels, h, w); `level` (B,) in [0, 1].

    level: the time up to which noise was added to the image, 0 for a clean one (conditioning augmentation,
    arXiv:2106.15282).
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor
    image: Tensor
    level: Tensor


AnyCondition = Condition | ImageCondition
Told = TypeVar("Told", bound=AnyCondition)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What every network has. text_width D, text_length L and pooled_width P are those of the text encoder.

    text_dim: width of the refined text; cond_dim: width of time and pooled text together; patch: side of the squares
    that are folded into channels; image_channels: channels of the image in `ImageCondition`, 0 = the text alone;
    checkpointing: spend time on running blocks twice and save their activations.
    """

    channels: int = 4
    patch: int = 2
    mlp_ratio: float = 4.0
    cond_dim: int = 128
    text_width: int = 128
    text_length: int = 32
    pooled_width: int = 128
    text_dim: int = 128
    text_heads: int = 4
    refiner_layers: int = 2
    image_channels: int = 0
    activation: Activation = "relu2"
    qk_norm: bool = True
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("channels", "patch", "text_width", "text_length", "pooled_width"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.refiner_layers >= 0, "refiner_layers", self.refiner_layers, "0 (no refiner) or more; use 2")
        require(self.mlp_ratio > 0, "mlp_ratio", self.mlp_ratio, "a positive number; use 4")
        require(self.cond_dim >= 1, "cond_dim", self.cond_dim, "at least 1; use half of dim")
        require(self.image_channels >= 0, "image_channels", self.image_channels, "0 (text alone) or more")
        require_heads("text_dim", self.text_dim, self.text_heads)

    @property
    def factor(self) -> int:
        """What must divide both sides of the input."""
        return self.patch

    @property
    def style(self) -> BlockStyle:
        """What its transformer blocks are made of."""
        return BlockStyle(activation=self.activation, qk_norm=self.qk_norm)


class Refiner(nn.Module):
    """A transformer over frozen text tokens with their positions: (B, L, D) -> (B, L, text_dim).

    Positions enter twice: added, and as rotary angles, without which word order is learned several times later.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.heads = config.text_heads
        self.linear_in = nn.Linear(config.text_width, config.text_dim)
        self.blocks = nn.ModuleList(
            Block(config.text_dim, config.text_heads, style=config.style) for _ in range(config.refiner_layers)
        )
        self.norm = RMSNorm(config.text_dim)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens: (B, L, D); mask: bool, (B, 1, 1, L). Masked positions of the result carry no meaning."""
        x = self.linear_in(tokens)
        x = x + sincos_1d(x.shape[1], x.shape[2], x.device).to(x.dtype)
        rotary = rotary_1d(x.shape[1], x.shape[2] // self.heads, device=x.device)
        for block in self.blocks:
            x = block(x, mask=mask, rotary=rotary)
        return self.norm(x)


class TextConditioned(nn.Module, ABC):
    """Network(x_t, t, cond) -> raw output, shaped like x_t; what follows the embeddings is left to `trunk`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.text_length = config.text_length
        self.image_channels = config.image_channels
        self.checkpointing = config.checkpointing
        self.null_token = nn.Parameter(torch.randn(config.text_width) * 0.02)
        self.null_pooled = nn.Parameter(torch.zeros(config.pooled_width))
        self.refiner = Refiner(config)
        self.time = TimeEmbedding(config.cond_dim)
        self.pooled = nn.Linear(config.pooled_width, config.cond_dim)
        self.level = TimeEmbedding(config.cond_dim) if config.image_channels else None

    @abstractmethod
    def trunk(self, x: Tensor, c: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """x: (B, channels + image_channels, h, w); c: (B, cond_dim), time and pooled text; text: (B, L, text_dim).

        mask: bool, (B, 1, 1, L). Returns (B, channels, h, w).
        """

    def forward(self, x_t: Tensor, t: Tensor, cond: AnyCondition, dropped: Tensor | None = None) -> Tensor:
        """x_t: (B, channels, h, w), the patch divides h and w; t: (B,) in [0, 1]. Returns (B, channels, h, w).

        cond: an `ImageCondition` where the network has image channels, else a `Condition`. dropped: (B,) bool, items
        that are trained without their text, for guidance; here, so that in a distributed run the null condition's
        gradients meet as well. Raises ValueError where the patch does not divide the sides or the image does not fit,
        and TypeError for a condition of the other kind.
        """
        if dropped is not None:
            cond = self.drop(cond, dropped)
        mask = cond.mask[:, None, None]  # (B, 1, 1, L)
        text = self.refiner(cond.tokens, mask)
        c = self.time(t) + self.pooled(cond.pooled)  # (B, cond_dim)
        self._check(x_t, cond)
        if self.level is not None and isinstance(cond, ImageCondition):
            x_t, c = torch.cat([x_t, cond.image.to(x_t.dtype)], 1), c + self.level(cond.level)
        return self.trunk(x_t, c, text, mask)

    def null_condition(self, batch: int) -> Condition:
        """The learned text that says nothing: the null token once, alone in its mask.

        Beside an image, the null condition is `drop` for all items.
        """
        tokens = self.null_token.expand(batch, self.text_length, -1)
        mask = torch.arange(self.text_length, device=tokens.device) < 1
        return Condition(tokens, mask.expand(batch, -1), self.null_pooled.expand(batch, -1))

    def drop(self, cond: Told, dropped: Tensor) -> Told:
        """Replace the text of some items by the null one, for guidance; an image stays.

        dropped: (B,) bool, True = replaced.
        """
        null = self.null_condition(len(dropped))
        return cond._replace(
            tokens=torch.where(dropped[:, None, None], null.tokens.to(cond.tokens.dtype), cond.tokens),
            mask=torch.where(dropped[:, None], null.mask, cond.mask),
            pooled=torch.where(dropped[:, None], null.pooled.to(cond.pooled.dtype), cond.pooled),
        )

    def run(self, block: Callable[..., Output], *streams: Tensor) -> Output:
        """block(*streams), checkpointed where the configuration asks for it and gradients are wanted."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return recomputed(block, *streams)
        return block(*streams)

    def _check(self, x_t: Tensor, cond: AnyCondition) -> None:
        """Refuse an image that the network would ignore, that it misses, or that does not lie over x_t."""
        wanted = ImageCondition if self.image_channels else Condition
        if not isinstance(cond, wanted):
            raise TypeError(
                f"the condition is {type(cond).__name__}, expected {wanted.__name__}: the network was built with "
                f"image_channels = {self.image_channels}"
            )
        fitting = (len(x_t), self.image_channels, *x_t.shape[-2:])
        if isinstance(cond, ImageCondition) and cond.image.shape != fitting:
            raise ValueError(
                f"the condition's image is {tuple(cond.image.shape)}, expected {fitting}; resize it to the size of x_t"
            )


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    """Raise ValueError that names a field, its value and what was wanted, unless it holds."""
    if not holds:
        raise ValueError(f"{name} is {value}, expected {wanted}")


def require_heads(name: str, dim: int, heads: int) -> None:
    """Raise ValueError unless each head's width is a multiple of 4, which two axes of rotary pairs need."""
    wanted = f"a positive multiple of 4 x its heads = {4 * heads}"
    require(heads >= 1 and dim > 0 and dim % (4 * heads) == 0, name, dim, wanted)
