"""The probability-flow ODE with adaptive steps, along the one arc to which all paths come down.

Divided by sqrt(alpha^2 + sigma^2), every path is a stretch of `Cosine()`, found by its SNR: there no rate is infinite
and none jumps, at either end, and the solution has the size of the data. In t, sigma' may be infinite or jump; the
log-SNR is infinite at the ends. Times are found by bisection, a few milliseconds for each call of the denoiser.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchdiffeq import odeint

from latent.grid import at_log_snr
from latent.predict import Denoise
from latent.sample.step import slope
from latent.schedule import Cosine, Schedule

State = tuple[Tensor, ...]
"""What is integrated, in float64: z = x_t / sqrt(alpha^2 + sigma^2), (B, ...), and perhaps a number per item."""

_ARC = Cosine()


def carry(denoise: Denoise, schedule: Schedule, x: Tensor, t: float, s: float, tolerance: float) -> Tensor:
    """Carry x (B, ...) along the ODE from time t to s, in either direction. Returns (B, ...) in the dtype of x."""
    times, radius = stretch(schedule, t, s)

    def rates(tau: Tensor, state: State) -> State:
        return (velocity(denoise, schedule, state[0], tau, x.dtype),)

    (z,), _ = solve(rates, (x.double() / radius[0],), times, tolerance)
    return (z * radius[1]).to(x.dtype)


def stretch(schedule: Schedule, t: float, s: float) -> tuple[Tensor, list[float]]:
    """Return the times of the arc that have the SNR of t and s, and sqrt(alpha^2 + sigma^2) at these two."""
    ends = torch.tensor([t, s], dtype=torch.float64)
    radius = torch.hypot(schedule.alpha(ends), schedule.sigma(ends))
    return at_log_snr(_ARC, schedule.log_snr(ends)), radius.tolist()


def velocity(denoise: Denoise, schedule: Schedule, z: Tensor, tau: Tensor, dtype: torch.dtype) -> Tensor:
    """dz/dtau = slope along the arc. The denoiser works on x_t in `dtype`, at the t whose SNR is that of tau."""
    t = at_log_snr(schedule, _ARC.log_snr(tau))
    x_t = (z * torch.hypot(schedule.alpha(t), schedule.sigma(t)).item()).to(dtype)
    v = slope(denoise(x_t, t), _ARC, tau)
    if not v.isfinite().all():
        raise ValueError(
            f"the denoiser's velocity at t = {t.item():g} is not finite, expected numbers everywhere; where the "
            "network predicts 'eps' on a path with alpha = 0 at t = 1, predict 'v', 'velocity' or 'x'"
        )
    return v.double()


def solve(rates: Callable[[Tensor, State], State], state: State, times: Tensor, tolerance: float) -> tuple[State, int]:
    """Integrate between the two times of the arc and count the calls of `rates`, which never leave them."""
    calls = 0

    def counted(tau: Tensor, state: State) -> State:
        nonlocal calls
        calls += 1
        return rates(tau.cpu(), state)

    counted(times.max(), state)  # at alpha = 0 itself: the solver stays a rounding error short of it, finite but wrong
    times = times.to(state[0].device)
    # by default torchdiffeq steps past the end and interpolates, and may try its first step beyond it
    options = {"norm": _worst_item, "first_step": times.diff().abs()[0] / 50, "step_t": times[1:]}
    path = odeint(counted, state, times, rtol=tolerance, atol=tolerance, method="dopri5", options=options)
    return tuple(part[-1] for part in path), calls


def _worst_item(state: State) -> Tensor:
    """Root mean square over each item's axes, and the largest of these: no item hides behind its batch."""
    return torch.stack([part.reshape(len(part), -1).square().mean(1).max() for part in state]).max().sqrt()
