"""Bounds on -log p(x), and the cross-entropy that trains the model.

All estimators below are unbiased for the same bound. How much they vary stands in docs/discrete.md: with a trained
network most of it comes from how many tokens are masked, so a batch should have few masks and many.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from backbone.noise import Randomness, uniform
from discrete.corrupt import over_tokens, spread
from discrete.schedule import Schedule

Times = Literal["independent", "stratified"]


def sample_times(kind: Times, batch: int, generator: Randomness) -> Tensor:
    """Draw t (B,) float64 in (0, 1]: independently, or one per stratum of width 1 / B in random order.

    No time is cut away near 0, so the bound is not low by the piece that is usually left out.
    """
    return 1 - (spread(batch, generator) if kind == "stratified" else uniform((batch,), generator))


def token_nll(log_probs: Tensor, x: Tensor, masked: Tensor) -> Tensor:
    """-log p(x_i | x_t) (B, L) where masked, 0 elsewhere; log_probs (B, L, V + 1)."""
    nll = -log_probs.gather(-1, x[..., None])[..., 0]  # (B, L)
    return torch.where(masked, nll, 0)


def nelbo(schedule: Schedule, log_probs: Tensor, x: Tensor, x_t: Tensor, t: Tensor, *, mask_id: int) -> Tensor:
    """Estimate the continuous-time bound from one (t, x_t) per sequence, in nats (arXiv:2406.07524, eq. 11).

        -alpha'_t / (1 - alpha_t)  sum_i [x_t,i = mask] (-log p(x_i | x_t)),     t ~ U(0, 1]

    log_probs: (B, L, V + 1) from `subs`; x, x_t: (B, L); t: (B,), or (B, L) where spans stand at their own times.
    Returns (B,).
    """
    masked = x_t == mask_id
    weight = torch.where(masked, schedule.weight(over_tokens(t)), 0)  # infinite at t = 0, where nothing is masked
    return (weight * token_nll(log_probs, x, masked)).sum(-1)


def exact_count_nelbo(
    log_probs: Tensor, x: Tensor, x_t: Tensor, *, mask_id: int, known: Tensor | None = None
) -> Tensor:
    """Estimate the same bound from an exact number of masks (arXiv:2502.09992, eq. 6).

        n / l  sum_i [x_t,i = mask] (-log p(x_i | x_t)),     l ~ U{1, ..., n} masks among the n unknown tokens

    log_probs: (B, L, V + 1); x, x_t: (B, L), x_t from `mask_exact_count` with `draw_count`; known: (B, L) bool.
    Returns (B,) nats, the bound on -log p(unknown | known).
    """
    masked = x_t == mask_id
    if known is not None:
        masked = masked & ~known  # a hidden but known side is not predicted
    return exact_count_weight(masked, known) * token_nll(log_probs, x, masked).sum(-1)


def exact_count_weight(masked: Tensor, known: Tensor | None = None) -> Tensor:
    """n / l (B,): unknown tokens over masked ones; masked and known are (B, L) bool."""
    unknown = masked.shape[-1] if known is None else (~known).sum(-1)
    return unknown / masked.sum(-1).clamp_min(1)


def masked_cross_entropy(logits: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Sum of weight * -log p(x) over the tokens of each sequence, the training loss.

    logits: (B, L, K) over one modality's tokens; x: (B, L) in [0, K); weight: (B, L), 0 where a token is visible or not
    asked for (its x is then ignored). Returns (B,) in float32.
    """
    return asked_cross_entropy(logits[weight > 0], x, weight)


def asked_cross_entropy(rows: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The same from the logits (n, K) of the n tokens that have a weight alone, in order: no others need be made."""
    asked, weight = weight > 0, weight.float()
    nll = cross_entropy(rows.float(), x[asked], reduction="none")  # (n,)
    return torch.zeros_like(weight).masked_scatter(asked, weight[asked] * nll).sum(-1)
