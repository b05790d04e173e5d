"""Differences and changes of the clean sample, with their digits kept where sigma is small.

Near the data x_t nearly is x, so two estimates of x agree in all the digits that float32 has, while their eps differ.
The sampler multiplies what is left of the difference by alpha / sigma.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latent.predict import Estimate
from latent.schedule import Schedule, expand


def difference(main: Estimate, weak: Estimate, schedule: Schedule, t: Tensor) -> Tensor:
    """Return main.x - weak.x, (B, ...), as -(sigma / alpha) (main.eps - weak.eps) where sigma < alpha.

    t: () or (B,).
    """
    ratio = expand(schedule.sigma(t) / schedule.alpha(t), main.x)
    finite = torch.where(ratio < 1, ratio, 0.0)  # gradients pass through both branches, and 0 times inf is none
    return torch.where(ratio < 1, finite * (weak.eps - main.eps), main.x - weak.x)


def shifted(estimate: Estimate, schedule: Schedule, change: Tensor, t: Tensor) -> Estimate:
    """Add a change to x and give eps the value that keeps x_t = alpha x + sigma eps.

        x <- x + change,   eps <- eps - (alpha / sigma) change

    This is (x_t - alpha x) / sigma without the difference of two numbers that are nearly equal: eps is as precise as
    the estimate and the change are, and no change leaves it as it is. At float precision near sigma = 0 a rounding
    error of the change reaches eps times alpha / sigma; the step from there to sigma = 0 ends on x alone.
    change: (B, ...); t: () or (B,), with sigma_t > 0.
    """
    ratio = expand(schedule.alpha(t) / schedule.sigma(t), change)
    return Estimate(estimate.x + change, estimate.eps - ratio * change)
