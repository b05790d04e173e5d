"""Guidance: combinators on logits, the mirror of latent.guide. Range mask and SUBS come after (discrete.predict)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from discrete.predict import Logits


class Condition(NamedTuple):
    """Tokens (B, L) int64 that overwrite x_t where known (B, L) bool says so."""

    tokens: Tensor
    known: Tensor

    def write(self, x_t: Tensor) -> Tensor:
        """x_t with the known tokens written over it."""
        return torch.where(self.known, self.tokens, x_t)


Network = Callable[[Tensor, Tensor], Tensor]
"""(x_t: (B, L), t: () or (B,)) -> logits (B, L, V + 1): the network itself."""

Model = Callable[[Tensor, Tensor, Condition], Tensor]
"""(x_t: (B, L), t: () or (B,), cond) -> logits (B, L, V + 1)."""


def conditional(network: Network) -> Model:
    """A Model that writes the condition into x_t before it calls the network."""
    return lambda x_t, t, cond: network(cond.write(x_t), t)


def hide(cond: Condition, mask_id: int, which: Tensor | None = None) -> Condition:
    """The null condition: the same positions, hidden behind mask tokens; which (B, L) bool hides some of them alone."""
    hidden = cond.known if which is None else which
    return Condition(torch.where(hidden, mask_id, cond.tokens), cond.known)


def bind(model: Model, cond: Condition) -> Logits:
    """(x_t, t) -> model(x_t, t, cond)."""
    return lambda x_t, t: model(x_t, t, cond)


Scale = float | Callable[[Tensor], Tensor | float]
"""How strongly to guide: a number, or a function of t () or (B,) that gives () or (B,)."""

Interval = tuple[float, float]


def classifier_free(
    model: Model, cond: Condition, null: Condition, scale: Scale, *, interval: Interval = (0.0, 1.0)
) -> Logits:
    """Extrapolate from the null to the condition (arXiv:2207.12598, eq. 6), both branches as one batch.

        logits = logits_null + scale (logits_cond - logits_null);     scale 1 is the conditional model

    On logits and on log-probabilities this is the same after normalisation: they differ by a constant per position.
    interval: guide only where low <= t <= high (arXiv:2404.07724); elsewhere the conditional model alone.
    """
    both = Condition(torch.cat([cond.tokens, null.tokens]), torch.cat([cond.known, null.known]))  # (2 B, L)

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        times = torch.cat([t, t]) if t.ndim else t
        c, u = model(torch.cat([x_t, x_t]), times, both).chunk(2)
        return extrapolate(c, u, _scale(scale, interval, t))

    return _where_it_acts(bind(model, cond), guided, scale, interval)


def autoguidance(main: Logits, weak: Logits, scale: Scale, *, interval: Interval = (0.0, 1.0)) -> Logits:
    """weak + scale (main - weak), the weak one being a smaller or less trained model (arXiv:2406.02507)."""

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        return extrapolate(main(x_t, t), weak(x_t, t), _scale(scale, interval, t))

    return _where_it_acts(main, guided, scale, interval)


def extrapolate(main: Tensor, weak: Tensor, scale: float | Tensor) -> Tensor:
    """weak + scale (main - weak), main where one is -inf; main, weak: (B, L, V + 1); scale: a number, () or (B,)."""
    scale = scale[:, None, None].to(main) if isinstance(scale, Tensor) and scale.ndim else scale
    moved = torch.lerp(weak, main, scale.to(main) if isinstance(scale, Tensor) else scale)
    closed = torch.isneginf(main) | torch.isneginf(weak)  # -inf - -inf would be NaN
    return torch.where(closed, main, moved)


def _scale(scale: Scale, interval: Interval, t: Tensor) -> float | Tensor:
    """The scale at t: 1 outside the interval."""
    value = scale(t) if callable(scale) else scale
    if interval == (0, 1):
        return value
    inside = (t >= interval[0]) & (t <= interval[1])
    return torch.where(inside, value, 1.0)


def _where_it_acts(main: Logits, guided: Logits, scale: Scale, interval: Interval) -> Logits:
    """The guided model inside the interval and the main one outside, or the only one that is ever needed."""
    low, high = interval
    if not 0 <= low < high <= 1:
        raise ValueError(f"guidance interval {interval}, expected 0 <= low < high <= 1; (0, 1) guides everywhere")
    if not callable(scale) and scale == 1:
        return main
    if interval == (0, 1):
        return guided

    def where(x_t: Tensor, t: Tensor) -> Tensor:
        acts = bool(((t >= low) & (t <= high)).any())
        return guided(x_t, t) if acts else main(x_t, t)

    return where
