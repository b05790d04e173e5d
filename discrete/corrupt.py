"""The forward process: which tokens are hidden behind the mask token.

Tokens marked `known` (a caption beside the image to be made, say) are never masked and never counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from backbone.noise import Randomness, uniform
from discrete.schedule import Schedule


def over_tokens(t: Tensor) -> Tensor:
    """Append a token axis to t (B,); () and (B, L) broadcast against (B, L) as they are."""
    return t[:, None] if t.ndim == 1 else t


def mask_tokens(
    schedule: Schedule, x: Tensor, t: Tensor, *, mask_id: int, generator: Randomness, known: Tensor | None = None
) -> Tensor:
    """Mask each token of x on its own.

        q(x_t | x) = alpha_t [x_t = x] + (1 - alpha_t) [x_t = mask]     (arXiv:2406.07524, eq. 4)

    x: (B, L) int64; t: (), (B,) or (B, L) in [0, 1]; known: (B, L) bool. Returns x_t (B, L).
    """
    hidden = uniform(x.shape, generator, device=x.device) >= schedule.alpha(over_tokens(t.double()))
    if known is not None:
        hidden &= ~known
    return torch.where(hidden, mask_id, x)


def random_places(
    shape: Sequence[int], generator: Randomness, device: torch.device | None = None, last: Tensor | None = None
) -> Tensor:
    """Place of each token in a random order of its sequence, from 0: (B, L) int64. last: (B, L) bool, behind all."""
    order = uniform(shape, generator, device=device)
    order = order if last is None else order.masked_fill(last, torch.inf)
    return order.argsort(-1).argsort(-1)


def mask_exact_count(
    x: Tensor, count: Tensor, *, mask_id: int, generator: Randomness, known: Tensor | None = None
) -> Tensor:
    """Mask exactly count of the unknown tokens of each sequence, every subset being equally likely.

    x: (B, L) int64; count: (B,) int, between 0 and the number of unknown tokens; known: (B, L) bool. Returns (B, L).
    """
    hidden = random_places(x.shape, generator, x.device, last=known) < count[:, None]
    return torch.where(hidden if known is None else hidden & ~known, mask_id, x)


def mask_both_ways(x: Tensor, count: Tensor, *, mask_id: int, generator: Randomness) -> tuple[Tensor, Tensor]:
    """Mask count tokens of each sequence, and then what stayed visible with one of those: L + 1 - count tokens.

    For counts uniform on 1 .. L both are maskings of the exact-count estimator, and together they ask for every token:
    each step learns all of a text. x: (B, L) int64; count: (B,) int in 1 .. L.
    """
    place = random_places(x.shape, generator, x.device)
    first, second = place < count[:, None], place >= count[:, None] - 1
    return torch.where(first, mask_id, x), torch.where(second, mask_id, x)


def spread(number: int, generator: Randomness, device: torch.device | str | None = None) -> Tensor:
    """Draw uniform numbers (number,) float64 in [0, 1), one in each of as many strata, in random order.

    The low-discrepancy sampler of VDM (arXiv:2107.00630, app. I.1) with a fresh offset in each stratum.
    """
    u = uniform((number,), generator, device=device)
    return (uniform((number,), generator, device=device).argsort() + u) / number


def draw_count(unknown: Tensor, generator: Randomness, *, even: bool = False) -> Tensor:
    """Draw the count of the exact-count estimator: l ~ U{1, ..., n} for n unknown tokens, both (B,) int64.

    even: one count from each of B strata, so that a batch has few and many masks.
    """
    shape, device = unknown.shape, unknown.device
    u = spread(len(unknown), generator, device) if even else uniform(shape, generator, device=device)
    return ((u * unknown).long() + 1).minimum(unknown)  # 0 where nothing is unknown


def mean_over_strata(
    cost: Callable[[Tensor], Tensor], number: int, draws: int, generator: Randomness, device: torch.device
) -> Tensor:
    """Mean of cost(u) over `draws` draws of u (number,), one in each stratum of [0, 1): unbiased for u ~ U[0, 1).

    Within its stratum, u is spread over the items, too. Returns what cost does, in float64.
    """
    draw = (cost((spread(number, generator, device) + k) / draws).double() for k in range(draws))
    return sum(draw, torch.zeros((), dtype=torch.float64, device=device)) / draws
