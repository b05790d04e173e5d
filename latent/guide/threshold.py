"""Dynamic thresholding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latent.guide.shift import shifted
from latent.predict import Denoise, Estimate
from latent.schedule import Schedule, expand


def thresholded(denoise: Denoise, schedule: Schedule, *, percentile: float = 0.995, limit: float = 1.0) -> Denoise:
    """Keep x in range, pushing saturated values inwards (arXiv:2205.11487, section 2.3).

        x <- clip(x, -s, s) limit / s,   s = max(limit, percentile of |x| over the item)

    limit: 1 for pixels in [-1, 1]; for latents the largest magnitude that the data reach, such as 4 at unit variance.
    percentile = 1 only scales. Raises ValueError unless 0 < percentile <= 1 and 0 < limit < infinity.
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"threshold percentile is {percentile}, expected a share 0 < percentile <= 1, such as 0.995")
    if not 0 < limit < math.inf:
        raise ValueError(f"threshold limit is {limit}, expected 0 < limit < infinity; use 1 for pixels in [-1, 1]")

    def bounded(x_t: Tensor, t: Tensor) -> Estimate:
        found = denoise(x_t, t)
        s = found.x.abs().flatten(1).quantile(percentile, dim=1).clamp(min=limit)  # (B,)
        s = expand(s, found.x)
        x = torch.clamp(found.x, -s, s) * (limit / s)
        return shifted(found, schedule, x - found.x, t)

    return bounded
