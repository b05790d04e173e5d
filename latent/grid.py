"""Decreasing time grids for the samplers: steps + 1 values in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from latent.schedule import Schedule


def uniform(steps: int, start: float = 1.0, stop: float = 0.0) -> Tensor:
    """Return evenly spaced times from start to stop, (steps + 1,).

    Raises ValueError unless steps >= 1 and 0 <= stop < start <= 1.
    """
    _at_least_one(steps)
    if not 0 <= stop < start <= 1:
        raise ValueError(f"a grid from {start} to {stop}, expected 1 >= start > stop >= 0; the whole path is 1 to 0")
    return torch.linspace(start, stop, steps + 1, dtype=torch.float64)


def shift(times: Tensor, factor: float) -> Tensor:
    """Move times towards noise for larger images: factor t / (1 + (factor - 1) t) (arXiv:2403.03206, eq. 23).

    factor: square root of the ratio of pixel counts; 1 changes nothing. Serves grids and training times alike; apply
    it once. Raises ValueError unless factor > 0.
    """
    if not 0 < factor < float("inf"):
        raise ValueError(f"a time shift of {factor}, expected a factor above 0; 1 leaves the times as they are")
    return factor * times / (1 + (factor - 1) * times)


def discrete(steps: int, total: int = 1000, start: int | None = None) -> Tensor:
    """Return the times k / total nearest to even spacing, from k = start down to 0, (steps + 1,).

    total: the number of noise levels in the discrete-time model. start: total - 1 by default, since eps predictions
    cannot be read at t = 1 on paths that end in pure noise; pass `total` on paths that do not. Raises ValueError unless
    1 <= steps <= start <= total.
    """
    first = total - 1 if start is None else start
    if not 1 <= steps <= first <= total:
        raise ValueError(f"{steps} steps from {first} of {total} levels, expected 1 <= steps <= start <= total")
    return torch.linspace(first, 0, steps + 1, dtype=torch.float64).round() / total


def at_log_snr(schedule: Schedule, log_snr: Tensor) -> Tensor:
    """Return the times (float64, same shape) at which schedule.log_snr(t) = log_snr, by bisection.

    Values beyond either end of the path give that end.
    """
    wanted = log_snr.double()
    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
    for _ in range(80):  # float64 runs out of digits first
        middle = (low + high) / 2
        noisier = schedule.log_snr(middle) < wanted
        low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
    beyond = wanted >= schedule.log_snr(torch.zeros_like(wanted))
    return torch.where(beyond, 0.0, torch.where(wanted <= schedule.log_snr(torch.ones_like(wanted)), 1.0, high))


def karras(
    schedule: Schedule, steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """Grid of Karras et al. (arXiv:2206.00364, eq. 5) in the noise-to-signal ratio sigma_t / alpha_t, (steps + 1,).

    From sigma_max to sigma_min, then t = 0 where the path is free of noise there; a path that is not (VE) ends at
    sigma_min. Start from sigma(times[0]) eps: the first time is below 1. Raises ValueError for ratios outside the path.
    """
    _at_least_one(steps)
    ends = schedule.half_log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)).neg().exp()
    lowest, highest = ends.tolist()
    slack = 1e-9  # the ends of the path are themselves computed
    if not (lowest * (1 - slack) <= sigma_min < sigma_max <= highest * (1 + slack) and sigma_min > 0 and rho > 0):
        raise ValueError(
            f"Karras grid from {sigma_max} to {sigma_min} with rho = {rho}: expected rho > 0 and "
            f"{lowest:.4g} <= sigma_min < sigma_max <= {highest:.4g}, what {schedule} reaches"
        )
    to_zero = lowest == 0
    ramp = torch.linspace(0, 1, steps + (not to_zero), dtype=torch.float64)
    ratio = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    times = at_log_snr(schedule, -2 * torch.log(ratio))
    return torch.cat([times, times.new_zeros(1)]) if to_zero else times


def _at_least_one(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"{steps} sampling steps, expected at least 1")
