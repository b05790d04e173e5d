"""Solvers of the probability-flow ODE, one evaluation or a few per step, none remembered."""

from __future__ import annotations

import torch
from torch import Tensor

from latent.predict import Denoise
from latent.sample.step import advance, slope, steps, widen
from latent.schedule import Schedule


@torch.no_grad()
def euler(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """First-order probability-flow ODE solver.

        x_s = x_t + (s - t) dx_t/dt,   dx_t/dt = alpha' x_hat + sigma' eps_hat

    Calls the denoiser N times. Returns (B, ...) at times[-1].
    """
    x = widen(x)
    for t, s in steps(times):
        x = advance(x, denoise(x, t), schedule, t, s)
    return x


@torch.no_grad()
def heun(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """Second-order probability-flow ODE solver (arXiv:2206.00364, algorithm 1, in the time of the schedule).

        d_t = dx_t/dt;   x_s = x_t + (s - t) (d_t + d_s) / 2,   first order where sigma_s = 0

    Calls the denoiser 2 N - 1 times (2 N where sigma > 0 at the end). Returns (B, ...) at times[-1].
    """
    x = widen(x)
    for t, s in steps(times):
        estimate = denoise(x, t)
        x_s = advance(x, estimate, schedule, t, s)
        if schedule.sigma(s) > 0:
            d_t, d_s = slope(estimate, schedule, t), slope(denoise(x_s, s), schedule, s)
            x_s = x + (s - t) * (d_t + d_s) / 2
        x = x_s
    return x
