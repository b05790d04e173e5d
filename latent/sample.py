"""Samplers: one function each, from x at times[0] to x at times[-1].

All share `(denoise, schedule, x, times)`: x (B, ...) at times[0], which is sigma(times[0]) eps where the path starts in
(nearly) pure noise, and times (N + 1,), decreasing, from `latent.grid`. The denoiser gets t as () in float64 on the
CPU, so that no step waits for an accelerator, and is never called at sigma = 0. x is held in float32 or wider.
Every grid may end at 0 and, where the path and the prediction allow it, start at 1.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from backbone.noise import Randomness, noise_like
from latent.predict import Denoise, Estimate
from latent.schedule import Schedule, expand


@torch.no_grad()
def euler(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """First-order probability-flow ODE solver.

        x_s = x_t + (s - t) dx_t/dt,   dx_t/dt = alpha' x_hat + sigma' eps_hat

    Calls the denoiser N times. Returns (B, ...) at times[-1].
    """
    x = _widen(x)
    for t, s in _steps(times):
        x = _advance(x, denoise(x, t), schedule, t, s)
    return x


@torch.no_grad()
def heun(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """Second-order probability-flow ODE solver (arXiv:2206.00364, algorithm 1, in the time of the schedule).

        d_t = dx_t/dt;   x_s = x_t + (s - t) (d_t + d_s) / 2,   first order where sigma_s = 0

    Calls the denoiser 2 N - 1 times (2 N where sigma > 0 at the end). Returns (B, ...) at times[-1].
    """
    x = _widen(x)
    for t, s in _steps(times):
        estimate = denoise(x, t)
        x_s = _advance(x, estimate, schedule, t, s)
        if schedule.sigma(s) > 0:
            d_t, d_s = _slope(estimate, schedule, t), _slope(denoise(x_s, s), schedule, s)
            x_s = x + (s - t) * (d_t + d_s) / 2
        x = x_s
    return x


@torch.no_grad()
def ddim(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 0.0,
    generator: Randomness | None = None,
) -> Tensor:
    """DDIM (arXiv:2010.02502, eqs. 12 and 16): keep the estimates, exchange a part of the noise.

        x_s = alpha_s x_hat + sqrt(sigma_s^2 - n^2) eps_hat + n z,   z ~ N(0, I)
        n = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2)

    eta: 0 is deterministic, 1 is `ancestral`. Calls the denoiser N times. Returns (B, ...) at times[-1]. Raises
    ValueError for eta outside [0, 1], or above 0 without a generator.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"DDIM eta is {eta}, expected 0 <= eta <= 1; 0 is deterministic and 1 is ancestral sampling")
    if eta > 0 and generator is None:
        raise ValueError(f"DDIM with eta = {eta} adds noise, expected a generator; pass generator= or eta=0")
    x = _widen(x)
    for t, s in _steps(times):
        fresh = eta * schedule.sigma(s) * _exchanged(schedule, t, s).sqrt()
        kept = (schedule.sigma(s) ** 2 - fresh**2).clamp(min=0).sqrt()
        x_hat, eps_hat = denoise(x, t)
        x_s = expand(schedule.alpha(s), x) * x_hat + expand(kept, x) * eps_hat
        if generator is not None and fresh > 0:
            x_s = x_s + expand(fresh, x) * noise_like(x, generator)
        x = x_s
    return x


def ancestral(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, *, generator: Randomness) -> Tensor:
    """DDPM sampling with the smaller of the two fixed variances (arXiv:2006.11239, eqs. 6 and 7, algorithm 2).

    It is DDIM with eta = 1, and draws x_s from q(x_s | x_t, x_hat). With one generator per item, item i does not depend
    on the batch. Calls the denoiser N times. Returns (B, ...) at times[-1].
    """
    return ddim(denoise, schedule, x, times, eta=1.0, generator=generator)


@torch.no_grad()
def dpmpp_2m(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """DPM-Solver++ (2M), second order with one call per step (arXiv:2211.01095, algorithm 2).

        x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) D,   h = lambda_s - lambda_t,   lambda = half_log_snr
        D = x_hat + (x_hat - x_hat_previous) h / (2 h_previous)

    First order (D = x_hat) for the first step and wherever a step in lambda is infinite. Returns (B, ...) at times[-1].
    """
    x = _widen(x)
    previous: tuple[Tensor, Tensor] | None = None  # (x_hat, h) of the step before
    for t, s in _steps(times):
        x_hat, _ = denoise(x, t)
        h = schedule.half_log_snr(s) - schedule.half_log_snr(t)
        d = x_hat
        if previous is not None and h.isfinite() and previous[1].isfinite():
            d = x_hat + (x_hat - previous[0]) * expand(h / (2 * previous[1]), x)
        x = expand(schedule.sigma(s) / schedule.sigma(t), x) * x - expand(schedule.alpha(s) * torch.expm1(-h), x) * d
        previous = x_hat, h
    return x


def _slope(estimate: Estimate, schedule: Schedule, t: Tensor) -> Tensor:
    """dx_t/dt of the probability-flow ODE."""
    d_alpha, d_sigma = schedule.rates(t)
    return expand(d_alpha, estimate.x) * estimate.x + expand(d_sigma, estimate.x) * estimate.eps


def _advance(x: Tensor, estimate: Estimate, schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Euler's step; where sigma_s = 0 it is taken along sigma / alpha, which ends on the estimate.

    On straight paths these are the same. On VP sigma' is infinite at t = 0, so that a step in t would leave half of the
    noise.
    """
    if schedule.sigma(s) == 0:
        return expand(schedule.alpha(s), x) * estimate.x
    return x + (s - t) * _slope(estimate, schedule, t)


def _exchanged(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Share of the noise variance at s that is not explained by x_t: 1 - (alpha_t sigma_s / (alpha_s sigma_t))^2."""
    kept = schedule.alpha(t) * schedule.sigma(s) / (schedule.alpha(s) * schedule.sigma(t))
    return (1 - kept**2).clamp(min=0)


def _widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _steps(times: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Check a time grid and return its steps (t, s) as float64 on the CPU."""
    remedy = "make one with latent.grid, such as uniform(steps)"
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(
            f"a time grid of shape {tuple(times.shape)}, expected (steps + 1,) with at least 2 times; {remedy}"
        )
    if torch.finfo(times.dtype).bits < 32:
        raise ValueError(f"a time grid in {times.dtype} is too coarse, expected float32 or float64; {remedy}")
    grid = times.detach().to("cpu", torch.float64)
    if not ((grid.diff() < 0).all() and grid[0] <= 1 and grid[-1] >= 0):
        raise ValueError(f"time grid {grid.tolist()}, expected strictly decreasing values within [0, 1]; {remedy}")
    return list(pairwise(grid))
