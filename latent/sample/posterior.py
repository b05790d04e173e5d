"""Steps through q(x_s | x_t, x): DDIM and the ancestral sampler of DDPM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from backbone.noise import Randomness, noise_like
from latent.predict import Denoise, combine, widen
from latent.sample.step import ends, exchanged, rows, steps
from latent.schedule import Schedule


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

    def variances(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        fresh = eta**2 * smaller_variance(schedule, t, s)
        return schedule.sigma(s) ** 2 - fresh, fresh

    return _exchange(denoise, schedule, x, times, variances, generator)


@torch.no_grad()
def ancestral(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness,
    variance: Literal["small", "large"] = "small",
) -> Tensor:
    """DDPM sampling with either of the two fixed variances (arXiv:2006.11239, section 3.2, algorithm 2).

        x_s = mean of q(x_s | x_t, x_hat) + n z,   z ~ N(0, I), and n = 0 where sigma_s = 0
        small: n^2 = Var(x_s | x_t, x) = (sigma_s / sigma_t)^2 beta,   beta = sigma_t^2 - (alpha_t sigma_s / alpha_s)^2
        large: n^2 = (v_s / v_t) beta,   v = alpha^2 + sigma^2, which is beta itself where variance is preserved

    variance: "small" is exact for data at one point, and DDIM with eta = 1; "large" is exact for data of unit variance.
    With one generator per item, item i does not depend on the batch. Calls the denoiser N times. Returns (B, ...) at
    times[-1]. Raises ValueError for another variance.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"ancestral variance is {variance!r}, expected 'small' or 'large'; use 'small'")

    def variances(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        small = smaller_variance(schedule, t, s)
        return schedule.sigma(s) ** 2 - small, small if variance == "small" else larger_variance(schedule, t, s)

    return _exchange(denoise, schedule, x, times, variances, generator)


def smaller_variance(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Variance of x_s given x_t and x."""
    return schedule.sigma(s) ** 2 * exchanged(schedule, t, s)


def larger_variance(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Variance of x_s given x_t alone, for x ~ N(0, 1); 0 where sigma_s = 0, for there the estimate is wanted."""
    v_t, v_s = (schedule.alpha(time) ** 2 + schedule.sigma(time) ** 2 for time in (t, s))
    beta = schedule.sigma(t) ** 2 * exchanged(schedule, t, s)
    return torch.where(schedule.sigma(s) > 0, v_s / v_t * beta, 0.0)


def _exchange(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    variances: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    generator: Randomness | None,
) -> Tensor:
    """x_s = alpha_s x_hat + sqrt(kept) eps_hat + sqrt(fresh) z, with (kept, fresh) = variances(t, s)."""
    x, path = widen(x), steps(times)
    t, s = ends(path)
    kept, fresh = variances(t, s)
    coefficients = rows(schedule.alpha(s), kept.clamp(min=0).sqrt(), fresh.sqrt())
    for (time, _), (alpha_s, of_eps, of_noise) in zip(path, coefficients, strict=True):
        x_hat, eps_hat = denoise(x, time)
        x = combine(alpha_s, x_hat, of_eps, eps_hat)
        if generator is not None and of_noise > 0:
            x = torch.add(x, noise_like(x, generator), alpha=of_noise)
    return x
