"""The sampler of consistency models, whose estimate of x is already a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from backbone.noise import Randomness, noise_like
from latent.predict import Denoise, widen
from latent.sample.step import steps
from latent.schedule import Schedule, expand


@torch.no_grad()
def consistency(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, *, generator: Randomness) -> Tensor:
    """Multistep consistency sampling (arXiv:2303.01469, algorithm 1): keep the estimate of x, draw all noise anew.

        x_s = alpha_s x_hat + sqrt(sigma_s^2 - (alpha_s sigma_0 / alpha_0)^2) z,   z ~ N(0, I)

    On paths with sigma_0 > 0 the estimate is a sample at t = 0, which holds that noise already. For students of
    `latent.distill.consistency`; the estimate of any other model is a mean over samples, and blurred. Calls the
    denoiser N times. Returns (B, ...) at times[-1].
    """
    x, zero = widen(x), torch.zeros((), dtype=torch.float64)
    left = schedule.sigma(zero) / schedule.alpha(zero)
    for t, s in steps(times):
        x_hat = denoise(x, t).x
        x = expand(schedule.alpha(s), x) * x_hat
        added = (schedule.sigma(s) ** 2 - (schedule.alpha(s) * left) ** 2).clamp(min=0).sqrt()
        if added > 0:
            x = x + expand(added, x) * noise_like(x, generator)
    return x
