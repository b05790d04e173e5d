"""Diagonal Gaussian posterior, and the moments of its samples over a data set.

Float32 whatever the network runs in: the exponential of a half-precision log-variance overflows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backbone.noise import Randomness, noise_like

LOG_VAR_RANGE = (-20.0, 10.0)
"""Bounds of the posterior's log-variance: standard deviations from 5e-5 to 148."""


@dataclass(frozen=True)
class Gaussian:
    """Diagonal posterior q(z | x): mean and log_var, both (B, c, h, w) float32."""

    mean: Tensor
    log_var: Tensor

    @staticmethod
    def of(features: Tensor) -> Gaussian:
        """Mean and clamped log-variance from an encoder's output: (B, 2 c, h, w)."""
        mean, log_var = features.float().chunk(2, dim=1)
        return Gaussian(mean, log_var.clamp(*LOG_VAR_RANGE))

    def sample(self, generator: Randomness) -> Tensor:
        """z = mean + exp(log_var / 2) eps, differentiable in both (arXiv:1312.6114, sec. 2.4)."""
        return self.mean + torch.exp(self.log_var / 2) * noise_like(self.mean, generator)

    def kl(self) -> Tensor:
        """KL(q || N(0, 1)) in nats, summed over each item: (B,) (arXiv:1312.6114, app. B)."""
        return self._kl().flatten(1).sum(1)

    def kl_per_channel(self) -> Tensor:
        """The same in nats per latent value, a mean over items and positions: (c,)."""
        return self._kl().mean((0, 2, 3))

    def entropy(self) -> Tensor:
        """-E log q(z | x) in nats, summed over each item: (B,)."""
        return (self.log_var + 1 + math.log(2 * math.pi)).flatten(1).sum(1) / 2

    def _kl(self) -> Tensor:
        """Of each latent value, (B, c, h, w)."""
        return (self.mean.square() + self.log_var.exp() - 1 - self.log_var) / 2


@dataclass(frozen=True)
class DrawnGaussian(Gaussian):
    """A posterior whose KL is to a learned prior p, by the one sample that was drawn: unbiased, and below 0 by chance.

        KL(q || p) = E log q(z | x) - E log p(z),   the first of them in closed form

    log_prior: log p(z) in nats of a z ~ q(z | x), (B,).
    """

    log_prior: Tensor

    def kl(self) -> Tensor:
        """KL(q || p) in nats, summed over each item: (B,)."""
        return -self.entropy() - self.log_prior

    def kl_per_channel(self) -> Tensor:
        """The same in nats per latent value, a mean over items: (1,), since channels have no density of their own."""
        return self.kl().mean(0, keepdim=True) / self.mean[0].numel()


@dataclass
class LatentMoments:
    """Mean and standard deviation per channel of posterior samples over a whole data set, without drawing any.

    E z = E mean;   Var z = E (mean^2 + exp(log_var)) - (E z)^2, in float64.
    """

    count: float = 0
    first: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    second: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def update(self, posterior: Gaussian) -> None:
        """Add a batch: (B, c, h, w)."""
        mean, log_var = posterior.mean.detach().double().cpu(), posterior.log_var.detach().double().cpu()
        self.count += mean.numel() // mean.shape[1]
        self.first = self.first + mean.sum((0, 2, 3))  # (c,)
        self.second = self.second + (mean.square() + log_var.exp()).sum((0, 2, 3))

    @classmethod
    def mixed(cls, parts: Sequence[tuple[LatentMoments, float]]) -> LatentMoments:
        """The moments of a mixture of sets, each with its share; a single one stays what it is."""
        if len(parts) == 1:
            return parts[0][0]
        first = sum(share / one.count * one.first for one, share in parts)
        second = sum(share / one.count * one.second for one, share in parts)
        return cls(sum(share for _, share in parts), torch.as_tensor(first), torch.as_tensor(second))

    def result(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, (c,) float64 each."""
        mean = self.first / self.count
        return mean, (self.second / self.count - mean.square()).clamp_min(0).sqrt()
