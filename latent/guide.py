"""Guidance: combinators that give a Denoise, so that no sampler knows that guidance exists.

Both ends of an extrapolation satisfy x_t = alpha x + sigma eps and its weights sum to 1, so the result satisfies it
too, and combining estimates equals combining raw outputs, whatever the prediction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor

from latent.predict import Cond, Denoise, Estimate, Model, bind

Tensors = TypeVar("Tensors", bound=tuple[Tensor, ...])


def classifier_free(
    model: Model[Cond], cond: Cond, null: Cond, scale: float, *, interval: tuple[float, float] = (0.0, 1.0)
) -> Denoise:
    """null + scale (cond - null), both branches as one batch (arXiv:2207.12598, eq. 6 with scale = 1 + w).

    cond, null: tuples of tensors (B, ...). scale: 1 is the conditional model and costs one branch; above 1 is guidance.
    interval: guide only where low <= t <= high, with t of shape () (arXiv:2404.07724); elsewhere the conditional model
    alone. Raises ValueError unless 0 <= low < high <= 1.
    """
    low, high = interval
    if not 0 <= low < high <= 1:
        raise ValueError(f"guidance interval {interval}, expected 0 <= low < high <= 1; (0, 1) guides everywhere")
    conditional = bind(model, cond)
    if scale == 1:
        return conditional
    both = _pair(cond, null)

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        if interval != (0, 1) and not low <= t <= high:
            return conditional(x_t, t)
        joined = model(torch.cat([x_t, x_t]), torch.cat([t, t]) if t.ndim else t, both)
        halves = [part.chunk(2) for part in joined]
        return _extrapolate(Estimate(*(c for c, _ in halves)), Estimate(*(n for _, n in halves)), scale)

    return denoise


def autoguidance(main: Denoise, weak: Denoise, scale: float) -> Denoise:
    """weak + scale (main - weak), the weak one being a smaller or less trained model (arXiv:2406.02507).

    scale: 1 is the main model alone.
    """
    if scale == 1:
        return main

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        return _extrapolate(main(x_t, t), weak(x_t, t), scale)

    return denoise


def _extrapolate(main: Estimate, weak: Estimate, scale: float) -> Estimate:
    return Estimate(weak.x + scale * (main.x - weak.x), weak.eps + scale * (main.eps - weak.eps))


def _pair(first: Tensors, second: Tensors) -> Tensors:
    parts: Iterable[Tensor] = [torch.cat([a, b]) for a, b in zip(first, second, strict=True)]
    make = getattr(type(first), "_make", type(first))  # a NamedTuple takes its fields one by one
    return make(parts)
