"""Solvers of the reverse-time SDE: the probability flow with fresh noise at every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from backbone.noise import Randomness, noise_like
from latent.grid import at_log_snr
from latent.predict import Denoise, Estimate, widen
from latent.sample.langevin import langevin, scored_steps
from latent.sample.ode import heun
from latent.sample.step import advance, exchanged, steps
from latent.schedule import Schedule, expand


@torch.no_grad()
def euler_maruyama(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, *, generator: Randomness) -> Tensor:
    """Euler-Maruyama solver of the reverse-time SDE (arXiv:2011.13456, eq. 6).

        dx = (f x - g^2 score) dt + g dw,   f = alpha' / alpha,   g^2 = 2 sigma^2 (sigma' / sigma - alpha' / alpha)

    Written in the estimates this is a step of the probability flow and a Langevin step at once, see `reverse_step`. The
    last step to sigma = 0 returns the estimate. First order in the moments of x. Calls the denoiser N times. Returns
    (B, ...) at times[-1]. Raises ValueError where alpha = 0 at times[0].
    """
    path = scored_steps("euler_maruyama", schedule, times)
    x = widen(x)
    for t, s in path:
        x = reverse_step(x, denoise(x, t), schedule, t, s, generator)
    return x


@torch.no_grad()
def predictor_corrector(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness,
    snr: float = 0.16,
    corrections: int = 1,
) -> Tensor:
    """Predictor-corrector sampler (arXiv:2011.13456, algorithms 2 to 5): `reverse_step`, then Langevin steps at s.

        x <- x + a score + sqrt(2 a) z,   a = 2 (alpha_t / alpha_s)^2 (snr |z| / |score|)^2

    The factor in alpha is 1 on VE (algorithm 4). On VP it is 1 - beta of the step just made, where algorithm 5 takes
    that of the step to come; both tend to 1 as steps grow. Norms are those of one item, not means over the batch, so
    that an item does not depend on its batch. Hence a step depends on where x stands and on its own noise: as steps
    grow Gaussian data of d coordinates keep a standard deviation too large by snr^2 / 2 + 2 / d (2% at the default and
    d = 256). Nothing is corrected at sigma = 0. corrections: 0 is `euler_maruyama`.

    Calls the denoiser N + corrections (N - 1) times (N + corrections N where sigma > 0 at the end). Returns (B, ...) at
    times[-1]. Raises ValueError for snr <= 0, corrections < 0, or alpha = 0 at times[0].
    """
    if not 0 < snr < math.inf:
        raise ValueError(f"a corrector with snr = {snr}, expected snr > 0; the usual choice is 0.16")
    if corrections < 0:
        raise ValueError(f"{corrections} corrections per step, expected 0 (predictor alone) or more; use 1")
    path = scored_steps("predictor_corrector", schedule, times)
    x = widen(x)
    for t, s in path:
        x = reverse_step(x, denoise(x, t), schedule, t, s, generator)
        for _ in range(corrections if schedule.sigma(s) > 0 else 0):
            eps_hat, z = denoise(x, s).eps, noise_like(x, generator)
            scale = snr * (schedule.alpha(t) / schedule.alpha(s)).item()
            x = langevin(x, eps_hat, z, schedule.sigma(s), 2 * (scale * norm_ratio(z, eps_hat)) ** 2)
    return x


@torch.no_grad()
def edm_stochastic(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness,
    churn: float = 40.0,
    noise: float = 1.0,
    interval: tuple[float, float] = (0.0, math.inf),
) -> Tensor:
    """Stochastic sampler of EDM (arXiv:2206.00364, algorithm 2): add noise up to a higher level, then a step of `heun`.

        r_hat = (1 + gamma) r,   r = sigma_t / alpha_t,   gamma = min(churn / N, sqrt(2) - 1) for low <= r <= high
        x_hat = (alpha_hat / alpha_t) x_t + noise sqrt(sigma_hat^2 - (alpha_hat sigma_t / alpha_t)^2) z

    gamma is 0 outside the interval (low, high), where r is infinite, and where r_hat lies beyond the path.
    churn: 0 is `heun`; there 40 with noise 1.003 and the interval (0.05, 50) serves ImageNet-64. noise: slightly above
    1 makes up for a denoiser that removes too much. Calls the denoiser as often as `heun`. Returns (B, ...) at
    times[-1]. Raises ValueError for churn < 0, noise <= 0, or unless 0 <= low < high.
    """
    low, high = interval
    if not churn >= 0:
        raise ValueError(f"EDM churn is {churn}, expected churn >= 0; 0 is deterministic and 40 a usual choice")
    if not 0 < noise < math.inf:
        raise ValueError(f"EDM noise is {noise}, expected noise > 0; 1 keeps the noise level, 1.003 is a usual choice")
    if not 0 <= low < high:
        raise ValueError(f"EDM churn interval {interval}, expected 0 <= low < high in sigma / alpha; use (0.05, 50)")
    path = steps(times)
    levels = torch.stack([t for t, _ in path])
    x = widen(x)
    for (t, s), t_hat in zip(path, raised(schedule, levels, churn / len(path), interval), strict=True):
        if t_hat > t:
            added = noise * schedule.sigma(t_hat) * exchanged(schedule, t_hat, t).sqrt()
            x = expand(schedule.alpha(t_hat) / schedule.alpha(t), x) * x + expand(added, x) * noise_like(x, generator)
        x = heun(denoise, schedule, x, torch.stack([t_hat, s]))
    return x


def reverse_step(
    x: Tensor, estimate: Estimate, schedule: Schedule, t: Tensor, s: Tensor, generator: Randomness
) -> Tensor:
    """One Euler-Maruyama step of the reverse SDE, without noise where sigma_s = 0.

        (f x - g^2 score) dt + g dw = (alpha' x_hat + sigma' eps_hat) dt + (g^2 / (2 sigma)) eps_hat dt + g dw

    The first term is the probability flow; the others are a Langevin step of size g^2 (t - s) / (2 sigma^2) = -lambda'
    (t - s), with lambda = half_log_snr.
    """
    x_s = advance(x, estimate, schedule, t, s)
    if schedule.sigma(s) == 0:
        return x_s
    (d_alpha, d_sigma), sigma = schedule.rates(t), schedule.sigma(t)
    size = (t - s) * (d_sigma / sigma - d_alpha / schedule.alpha(t))
    return langevin(x_s, estimate.eps, noise_like(x, generator), sigma, size)


def raised(schedule: Schedule, levels: Tensor, gamma: float, interval: tuple[float, float]) -> Tensor:
    """Return the times (N,) at which sigma / alpha is 1 + gamma times that at `levels`, or the levels themselves."""
    factor = 1 + min(gamma, math.sqrt(2) - 1)
    ratio, highest = ((-schedule.half_log_snr(t)).exp() for t in (levels, torch.ones_like(levels)))
    inside = (interval[0] <= ratio) & (ratio <= interval[1]) & (factor * ratio <= highest)
    higher = at_log_snr(schedule, -2 * torch.log(factor * ratio))
    return torch.where(inside, higher, levels) if factor > 1 else levels


def norm_ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return |a| / |b| per item, (B,), and 0 where b = 0, as the noise of an untrained network may be."""
    over, under = (part.reshape(len(part), -1).norm(dim=1) for part in (a, b))
    return torch.where(under > 0, over / under, 0.0)
