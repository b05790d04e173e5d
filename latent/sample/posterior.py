"""Steps through q(x_s | x_t, x): DDIM and the ancestral sampler of DDPM."""

from __future__ import annotations

import torch
from torch import Tensor

from backbone.noise import Randomness, noise_like
from latent.predict import Denoise
from latent.sample.step import exchanged, steps, widen
from latent.schedule import Schedule, expand


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
    x = widen(x)
    for t, s in steps(times):
        fresh = eta * schedule.sigma(s) * exchanged(schedule, t, s).sqrt()
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
