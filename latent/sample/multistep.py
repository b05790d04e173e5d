"""Solvers that remember earlier estimates, in half the log-SNR."""

from __future__ import annotations

import torch
from torch import Tensor

from latent.predict import Denoise
from latent.sample.step import steps, widen
from latent.schedule import Schedule, expand


@torch.no_grad()
def dpmpp_2m(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """DPM-Solver++ (2M), second order with one call per step (arXiv:2211.01095, algorithm 2).

        x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) D,   h = lambda_s - lambda_t,   lambda = half_log_snr
        D = x_hat + (x_hat - x_hat_previous) h / (2 h_previous)

    First order (D = x_hat) for the first step and wherever a step in lambda is infinite. Returns (B, ...) at times[-1].
    """
    x = widen(x)
    previous: tuple[Tensor, Tensor] | None = None  # (x_hat, h) of the step before
    for t, s in steps(times):
        x_hat, _ = denoise(x, t)
        h = schedule.half_log_snr(s) - schedule.half_log_snr(t)
        d = x_hat
        if previous is not None and h.isfinite() and previous[1].isfinite():
            d = x_hat + (x_hat - previous[0]) * expand(h / (2 * previous[1]), x)
        x = expand(schedule.sigma(s) / schedule.sigma(t), x) * x - expand(schedule.alpha(s) * torch.expm1(-h), x) * d
        previous = x_hat, h
    return x
