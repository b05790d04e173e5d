"""Solvers that remember earlier estimates, in half the log-SNR lambda.

All go by the exact solution of the probability-flow ODE over a step (arXiv:2211.01095),

    x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) D,   h = lambda_s - lambda_t,   lambda = half_log_snr

where D is the mean of x_hat over the step with weight e^lambda. They differ in the estimates that D is made from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backbone.noise import Randomness, noise_like
from latent.predict import Denoise
from latent.sample.step import steps, widen
from latent.schedule import Schedule, expand

Node = tuple[Tensor, Tensor]
"""(r, x_hat): an estimate, and where on the step it was made: 0 at t, 1 at s, negative before the step."""


def dpmpp_2m(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """DPM-Solver++ (2M), second order with one call per step (arXiv:2211.01095, algorithm 2).

        x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) D,   h = lambda_s - lambda_t,   lambda = half_log_snr
        D = x_hat + (x_hat - x_hat_previous) h / (2 h_previous)

    First order (D = x_hat) for the first step and wherever a step in lambda is infinite. Returns (B, ...) at times[-1].
    """
    return _multistep(denoise, schedule, x, times, order=2)


def dpmpp_3m(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """DPM-Solver++ (3M), third order with one call per step (arXiv:2211.01095).

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
    x = widen(x)
    history = History(schedule, order - 1)
    for t, s in steps(times):
        x_hat, _ = denoise(x, t)
        h, nodes = history.seen_from(t, s)
        d = mean_estimate(x_hat, nodes, h)
        x = (
            exponential_step(x, d, schedule, t, s)
            if generator is None
            else _noisy_step(x, d, schedule, t, s, generator)
        )
        history.add(t, x_hat)
    return x


class History:
    """The latest estimates of a run, at most `size`, that were made where lambda is finite."""

    def __init__(self, schedule: Schedule, size: int) -> None:
        self._half_log_snr, self._size = schedule.half_log_snr, size
        self._past: list[tuple[Tensor, Tensor]] = []  # (lambda, x_hat), latest first

    def add(self, t: Tensor, x_hat: Tensor) -> None:
        """Remember the estimate made at t."""
        if self._half_log_snr(t).isfinite():
            self._past = [(self._half_log_snr(t), x_hat), *self._past][: self._size]

    def seen_from(self, t: Tensor, s: Tensor) -> tuple[Tensor, list[Node]]:
        """Return h and the remembered estimates, latest first, with their places on the step; none if h is infinite."""
        start = self._half_log_snr(t)
        h = self._half_log_snr(s) - start
        return h, [((past - start) / h, x_hat) for past, x_hat in self._past] if h.isfinite() else []


def mean_estimate(x_hat: Tensor, nodes: list[Node], h: Tensor) -> Tensor:
    """Return D, the mean over a step of width h of the polynomial through x_hat (made at t) and K other estimates.

    D = x_hat + sum_k c_k (x_k - x_hat),   sum_k c_k r_k^i = M_i for i = 1 .. K
    """
    if not nodes:
        return x_hat
    places = torch.stack([r for r, _ in nodes])
    powers = places ** torch.arange(1, len(nodes) + 1)[:, None]  # (K, K)
    d = x_hat
    for weight, (_, other) in zip(torch.linalg.solve(powers, _moments(h, len(nodes))), nodes, strict=True):
        d = d + expand(weight, x_hat) * (other - x_hat)
    return d


def _moments(h: Tensor, count: int) -> Tensor:
    """M_i, the mean of r^i over 0 < r < 1 with weight e^(h r), for i = 1 .. count: by parts, from that of i - 1.

    A line alone takes M_1 = 1/2, whatever h, as both papers do; this is of the same order.
    """
    if count == 1:
        return torch.full((1,), 0.5, dtype=h.dtype)
    integrals = [-torch.expm1(-h)]  # h e^-h times the integral of r^i e^(h r)
    for i in range(1, count + 1):
        integrals.append(1 - i / h * integrals[-1])
    return torch.stack(integrals[1:]) / integrals[0]


def exponential_step(x: Tensor, d: Tensor, schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """(sigma_s / sigma_t) x - alpha_s (e^-h - 1) d; a step to sigma_s = 0 ends on alpha_s d."""
    h = schedule.half_log_snr(s) - schedule.half_log_snr(t)
    return expand(schedule.sigma(s) / schedule.sigma(t), x) * x - expand(schedule.alpha(s) * torch.expm1(-h), x) * d


def _noisy_step(x: Tensor, d: Tensor, schedule: Schedule, t: Tensor, s: Tensor, generator: Randomness) -> Tensor:
    h = schedule.half_log_snr(s) - schedule.half_log_snr(t)
    renewed = -torch.expm1(-2 * h)
    x_s = expand(schedule.sigma(s) / schedule.sigma(t) * torch.exp(-h), x) * x
    x_s = x_s + expand(schedule.alpha(s) * renewed, x) * d
    return x_s + expand(schedule.sigma(s) * renewed.sqrt(), x) * noise_like(x, generator)
