"""Guidance by the gradient of a classifier that knows noisy samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latent.guide.shift import shifted
from latent.predict import Denoise, Estimate
from latent.schedule import Schedule, expand

LogProb = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, ...), t ()) -> log p(y | x_t) (B,), differentiable in x_t."""


def classifier(denoise: Denoise, schedule: Schedule, log_prob: LogProb, scale: float) -> Denoise:
    """Add the gradient of a classifier to the score (arXiv:2105.05233, algorithm 2).

        eps <- eps - scale sigma g,   x <- x + scale (sigma^2 / alpha) g,   g = grad log p(y | x_t) by x_t

    By Bayes' rule scale 1 is the denoiser of p(x | y), and 0 that of p(x) without a call of the classifier. An error of
    g reaches x times sigma^2 / alpha. The guided denoiser raises ValueError at alpha = 0, where x_t says nothing of y.
    """
    if scale == 0:
        return denoise

    def guided(x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        if (alpha == 0).any():
            raise ValueError(
                f"classifier guidance at t = {t.max().item()} where {schedule} has alpha = 0, expected alpha > 0; "
                "start sampling below it, such as at 0.999, or guide without a classifier"
            )
        change = expand(scale * sigma**2 / alpha, x_t) * _gradient(log_prob, x_t, t)
        return shifted(denoise(x_t, t), schedule, change, t)

    return guided


@torch.enable_grad()  # samplers run without
def _gradient(log_prob: LogProb, x_t: Tensor, t: Tensor) -> Tensor:
    leaf = x_t.detach().requires_grad_()
    return torch.autograd.grad(log_prob(leaf, t).sum(), leaf)[0]
