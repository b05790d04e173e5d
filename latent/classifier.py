"""A classifier of noisy latents for classifier guidance: which caption does x_t belong to, after CLIP.

Unusual: the classes are captions. What it reads is x_t at unit variance and the noise-to-signal ratio, as prediction
"edm" does, so paths whose variance explodes need nothing of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone import clip
from backbone.block import Block, RMSNorm
from backbone.embed import TimeEmbedding
from latent.condition import require, require_heads
from latent.dit import patchify, place
from latent.predict import ask, corrupt
from latent.schedule import Schedule

Match = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(x_t (B, ...), t () or (B,), pooled (B, P)) -> unit vectors of latents and of captions, (B, E) each, and s ()."""

_SAME = 1e-3
"""Embeddings this close, relative to their length, are of one caption: rounding to half precision moves one by 5e-4."""


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """Sizes. channels are those of the latents, pooled_width P is that of the text encoder's pooled embedding.

    embed_dim: width E in which latents and captions meet; bank: captions that stand for all others.
    """

    channels: int = 4
    patch: int = 2
    dim: int = 128
    layers: int = 3
    heads: int = 4
    cond_dim: int = 128
    pooled_width: int = 128
    embed_dim: int = 128
    bank: int = 1024

    def __post_init__(self) -> None:
        for name in ("channels", "patch", "layers", "cond_dim", "pooled_width", "embed_dim"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.bank >= 2, "bank", self.bank, "at least 2 captions to tell apart; use 1024")
        require_heads("dim", self.dim, self.heads)


class NoisyMatch(nn.Module):
    """How well captions fit noisy latents (arXiv:2103.00020, with the time of arXiv:2105.05233).

        p(caption | x_t) = exp(s <image, text>) / (exp(s <image, text>) + sum over the other captions of the bank)

    s is learned. The bank holds K captions of the training data, (K, P), a buffer. Where the data has few captions,
    such as names of classes, the bank lists them all and this is a classifier over them, with equal prior weight each.
    """

    bank: Tensor

    def __init__(self, config: MatchConfig, schedule: Schedule) -> None:
        super().__init__()
        self.config, self.schedule = config, schedule
        self.linear_in = nn.Linear(config.channels * config.patch**2, config.dim)
        self.time = TimeEmbedding(config.cond_dim)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, cond_dim=config.cond_dim) for _ in range(config.layers)
        )
        self.norm = RMSNorm(config.dim)
        self.out = nn.Linear(config.dim, config.embed_dim)
        self.reader = nn.Sequential(
            RMSNorm(config.pooled_width, affine=False),
            nn.Linear(config.pooled_width, config.dim),
            nn.GELU(),
            nn.Linear(config.dim, config.embed_dim),
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # arXiv:2103.00020, section 2.5
        self.register_buffer("bank", torch.zeros(config.bank, config.pooled_width))

    def image(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t: (B, channels, h, w), the patch divides h and w; t: () or (B,). Returns unit vectors (B, E), float32 up.

        Raises ValueError where the patch does not divide the sides.
        """
        features = ask(lambda x, ratio, _: self._features(x, ratio), "edm", self.schedule, x_t, t, ())
        return _unit(features)

    def text(self, pooled: Tensor) -> Tensor:
        """Unit vectors of captions: (..., P) -> (..., E), float32 or wider."""
        return _unit(self.reader(pooled.to(self.bank.dtype)))

    def scale(self) -> Tensor:
        """Return s, (), which training keeps at 100 or below."""
        return self.log_scale.exp()

    def forward(self, x_t: Tensor, t: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `image`, `text` and `scale`: one call, so that in a distributed run all gradients meet."""
        if self.training:
            clip.cap(self.log_scale)
        return self.image(x_t, t), self.text(pooled), self.scale()

    def log_prob(self, x_t: Tensor, t: Tensor, pooled: Tensor) -> Tensor:
        """log p(caption | x_t), differentiable in x_t: own logit - logsumexp over {own} and the bank without it.

        x_t: (B, channels, h, w); t: () or (B,); pooled: (B, P). Sums to 1 over the bank; a caption that the bank does
        not hold is weighed against the whole of it. Returns (B,).
        """
        image, own, scale = self(x_t, t, pooled)
        others = scale * image @ self.text(self.bank).mT  # (B, K)
        others = others.masked_fill(_same(pooled.to(self.bank.dtype), self.bank), -math.inf)
        logits = torch.cat([scale * (image * own).sum(1, keepdim=True), others], 1)  # (B, 1 + K)
        return logits.log_softmax(1)[:, 0]

    def _features(self, x: Tensor, ratio: Tensor) -> Tensor:
        """x: (B, channels, h, w) at unit variance; ratio: sigma / (alpha + sigma), (B,). Returns (B, E)."""
        height, width = (side // self.config.patch for side in x.shape[-2:])
        h = self.linear_in(patchify(x, self.config.patch))  # (B, h w / patch^2, dim)
        h, rotary = place(h, height, width, self.config.heads, "both")
        c = self.time(ratio)
        for block in self.blocks:
            h = block(h, c, rotary=rotary)
        return self.out(self.norm(h).mean(1))


def contrastive_loss(match: Match, schedule: Schedule, x: Tensor, pooled: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Symmetric cross-entropy over the pairs of a batch (`backbone.clip`), each latent noised to a time of its own.

    Its minimum is <image, text> s = log p(caption | x_t) / p(caption) + constant. Items with equal embeddings are
    positives of each other, never negatives. x, eps: (B, ...); pooled: (B, P); t: () or (B,). Returns ().
    """
    features = match(corrupt(schedule, x, eps, t), t, pooled)
    return clip.contrastive_loss(*features, clip.caption_groups(pooled))


def top_one(match: Match, schedule: Schedule, x: Tensor, pooled: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Share () of a batch's latents whose own caption fits best among those of the batch. Arguments as for the loss."""
    image, text, _ = match(corrupt(schedule, x, eps, t), t, pooled)
    groups = clip.caption_groups(pooled)
    return (groups[(image @ text.T).argmax(1)] == groups).double().mean()


def _unit(x: Tensor) -> Tensor:
    """x / |x| along the last axis, float32 or wider."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def _same(pooled: Tensor, bank: Tensor) -> Tensor:
    """Which captions of the bank are one's own: (B, P), (K, P) -> (B, K) bool."""
    apart = torch.cdist(pooled, bank, compute_mode="donot_use_mm_for_euclid_dist")
    return apart <= _SAME * bank.norm(dim=1)
