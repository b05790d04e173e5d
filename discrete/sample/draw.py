"""Drawing tokens, in float64 throughout: in float32 the tail of a distribution is cut off.

That quietly lowers the temperature (arXiv:2409.02908).
"""

from __future__ import annotations

import torch
from torch import Tensor

from backbone.noise import Randomness, uniform


def draw(log_probs: Tensor, generator: Randomness) -> Tensor:
    """Draw one token per position by inverting the distribution function in float64.

    log_probs: (B, L, V), normalised or not, -inf allowed. Returns (B, L) int64.
    """
    return invert(log_probs, uniform(log_probs.shape[:-1], generator, device=log_probs.device))


def invert(log_probs: Tensor, u: Tensor) -> Tensor:
    """The token at which the distribution function passes u: log_probs (..., V), u (...) float64 in [0, 1) -> (...)."""
    log_probs = log_probs.double()
    mass = (log_probs - log_probs.amax(-1, keepdim=True)).exp().cumsum(-1)  # (..., V), the best token weighs 1
    total = mass[..., -1]
    below = torch.nextafter(total, torch.zeros_like(total))  # u * total may round up to total
    return torch.searchsorted(mass, torch.minimum(u * total, below)[..., None], right=True)[..., 0]


def unmade(x: Tensor, known: Tensor | None, mask_id: int) -> Tensor:
    """What is masked and not known: (B, L) bool."""
    masked = x == mask_id
    return masked if known is None else masked & ~known
