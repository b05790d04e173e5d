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

        x_s = alpha_s x_hat + sigma_s z,   z ~ N(0, I)

    For students of `latent.distill.consistency`; the estimate of any other model is a mean over samples, and blurred.
    Calls the denoiser N times. Returns (B, ...) at times[-1].
    """
    x = widen(x)
    for t, s in steps(times):
        x_hat = denoise(x, t).x
        x = expand(schedule.alpha(s), x) * x_hat
        if schedule.sigma(s) > 0:
            x = x + expand(schedule.sigma(s), x) * noise_like(x, generator)
    return x
