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


def hide(cond: Condition, mask_id: int) -> Condition:
    """The null condition: the same positions, hidden behind mask tokens."""
    return Condition(torch.full_like(cond.tokens, mask_id), cond.known)


def bind(model: Model, cond: Condition) -> Logits:
    """(x_t, t) -> model(x_t, t, cond)."""
    return lambda x_t, t: model(x_t, t, cond)


def classifier_free(model: Model, cond: Condition, null: Condition, scale: float) -> Logits:
    """Extrapolate from the null to the condition (arXiv:2207.12598, eq. 6), both branches as one batch.

        logits = logits_null + scale (logits_cond - logits_null);     scale 1 is the conditional model

    On logits and on log-probabilities this is the same after normalisation: they differ by a constant per position.
    """
    if scale == 1:
        return bind(model, cond)
    both = Condition(torch.cat([cond.tokens, null.tokens]), torch.cat([cond.known, null.known]))  # (2 B, L)

    def logits(x_t: Tensor, t: Tensor) -> Tensor:
        times = torch.cat([t, t]) if t.ndim else t
        c, u = model(torch.cat([x_t, x_t]), times, both).chunk(2)
        return torch.where(torch.isneginf(c), c, torch.lerp(u, c, scale))  # -inf - -inf would be NaN

    return logits
