"""What the samplers share: the grid's steps, the slope of the flow, and one first-order step along it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from latent.predict import Estimate
from latent.schedule import Schedule, expand

Path = list[tuple[Tensor, Tensor]]
"""The steps (t, s) of a time grid, each time () in float64 on the CPU."""


def slope(estimate: Estimate, schedule: Schedule, t: Tensor) -> Tensor:
    """dx_t/dt of the probability-flow ODE."""
    d_alpha, d_sigma = schedule.rates(t)
    return expand(d_alpha, estimate.x) * estimate.x + expand(d_sigma, estimate.x) * estimate.eps


def advance(x: Tensor, estimate: Estimate, schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Euler's step; where sigma_s = 0 it is taken along sigma / alpha, which ends on the estimate.

    On straight paths these are the same. On VP sigma' is infinite at t = 0, so that a step in t would leave half of the
    noise.
    """
    if schedule.sigma(s) == 0:
        return expand(schedule.alpha(s), x) * estimate.x
    return x + (s - t) * slope(estimate, schedule, t)


def euler_rows(schedule: Schedule, path: Path) -> Iterator[tuple[float, ...]]:
    """`advance` for all steps: the numbers (k, a, b) of x_s = k x_t + a x_hat + b eps_hat; k = 0 where sigma_s = 0."""
    t, s = ends(path)
    d_alpha, d_sigma = schedule.rates(t)
    moving = schedule.sigma(s) > 0
    return rows(
        moving.double(),
        torch.where(moving, (s - t) * d_alpha, schedule.alpha(s)),
        torch.where(moving, (s - t) * d_sigma, 0.0),
    )


def exchanged(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Share of the noise variance at s that is not explained by x_t: 1 - (alpha_t sigma_s / (alpha_s sigma_t))^2."""
    kept = schedule.alpha(t) * schedule.sigma(s) / (schedule.alpha(s) * schedule.sigma(t))
    return (1 - kept**2).clamp(min=0)


def rows(*columns: Tensor) -> Iterator[tuple[float, ...]]:
    """Turn coefficients of all steps, (N,) each, into plain numbers, one row per step.

    A schedule asked about the whole grid costs as much as one asked about a single time, and a number multiplies a
    tensor on any device without being copied there.
    """
    return zip(*(column.tolist() for column in columns), strict=True)


def ends(path: Path) -> tuple[Tensor, Tensor]:
    """All t and all s of a path, (N,) each."""
    t, s = zip(*path, strict=True)
    return torch.stack(t), torch.stack(s)


def steps(times: Tensor) -> Path:
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
