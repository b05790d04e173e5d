"""Decreasing time grids for the samplers: steps + 1 values in float64."""

from __future__ import annotations

from collections.abc import Callable

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
    schedule: Schedule,
    steps: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> Tensor:
    """Grid of Karras et al. (arXiv:2206.00364, eq. 5) in the noise-to-signal ratio sigma_t / alpha_t, (steps + 1,).

    From sigma_max to sigma_min, then t = 0 where the path is free of noise there; a path that is not (VE) ends at
    sigma_min. None is 80 and 0.002, or the end of the path where it ends before. Start from sigma(times[0]) eps: the
    first time is below 1. Raises ValueError for ratios outside the path.
    """
    if not rho > 0:
        raise ValueError(f"Karras grid with rho = {rho}, expected rho > 0; the usual choice is 7")

    def ratios(low: float, high: float, ramp: Tensor) -> Tensor:
        return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho

    return _by_ratio(schedule, steps, sigma_min, sigma_max, ratios)


def even_log_snr(
    schedule: Schedule, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Tensor:
    """Grid with even steps of log-SNR (arXiv:2206.00927, section 3.3), (steps + 1,); ends and errors as in `karras`."""

    def ratios(low: float, high: float, ramp: Tensor) -> Tensor:
        return high * (low / high) ** ramp

    return _by_ratio(schedule, steps, sigma_min, sigma_max, ratios)


def _by_ratio(
    schedule: Schedule,
    steps: int,
    sigma_min: float | None,
    sigma_max: float | None,
    ratios: Callable[[float, float, Tensor], Tensor],
) -> Tensor:
    """Times of the ratios sigma / alpha that `ratios` spreads over a ramp from 0 to 1."""
    _at_least_one(steps)
    ends = schedule.half_log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)).neg().exp()
    lowest, highest = ends.tolist()
    low = max(0.002, lowest) if sigma_min is None else sigma_min
    high = min(80.0, highest) if sigma_max is None else sigma_max
    slack = 1e-9  # the ends of the path are themselves computed
    if not (lowest * (1 - slack) <= low < high <= highest * (1 + slack) and low > 0):
        raise ValueError(
            f"a grid of noise-to-signal ratios from {high} to {low}: expected "
            f"{lowest:.4g} <= sigma_min < sigma_max <= {highest:.4g}, what {schedule} reaches"
        )
    to_zero = lowest == 0
    ramp = torch.linspace(0, 1, steps + (not to_zero), dtype=torch.float64)
    times = at_log_snr(schedule, -2 * torch.log(ratios(low, high, ramp)))
    return torch.cat([times, times.new_zeros(1)]) if to_zero else times


def _at_least_one(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"{steps} sampling steps, expected at least 1")
