"""Samplers that choose what to reveal by what the model is sure of.

They take what sharpens the draws apart from the denoiser: a law cut by top-k or top-p is sure of everything, and would
give no order.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from backbone.noise import Randomness, uniform
from discrete.predict import Denoise, Sharpen
from discrete.sample.draw import invert, unmade
from discrete.schedule import Schedule


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
    sharpen: Sharpen | None = None,
) -> Tensor:
    """Guess every masked token and keep the guesses that the model is surest of (MaskGIT, arXiv:2202.04200, sec. 3.2).

        score = log p(guess | x_t) + temperature * s / times[0] * Gumbel noise

    After the step to s a share (alpha_s - alpha_1) / (1 - alpha_1) of the tokens that were masked and unknown at the
    start is visible, alpha_1 being that of times[0], and one more at least than before. A heuristic: its law is not the
    model's joint.
    x: (B, L) int64; times: (N + 1,) decreasing; sharpen: acts on what the guesses are drawn from, the scores being the
    denoiser's. Calls the denoiser N times. Returns (B, L).
    """
    times = times.to(x.device, torch.float64)
    alpha_start = schedule.alpha(times[0])
    start = unmade(x, known, mask_id).sum(-1)  # (B,): all that has to be revealed
    for number, (t, s) in enumerate(pairwise(times), start=2):
        share = 1.0 if number == len(times) else float((schedule.alpha(s) - alpha_start) / (1 - alpha_start))
        u = uniform(x.shape, generator, device=x.device)
        gumbel = -torch.log(-torch.log(uniform(x.shape, generator, device=x.device).clamp_min(1e-300)))
        hidden = unmade(x, known, mask_id)
        rows = denoise(x, t)[hidden]  # (number hidden, V + 1)
        guess = invert(rows if sharpen is None else sharpen(rows), u[hidden])
        score = rows.gather(-1, guess[:, None])[:, 0].double()
        score = score + temperature * float(s / times[0]) * gumbel[hidden]
        ranked = torch.full(x.shape, -torch.inf, dtype=torch.float64, device=x.device).masked_scatter(hidden, score)
        rank = ranked.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        quota = (start * share).round().long() - (start - hidden.sum(-1))  # (B,): how many more to reveal
        shown = hidden & (rank < quota.clamp_min(1)[:, None])
        x = torch.where(shown, torch.zeros_like(x).masked_scatter(hidden, guess), x)
    return x


@torch.no_grad()
def entropy_bound(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    bound: float,
    *,
    mask_id: int,
    generator: Randomness,
    known: Tensor | None = None,
    sharpen: Sharpen | None = None,
) -> Tensor:
    """Reveal as many tokens at once as can hardly depend on one another (EB-sampler, arXiv:2505.24857).

        the k tokens of least entropy H_1 <= ... <= H_k, with the largest k such that H_1 + ... + H_{k-1} <= bound

    The sum bounds the mutual information that is lost by drawing them independently. Bound 0 reveals one uncertain
    token at a time: the order looks at visible tokens alone, so the law of an exact model stays exact.
    x: (B, L) int64; bound: in nats, at least 0; sharpen: acts on the draws, not on the entropies. Calls the denoiser as
    often as it needs to, at times (B,) at which as large a share is masked as is of the tokens that were unknown at the
    start. Returns (B, L).
    """
    if not bound >= 0:
        raise ValueError(f"the entropy bound is {bound}, expected 0 nats (one token at a time) or more, such as 0.1")
    hidden = unmade(x, known, mask_id)
    start = hidden.sum(-1).clamp_min(1)
    while bool(hidden.any()):
        u = uniform(x.shape, generator, device=x.device)
        rows = denoise(x, schedule.time(hidden.sum(-1).double() / start))[hidden]  # (number hidden, V + 1)
        entropy = torch.full(x.shape, torch.inf, dtype=torch.float64, device=x.device)
        entropy = entropy.masked_scatter(hidden, torch.special.entr(rows.exp()).sum(-1).double())
        sorted_, order = entropy.sort(dim=-1, stable=True)
        before = sorted_.cumsum(-1) - sorted_  # inf - inf is NaN, which no comparison passes
        shown = hidden & torch.zeros_like(hidden).scatter(-1, order, before <= bound)
        drawn = rows[shown[hidden]]
        x = x.masked_scatter(shown, invert(drawn if sharpen is None else sharpen(drawn), u[shown]))
        hidden = unmade(x, known, mask_id)
    return x
