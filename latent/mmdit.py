"""Multimodal diffusion transformer: text and image as two streams that meet in one attention (arXiv:2403.03206).

Unusual: the last block only reads the text, so it has neither queries nor a feed-forward network for it, and no
parameter is idle; the text is refined by the streams themselves, so that the refiner has no blocks unless asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.attention import attention
from backbone.block import Attention, FeedForward, RMSNorm, join_heads, six_parts, split_heads
from backbone.conv import zero_
from backbone.embed import Rotary, rotary_1d, rotate
from latent.condition import NetworkConfig, TextConditioned, require, require_heads
from latent.dit import Positions, patchify, place, two_parts, unpatchify
from latent.sizes import TRANSFORMER_SIZES, Default, SizeName, settle


@dataclass(frozen=True, kw_only=True)
class MMDiTConfig(NetworkConfig):
    """Sizes of an MM-DiT: dim, layers and heads, or a `size` that stands for them as in `DiTConfig`.

    Twice the parameters of a DiT without cross-attention. The paper has dim = 64 layers and heads = layers.
    """

    kind: Literal["mmdit"] = "mmdit"
    size: SizeName | None = None
    dim: int = Default(256)
    layers: int = Default(6)
    heads: int = Default(4)
    positions: Positions = "both"
    refiner_layers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, self.size, TRANSFORMER_SIZES)
        require(self.layers >= 1, "layers", self.layers, "at least 1")
        require_heads("dim", self.dim, self.heads)


class Stream(nn.Module):
    """What one modality has for itself in a block: modulation, projections and feed-forward network."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, affine=False)
        self.attention = Attention(config.dim, config.heads, qk_norm=config.qk_norm)
        self.feed_norm = RMSNorm(config.dim, affine=False)
        self.feed = FeedForward(config.dim, round(config.dim * config.mlp_ratio), config.activation)
        self.modulation = nn.Linear(config.cond_dim, 6 * config.dim)
        zero_(self.modulation)

    def enter(self, x: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, heads, L, d) each. x: (B, L, dim); parts: those of `six_parts`."""
        shift, scale = parts[:2]
        h = self.attention_norm(x) * scale + shift
        return self.attention.queries(h), *self.attention.keys_values(h)

    def leave(self, x: Tensor, heard: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        """Add what was heard, (B, heads, L, d), and the feed-forward network to the stream."""
        _, _, gate_1, shift, scale, gate_2 = parts
        x = x + gate_1 * self.attention.out(join_heads(heard))
        return x + gate_2 * self.feed(self.feed_norm(x) * scale + shift)


class Source(nn.Module):
    """A stream that is heard and hears nothing: keys and values alone."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = RMSNorm(config.dim, affine=False)
        self.key_value = nn.Linear(config.dim, 2 * config.dim, bias=False)
        self.key_norm = RMSNorm(config.dim // config.heads) if config.qk_norm else nn.Identity()
        self.modulation = nn.Linear(config.cond_dim, 2 * config.dim)
        zero_(self.modulation)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, dim), (B, cond_dim) -> twice (B, heads, L, d)."""
        shift, scale = two_parts(self.modulation, c)
        k, v = (split_heads(h, self.heads) for h in self.key_value(self.norm(x) * scale + shift).chunk(2, -1))
        return self.key_norm(k), v


class JointBlock(nn.Module):
    """Text x and image y with weights of their own and one attention over both (arXiv:2403.03206, fig. 2b).

        [x, y] = [x, y] + g_1 attend([m_1(x), m_1(y)]);   x = x + g_2 feed(m_2(x));   y = y + g_2 feed(m_2(y))

    m and the gates g are those of adaLN-Zero, one set per stream, so that a new block is the identity.
    """

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.text = Stream(config)
        self.image = Stream(config)

    def forward(
        self, text: Tensor, image: Tensor, c: Tensor, mask: Tensor, rotary: Rotary | None
    ) -> tuple[Tensor, Tensor]:
        """text: (B, L, dim); image: (B, N, dim); c: (B, cond_dim); mask: (B, 1, 1, L + N); rotary: (L + N, d/2).

        Returns both streams.
        """
        of_text, of_image = six_parts(self.text.modulation, c), six_parts(self.image.modulation, c)
        q, k, v = map(_join, self.text.enter(text, of_text), self.image.enter(image, of_image))
        heard = _attend(q, k, v, mask, rotary)
        heard_text, heard_image = heard.split([text.shape[1], image.shape[1]], 2)
        return self.text.leave(text, heard_text, of_text), self.image.leave(image, heard_image, of_image)


class LastBlock(nn.Module):
    """A joint block after which nobody needs the text: only the image asks and moves on."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.text = Source(config)
        self.image = Stream(config)

    def forward(self, text: Tensor, image: Tensor, c: Tensor, mask: Tensor, rotary: Rotary | None) -> Tensor:
        """Shapes are those of `JointBlock`. Returns the image's stream."""
        of_image = six_parts(self.image.modulation, c)
        q, *keys_values = self.image.enter(image, of_image)
        k, v = map(_join, self.text(text, c), keys_values)
        return self.image.leave(image, _attend(q, k, v, mask, rotary), of_image)


class MMDiT(TextConditioned):
    """Network(x_t, t, cond) -> raw output, shaped like x_t; zero at initialisation."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__(config)
        self.config = config
        area = config.patch**2
        self.text_in = nn.Linear(config.text_dim, config.dim)
        self.linear_in = nn.Linear((config.channels + config.image_channels) * area, config.dim)
        self.blocks = nn.ModuleList(JointBlock(config) for _ in range(config.layers - 1))
        self.last = LastBlock(config)
        self.norm = RMSNorm(config.dim, affine=False)
        self.modulation = nn.Linear(config.cond_dim, 2 * config.dim)
        self.out = nn.Linear(config.dim, config.channels * area)
        for layer in (self.modulation, self.out):
            zero_(layer)

    def trunk(self, x: Tensor, c: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Patches, joint blocks and back. Raises ValueError where the patch does not divide the sides."""
        config = self.config
        height, width = (side // config.patch for side in x.shape[-2:])
        x = self.linear_in(patchify(x, config.patch))  # (B, h w / patch^2, dim)
        x, rotary = place(x, height, width, config.heads, config.positions)
        text = self.text_in(text)  # (B, L, dim); the refiner has told each word where it stands
        if rotary is not None:
            words = rotary_1d(text.shape[1], config.dim // config.heads, device=x.device)
            rotary = Rotary(*map(torch.cat, zip(words, rotary, strict=True)))  # (L + N, d / 2)
        mask = F.pad(mask, (0, x.shape[1]), value=True)  # (B, 1, 1, L + N)
        for block in self.blocks:
            text, x = self.run(partial(block, c=c, mask=mask, rotary=rotary), text, x)
        x = self.run(partial(self.last, c=c, mask=mask, rotary=rotary), text, x)
        shift, scale = two_parts(self.modulation, c)
        return unpatchify(self.out(self.norm(x) * scale + shift), config.patch, height, width)


def _join(text: Tensor, image: Tensor) -> Tensor:
    return torch.cat([text, image], 2)  # (B, heads, L + N, d)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, rotary: Rotary | None) -> Tensor:
    """Attention over both spans, the text's first; queries may be the image's alone, at the end."""
    if rotary is not None:
        q = rotate(q, Rotary(*(table[-q.shape[2] :] for table in rotary)))
        k = rotate(k, rotary)
    return attention(q, k, v, mask)
