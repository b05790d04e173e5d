"""Samplers: one function each, from x_1 (all masked, or partly filled in) to x_0 along a decreasing time grid.

Every sampler takes `known` (B, L) bool: those tokens are never changed, whatever they hold, and never counted. A token
that is visible but not known was filled in by someone else; it is carried over too, because masking never comes back.
The last step reveals all that is left, whether or not the grid ends at 0, so no sampler returns a mask.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from backbone.noise import Randomness, uniform
from discrete.predict import Denoise
from discrete.schedule import Schedule


def draw(log_probs: Tensor, generator: Randomness) -> Tensor:
    """Draw one token per position by inverting the distribution function in float64.

    log_probs: (B, L, V), normalised or not, -inf allowed. Returns (B, L) int64. In float32 the tail would be cut off,
    which quietly lowers the temperature (arXiv:2409.02908).
    """
    return invert(log_probs, uniform(log_probs.shape[:-1], generator, device=log_probs.device))


def invert(log_probs: Tensor, u: Tensor) -> Tensor:
    """The token at which the distribution function passes u: log_probs (..., V), u (...) float64 in [0, 1) -> (...)."""
    log_probs = log_probs.double()
    mass = (log_probs - log_probs.amax(-1, keepdim=True)).exp().cumsum(-1)  # (..., V), the best token weighs 1
    total = mass[..., -1]
    below = torch.nextafter(total, torch.zeros_like(total))  # u * total may round up to total
    return torch.searchsorted(mass, torch.minimum(u * total, below)[..., None], right=True)[..., 0]


@torch.no_grad()
def ancestral(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    mask_id: int,
    generator: Randomness,
    known: Tensor | None = None,
) -> Tensor:
    """Follow the reverse process: between t and s each masked token is revealed on its own (arXiv:2406.07524, eq. 7).

        P(revealed) = (alpha_s - alpha_t) / (1 - alpha_t),     its value ~ p(x | x_t)

    x: (B, L) int64; times: (N + 1,) decreasing. Calls the denoiser N times. Returns (B, L).
    """
    times = times.double()
    for t, s in pairwise(times):
        last = bool(s == times[-1])
        chance = 1.0 if last else (schedule.alpha(s) - schedule.alpha(t)) / (1 - schedule.alpha(t))
        coin = uniform(x.shape, generator, device=x.device)
        u = uniform(x.shape, generator, device=x.device)
        reveal = _unknown(x, known, mask_id) & (coin < chance)
        log_probs = denoise(x, t)
        x = x.masked_scatter(reveal, invert(log_probs[reveal], u[reveal]))
    return x


@torch.no_grad()
def confidence(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    mask_id: int,
    generator: Randomness,
    known: Tensor | None = None,
    temperature: float = 0.0,
) -> Tensor:
    """Guess every masked token and keep the guesses that the model is surest of (MaskGIT, arXiv:2202.04200, sec. 3.2).

        score = log p(guess | x_t) + temperature * (1 - alpha_s) * Gumbel noise

    After the step to s a share (alpha_s - alpha_1) / (1 - alpha_1) of the tokens that were masked and unknown at the
    start is visible, alpha_1 being that of times[0]. A heuristic: its law is not the model's joint.
    x: (B, L) int64; times: (N + 1,) decreasing. Calls the denoiser N times. Returns (B, L).
    """
    times = times.double()
    alpha_start = schedule.alpha(times[0])
    start = _unknown(x, known, mask_id).sum(-1)  # (B,): all that has to be revealed
    for t, s in pairwise(times):
        share = 1.0 if s == times[-1] else float((schedule.alpha(s) - alpha_start) / (1 - alpha_start))
        u = uniform(x.shape, generator, device=x.device)
        gumbel = -torch.log(-torch.log(uniform(x.shape, generator, device=x.device).clamp_min(1e-300)))
        hidden = _unknown(x, known, mask_id)
        rows = denoise(x, t)[hidden].double()  # (number hidden, V + 1)
        guess = invert(rows, u[hidden])
        score = rows.log_softmax(-1).gather(-1, guess[:, None])[:, 0]
        score = score + temperature * float(1 - schedule.alpha(s)) * gumbel[hidden]
        ranked = torch.full(x.shape, -torch.inf, dtype=torch.float64, device=x.device).masked_scatter(hidden, score)
        rank = ranked.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        quota = (start * share).round().long() - (start - hidden.sum(-1))  # (B,): how many more to reveal
        shown = hidden & (rank < quota[:, None])
        x = torch.where(shown, torch.zeros_like(x).masked_scatter(hidden, guess), x)
    return x


def _unknown(x: Tensor, known: Tensor | None, mask_id: int) -> Tensor:
    masked = x == mask_id
    return masked if known is None else masked & ~known
