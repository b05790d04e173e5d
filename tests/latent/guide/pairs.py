"""Pairs of denoisers that are known in closed form, and a small network whose output depends on its condition."""

from typing import NamedTuple

import torch
from torch import Tensor

from latent.predict import Estimate
from tests.latent.oracle import randn


class Words(NamedTuple):
    tokens: Tensor  # (B, 2)
    mask: Tensor  # (B, 2) bool


COND = Words(randn(3, 2, seed=5), torch.ones(3, 2, dtype=torch.bool))
NULL = Words(torch.zeros(3, 2, dtype=torch.float64), torch.tensor([[True, False]] * 3))


def network(x_t, t, cond):
    assert isinstance(cond, Words)
    assert cond.mask.dtype == torch.bool
    assert len(x_t) == len(t) == len(cond.tokens) == len(cond.mask)
    words = (cond.tokens * cond.mask).sum(1) + cond.mask.sum(1)
    return torch.tanh(x_t * t[:, None]) + words[:, None]


def gaussian(schedule, mean, std):
    """E[x | x_t] and E[eps | x_t] for data N(mean, std^2) in every coordinate; mean: a number or (...)."""

    def denoise(x_t, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        away = (x_t - alpha * mean) / ((alpha * std) ** 2 + sigma**2)
        return Estimate(x=mean + alpha * std**2 * away, eps=sigma * away)

    return denoise


def mixture(schedule, mean, std):
    """The same for N(mean, std^2) and N(-mean, std^2), mixed evenly in every coordinate: it is not linear in x_t."""

    def denoise(x_t, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        variance = (alpha * std) ** 2 + sigma**2
        centre = mean * torch.tanh(alpha * mean * x_t / variance)  # E[mean | x_t]
        away = (x_t - alpha * centre) / variance
        return Estimate(x=centre + alpha * std**2 * away, eps=sigma * away)

    return denoise
