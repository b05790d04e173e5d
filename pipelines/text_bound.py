"""How well a masked model knows captions: the bound on their negative log-likelihood, with low variance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from discrete.corrupt import mask_exact_count, mean_over_strata
from discrete.layout import Layout
from discrete.loss import exact_count_nelbo
from discrete.model import MaskedTransformer
from discrete.predict import subs
from pipelines.hardware import device_of, step_generator

BATCH = 256


@dataclass(frozen=True)
class CaptionBound:
    """Upper bounds on -log p of each caption: `nats` (N,) float64, padding included; `tokens` (N,), without it."""

    nats: Tensor
    tokens: Tensor

    @property
    def per_token(self) -> float:
        """All nats over caption and end tokens. Padding follows from the end: its nats count, its tokens do not."""
        return float(self.nats.sum() / self.tokens.sum())


@torch.no_grad()
def caption_bound(
    network: MaskedTransformer, layout: Layout, text: Tensor, pad_id: int, *, rounds: int | None = None, seed: int = 0
) -> CaptionBound:
    """Average the exact-count estimator over `rounds` counts spread evenly over 1..L (all L of them by default).

    text: (N, L) token ids. The captions stand alone, without a picture.
    """
    length = layout.text_length
    device, totals = device_of(network), []
    for number, part in enumerate(text.split(BATCH)):
        x, generator = part.to(device), step_generator(seed, number, 0)

        def cost(u: Tensor, x: Tensor = x, generator: torch.Generator = generator) -> Tensor:
            count = (u * length).long() + 1
            x_t = mask_exact_count(x, count, mask_id=layout.mask_id, generator=generator)
            log_probs = subs(network.logits(x_t, count / length), x_t, layout.mask_id)
            return exact_count_nelbo(log_probs, x, x_t, mask_id=layout.mask_id)

        totals.append(mean_over_strata(cost, len(x), rounds or length, generator, device).cpu())
    return CaptionBound(torch.cat(totals), (text != pad_id).sum(1))
