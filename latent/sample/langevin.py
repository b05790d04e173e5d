"""Langevin steps: the one update that every stochastic sampler here is built on, and the sampler of NCSN.

A step leaves the marginal at its noise level nearly as it is (exactly so as the step goes to 0) and forgets a part of
where x came from. Sizes are relative to the level: in units of sigma^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backbone.noise import Randomness, noise_like
from latent.predict import Denoise, widen
from latent.sample.step import steps
from latent.schedule import Schedule, expand


def langevin(x: Tensor, eps_hat: Tensor, z: Tensor, sigma: Tensor, size: Tensor) -> Tensor:
    """One Langevin step at a noise level, written in the noise: the score is -eps_hat / sigma.

        x + a score + sqrt(2 a) z = x - size sigma eps_hat + sqrt(2 size) sigma z,   a = size sigma^2

    x, eps_hat, z: (B, ...); sigma: (); size: () or (B,). Returns (B, ...).
    """
    return x - expand(size * sigma, x) * eps_hat + expand((2 * size).sqrt() * sigma, x) * z


def scored_steps(sampler: str, schedule: Schedule, times: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the steps of a grid that starts where x still says something about the data.

    Raises ValueError where alpha = 0 at times[0]: the drift of the reverse SDE is infinite there.
    """
    path = steps(times)
    start = path[0][0]
    if schedule.alpha(start) == 0:
        raise ValueError(
            f"{sampler} from t = {start.item():g}, where {schedule} has alpha = 0, expected a finite log-SNR at "
            "times[0]; start a little later, such as latent.grid.uniform(steps, start=0.999)"
        )
    return path


@torch.no_grad()
def annealed_langevin(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness,
    steps_per_level: int = 100,
    step: float = 0.2,
) -> Tensor:
    """Annealed Langevin dynamics of NCSN (arXiv:1907.05600, algorithm 1): every time of the grid is a noise level.

        at each level:     x <- x + (a / 2) score + sqrt(a) z,   a = step sigma^2,   steps_per_level times
        between levels:    x <- (alpha_s / alpha_t) x
        down to sigma = 0: x <- alpha_s x_hat, the denoised sample of arXiv:2009.05475

    The defaults are those of NCSN: 100 steps, and epsilon = 2e-5 at a last sigma of 0.01. With them the standard
    deviation of Gaussian data comes out too large by 2% (data of std 2) to 4% (of std 0.05) over 30 levels of
    `grid.karras`. That error goes as 1 / (levels steps_per_level step), since each level must be forgotten before the
    next; but noise alone settles at the variance sigma^2 / (1 - step / 4), so larger steps show the network too much.

    Calls the denoiser N steps_per_level + 1 times ((N + 1) steps_per_level where sigma > 0 at the end). Returns
    (B, ...) at times[-1]. Raises ValueError for steps_per_level < 1, a step outside (0, 4), or alpha = 0 at times[0].
    """
    if steps_per_level < 1:
        raise ValueError(f"{steps_per_level} Langevin steps per level, expected at least 1; the usual choice is 100")
    if not 0 < step < 4:
        raise ValueError(f"a Langevin step of {step} sigma^2, expected 0 < step < 4, where it is stable; use 0.2")
    size = torch.tensor(step / 2, dtype=torch.float64)

    def settle(x: Tensor, t: Tensor) -> Tensor:
        for _ in range(steps_per_level):
            x = langevin(x, denoise(x, t).eps, noise_like(x, generator), schedule.sigma(t), size)
        return x

    path = scored_steps("annealed_langevin", schedule, times)
    x = widen(x)
    for t, s in path:
        x = settle(x, t)
        if schedule.sigma(s) == 0:
            return expand(schedule.alpha(s), x) * denoise(x, t).x
        x = expand(schedule.alpha(s) / schedule.alpha(t), x) * x
    return settle(x, path[-1][1])
