"""Solvers of the probability-flow ODE, one evaluation or a few per step, none remembered."""

from __future__ import annotations

import torch
from torch import Tensor

from latent.predict import Denoise, combine, widen
from latent.sample.arc import carry
from latent.sample.step import advance, ends, euler_rows, rows, slope, steps
from latent.schedule import Schedule, expand


@torch.no_grad()
def euler(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """First-order probability-flow ODE solver.

        x_s = x_t + (s - t) dx_t/dt,   dx_t/dt = alpha' x_hat + sigma' eps_hat

    Calls the denoiser N times. Returns (B, ...) at times[-1].
    """
    x, path = widen(x), steps(times)
    for (t, _), (kept, of_x, of_eps) in zip(path, euler_rows(schedule, path), strict=True):
        x_hat, eps_hat = denoise(x, t)
        x = torch.add(combine(kept, x, of_x, x_hat), eps_hat, alpha=of_eps)
    return x


@torch.no_grad()
def heun(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """Second-order probability-flow ODE solver (arXiv:2206.00364, algorithm 1, in the time of the schedule).

        d_t = dx_t/dt;   x_s = x_t + (s - t) (d_t + d_s) / 2,   first order where sigma_s = 0

    Calls the denoiser 2 N - 1 times (2 N where sigma > 0 at the end). Returns (B, ...) at times[-1].
    """
    x, path = widen(x), steps(times)
    begins, stops = ends(path)
    halves = rows(*((stops - begins) / 2 * rate for rate in schedule.rates(stops)))
    for (t, s), (kept, of_x, of_eps), half in zip(path, euler_rows(schedule, path), halves, strict=True):
        x_hat, eps_hat = denoise(x, t)
        x_s = torch.add(combine(kept, x, of_x, x_hat), eps_hat, alpha=of_eps)
        if kept > 0:
            x_hat, eps_hat = denoise(x_s, s)
            x_s = combine(half[0], x_hat, half[1], eps_hat) + (x + x_s) / 2
        x = x_s
    return x


@torch.no_grad()
def midpoint(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """Second-order probability-flow ODE solver that looks ahead by half a step.

        m = (t + s) / 2;   x_m = x_t + (m - t) d_t;   x_s = x_t + (s - t) d_m,   alpha_s x_hat(x_m) where sigma_s = 0

    Calls the denoiser 2 N times. Returns (B, ...) at times[-1].
    """
    x = widen(x)
    for t, s in steps(times):
        x = _midpoint_step(denoise, schedule, x, t, s)
    return x


@torch.no_grad()
def rk4(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """Classic fourth-order Runge-Kutta solver of the probability-flow ODE.

        x_s = x_t + (s - t) (k_1 + 2 k_2 + 2 k_3 + k_4) / 6,   the step of `midpoint` where sigma_s = 0
        k_1 = d(x_t, t);               k_2 = d(x_t + (m - t) k_1, m)
        k_3 = d(x_t + (m - t) k_2, m); k_4 = d(x_t + (s - t) k_3, s);   m = (t + s) / 2

    Calls the denoiser 4 N - 2 times (4 N where sigma > 0 at the end). Returns (B, ...) at times[-1].
    """

    def d(x_t: Tensor, t: Tensor) -> Tensor:
        return slope(denoise(x_t, t), schedule, t)

    x = widen(x)
    for t, s in steps(times):
        if schedule.sigma(s) == 0:
            x = _midpoint_step(denoise, schedule, x, t, s)
            continue
        half = (s - t) / 2
        k_1 = d(x, t)
        k_2 = d(x + half * k_1, t + half)
        k_3 = d(x + half * k_2, t + half)
        k_4 = d(x + (s - t) * k_3, s)
        x = x + (s - t) * (k_1 + 2 * k_2 + 2 * k_3 + k_4) / 6
    return x


@torch.no_grad()
def dormand_prince(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    *,
    start: float = 1.0,
    stop: float = 1e-3,
    tolerance: float = 1e-5,
) -> Tensor:
    """Adaptive fifth-order solver of the probability-flow ODE, which finds its own steps (dopri5 of torchdiffeq).

        z = x_t / sqrt(alpha^2 + sigma^2),   tan(phi) = sigma / alpha;   dz/dphi = cos(phi) eps_hat - sin(phi) x_hat

    x: (B, ...) at `start`. tolerance: relative and absolute, for the root mean square of the worst item, so that the
    steps of an item depend on its batch; below the precision of the network it only costs calls. Integrates in float64
    from start to stop (see `latent.sample.arc`) and returns alpha_0 x_hat at stop, so stop where little noise is left
    (on EDM below 0.001, which is sigma = 0.08); where sigma_0 > 0 it integrates to t = 0 instead. The number of calls
    depends on the data: 6 per step, tried or taken, 2 at the start and 1 at stop. Returns (B, ...) at t = 0. Raises
    ValueError unless tolerance > 0 and 1 >= start > stop > 0.
    """
    _check_adaptive(start, stop, tolerance)
    zero, end = torch.tensor([0.0, stop], dtype=torch.float64)
    noise_free = schedule.sigma(zero) == 0
    x = carry(denoise, schedule, widen(x), start, stop if noise_free else 0.0, tolerance)
    return expand(schedule.alpha(zero), x) * denoise(x, end).x if noise_free else x


def _check_adaptive(start: float, stop: float, tolerance: float) -> None:
    if not 0 < tolerance < float("inf"):
        raise ValueError(f"a tolerance of {tolerance}, expected a small number above 0; the usual choice is 1e-5")
    if not 0 < stop < start <= 1:
        raise ValueError(f"sampling from t = {start} to {stop}, expected 1 >= start > stop > 0; use 1 and 0.001")


def _midpoint_step(denoise: Denoise, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    middle = (t + s) / 2
    estimate = denoise(advance(x, denoise(x, t), schedule, t, middle), middle)
    if schedule.sigma(s) == 0:  # a step in t would leave noise behind where sigma' is infinite, see `advance`
        return expand(schedule.alpha(s), x) * estimate.x
    return x + (s - t) * slope(estimate, schedule, middle)
