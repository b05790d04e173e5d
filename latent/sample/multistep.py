"""Solvers that remember earlier estimates, in half the log-SNR lambda.

All go by the exact solution of the probability-flow ODE over a step (arXiv:2211.01095),

    x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) D,   h = lambda_s - lambda_t,   lambda = half_log_snr

where D is the mean of x_hat over the step with weight e^lambda. They differ in the estimates that D is made from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from backbone.noise import Randomness, noise_like
from latent.predict import Denoise, combine, widen
from latent.sample.step import Path, ends, rows, steps
from latent.schedule import Schedule

Node = tuple[float, Tensor]
"""(r, x_hat): an estimate, and where on the step it was made: 0 at t, 1 at s, negative before the step."""


def dpmpp_2m(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """DPM-Solver++ (2M), second order with one call per step (arXiv:2211.01095, algorithm 2).

        x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) D,   h = lambda_s - lambda_t,   lambda = half_log_snr
        D = x_hat + (x_hat - x_hat_previous) h / (2 h_previous)

    First order (D = x_hat) for the first step and wherever a step in lambda is infinite. Returns (B, ...) at times[-1].
    """
    return _multistep(denoise, schedule, x, times, order=2)


def dpmpp_3m(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """DPM-Solver++ (3M), third order with one call per step, in the form of arXiv:2211.01095, which stops at 2M.

        x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) D,   h = lambda_s - lambda_t,   lambda = half_log_snr
        D = the mean, with weight e^lambda, of the parabola in lambda through the last three estimates

    diffusers takes half of the parabola's quadratic term, which leaves second order. The first two steps are of first
    and second order, and on fine even grids their error is what remains: make them short. First order wherever a step
    in lambda is infinite. Calls the denoiser N times. Returns (B, ...) at times[-1].
    """
    return _multistep(denoise, schedule, x, times, order=3)


def dpmpp_2m_sde(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, *, generator: Randomness) -> Tensor:
    """SDE-DPM-Solver++ (2M), which renews the noise as the reverse-time SDE does (arXiv:2211.01095).

        x_s = (sigma_s / sigma_t) e^-h x_t + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) z,   z ~ N(0, I)
        D and h as in `dpmpp_2m`

    With one generator per item, item i does not depend on the batch. Calls the denoiser N times. Returns (B, ...) at
    times[-1].
    """
    return _multistep(denoise, schedule, x, times, order=2, generator=generator)


@torch.no_grad()
def _multistep(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    order: int,
    generator: Randomness | None = None,
) -> Tensor:
    x, path = widen(x), steps(times)
    numbers = exponential_steps(schedule, path) if generator is None else _noisy_steps(schedule, path)
    history = History(order - 1)
    for (t, _), (start, h, kept, of_d, of_noise) in zip(path, numbers, strict=True):
        x_hat, _ = denoise(x, t)
        x = combine(kept, x, of_d, mean_estimate(x_hat, history.seen_from(start, h), h))
        if generator is not None and of_noise > 0:
            x = torch.add(x, noise_like(x, generator), alpha=of_noise)
        history.add(start, x_hat)
    return x


class History:
    """The latest estimates of a run, at most `size`, that were made where lambda is finite."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._past: list[tuple[float, Tensor]] = []  # (lambda, x_hat), latest first

    def add(self, place: float, x_hat: Tensor) -> None:
        """Remember the estimate made at lambda = place."""
        if math.isfinite(place):
            self._past = [(place, x_hat), *self._past][: self._size]

    def seen_from(self, start: float, h: float) -> list[Node]:
        """Return the remembered estimates, latest first, with their places on the step; none if h is infinite."""
        return [((past - start) / h, x_hat) for past, x_hat in self._past] if math.isfinite(h) else []


def mean_estimate(x_hat: Tensor, nodes: list[Node], h: float) -> Tensor:
    """Return D, the mean over a step of width h of the polynomial through x_hat (made at t) and K other estimates.

    D = x_hat + sum_k c_k (x_k - x_hat),   sum_k c_k r_k^i = M_i for i = 1 .. K
    """
    d = x_hat
    for weight, (_, other) in zip(_weights(tuple(r for r, _ in nodes), h), nodes, strict=True):
        d = torch.lerp(x_hat, other, weight) if d is x_hat else torch.add(d, other - x_hat, alpha=weight)
    return d


@lru_cache(maxsize=4096)
def _weights(places: tuple[float, ...], h: float) -> tuple[float, ...]:
    """c_k of `mean_estimate`, for estimates made at the places r_k."""
    count = len(places)
    powers = np.array(places) ** np.arange(1, count + 1)[:, None]  # (K, K)
    return tuple(np.linalg.solve(powers, _moments(h, count)).tolist())


def _moments(h: float, count: int) -> list[float]:
    """M_i, the mean of r^i over 0 < r < 1 with weight e^(h r), for i = 1 .. count: by parts, from that of i - 1.

    A line alone takes M_1 = 1/2, whatever h, as both papers do; this is of the same order.
    """
    if count == 1:
        return [0.5]
    integrals = [-math.expm1(-h)]  # h e^-h times the integral of r^i e^(h r)
    for i in range(1, count + 1):
        integrals.append(1 - i / h * integrals[-1])
    return [integral / integrals[0] for integral in integrals[1:]]


def exponential_steps(schedule: Schedule, path: Path) -> Iterator[tuple[float, ...]]:
    """Numbers (lambda_t, h, k, a, 0) of every step x_s = k x_t + a D; a step to sigma_s = 0 ends on alpha_s D.

    k = sigma_s / sigma_t,   a = -alpha_s (e^-h - 1)
    """
    start, h, ratio, alpha = _ingredients(schedule, path)
    return rows(start, h, ratio, -alpha * torch.expm1(-h), torch.zeros_like(h))


def _noisy_steps(schedule: Schedule, path: Path) -> Iterator[tuple[float, ...]]:
    """Numbers (lambda_t, h, k, a, n) of every step x_s = k x_t + a D + n z."""
    start, h, ratio, alpha = _ingredients(schedule, path)
    renewed = -torch.expm1(-2 * h)
    return rows(start, h, ratio * torch.exp(-h), alpha * renewed, schedule.sigma(ends(path)[1]) * renewed.sqrt())


def _ingredients(schedule: Schedule, path: Path) -> tuple[Tensor, ...]:
    """lambda_t, h, sigma_s / sigma_t and alpha_s of all steps, (N,) each."""
    t, s = ends(path)
    start = schedule.half_log_snr(t)
    return start, schedule.half_log_snr(s) - start, schedule.sigma(s) / schedule.sigma(t), schedule.alpha(s)
