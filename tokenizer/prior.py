"""Priors over the latents of a VAE: the normal law, or one that learns with the autoencoder.

A better prior makes the same latents cheaper, since the KL term is E log q(z | x) - E log p(z): RealNVP
(arXiv:1605.08803), and an autoregressive flow as in arXiv:1611.02731, sec. 3.2, in the direction of arXiv:1705.07057,
where a density takes one pass. Training needs densities alone, so that it is sampling that may cost more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, assert_never

import torch
from torch import Tensor, nn

from backbone.noise import Randomness, noise_like
from tokenizer.flow import Autoregression, ChannelAffine, Coupling, Step


@dataclass(frozen=True, kw_only=True)
class NormalConfig:
    """The normal law of independent values, which has nothing to learn."""

    kind: Literal["normal"] = "normal"


@dataclass(frozen=True, kw_only=True)
class LearnedConfig:
    """What all learned priors share: the size of their networks, and whether the autoencoder feels them.

    detached: the prior is fitted to the latents as they are, and the autoencoder keeps the KL to the normal law.
    """

    layers: int = 8
    channels: int = 32
    blocks: int = 1  # residual blocks in each layer
    detached: bool = False

    def __post_init__(self) -> None:
        for name, least, usual in (("layers", 1, 8), ("channels", 1, 32), ("blocks", 0, 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"prior.{name} is {value}, expected at least {least}. Try {usual}.")

    def check(self, latent_channels: int) -> None:
        """Raise ValueError where the networks do not fit latents of so many channels."""


@dataclass(frozen=True, kw_only=True)
class RealNVPConfig(LearnedConfig):
    """Affine couplings: densities and samples both take one pass."""

    kind: Literal["realnvp"] = "realnvp"


@dataclass(frozen=True, kw_only=True)
class AutoregressiveFlowConfig(LearnedConfig):
    """Masked autoregression over all values of the latents: a density takes one pass, a sample up to c h w a layer."""

    kind: Literal["autoregressive"] = "autoregressive"
    layers: int = 4

    def check(self, latent_channels: int) -> None:
        """Ask for a hidden feature for each channel of the latents, without which some would not see those before."""
        if self.channels < latent_channels:
            raise ValueError(
                f"prior.channels is {self.channels}, expected at least the {latent_channels} channels of the latents. "
                f"Try {8 * latent_channels}."
            )


PriorConfig = NormalConfig | RealNVPConfig | AutoregressiveFlowConfig


class Prior(nn.Module):
    """The law of z whose image under the steps is normal; without any step, the normal law itself.

        log p(z) = log N(u; 0, 1) + log |det du / dz|,   u = f(z)

    In float32 or wider, also under autocast: what a half-precision scale rounds away would be missing from the bound.
    """

    like: Tensor  # where samples are drawn, and in which dtype

    def __init__(self, steps: Sequence[Step] = ()) -> None:
        super().__init__()
        self.steps: Sequence[Step] = nn.ModuleList(steps)  # type: ignore[assignment]
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z: (B, c, h, w). Returns u (B, c, h, w) and log |det du / dz| in nats (B,)."""
        with torch.autocast(z.device.type, enabled=False):
            u = z.to(torch.promote_types(z.dtype, torch.float32))
            log_det = u.new_zeros(len(u))
            for step in self.steps:
                u, change = step(u)
                log_det = log_det + change
            return u, log_det

    def inverse(self, u: Tensor) -> Tensor:
        """Return the z (B, c, h, w) that `forward` takes to u."""
        with torch.autocast(u.device.type, enabled=False):
            z = u.to(torch.promote_types(u.dtype, torch.float32))
            for step in reversed(self.steps):
                z = step.inverse(z)
            return z

    def log_prob(self, z: Tensor) -> Tensor:
        """z: (B, c, h, w). Returns log p(z) in nats, summed over each item: (B,)."""
        u, log_det = self(z)
        return log_det - (u.square() + math.log(2 * math.pi)).flatten(1).sum(1) / 2

    @torch.no_grad()
    def sample(self, shape: tuple[int, int, int, int], generator: Randomness) -> Tensor:
        """Draw latents of a shape (B, c, h, w), on the device of the prior."""
        return self.inverse(noise_like(self.like.expand(shape), generator))


def prior_of(config: PriorConfig, latent_channels: int) -> Prior:
    """Return a new prior over latents (B, latent_channels, h, w) of any size, which starts as the normal law."""
    match config:
        case NormalConfig():
            return Prior()
        case RealNVPConfig():
            steps: list[Step] = [_coupling(config, latent_channels, i) for i in range(config.layers)]
        case AutoregressiveFlowConfig():
            sizes = (latent_channels, config.channels, config.blocks)
            steps = [Autoregression(*sizes, turned=i % 2 == 1) for i in range(config.layers)]
        case _:
            assert_never(config)
    return Prior([*chain.from_iterable((ChannelAffine(latent_channels), step) for step in steps)])


def _coupling(config: RealNVPConfig, latent_channels: int, layer: int) -> Coupling:
    """Checkerboards and halves of the channels in turn, a pair of each; one channel has no halves."""
    checkered = latent_channels == 1 or layer % 4 < 2
    sizes = (latent_channels, config.channels, config.blocks)
    return Coupling(*sizes, checkered=checkered, odd=layer % 2 == 1)
