"""The two pairs of estimates that guidance combines, and the plain rule.

Both ends of an extrapolation satisfy x_t = alpha x + sigma eps and its weights sum to 1, so the result satisfies it
too, and combining estimates equals combining raw outputs, whatever the prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from latent.predict import Cond, Denoise, Estimate, Model, bind
from latent.schedule import expand

Tensors = TypeVar("Tensors", bound=tuple[Tensor, ...])

Rule = Callable[[Estimate, Estimate, Tensor, Tensor], Estimate]
"""(main, weak, x_t (B, ...), t ()) -> the guided estimate, which satisfies x_t = alpha x + sigma eps like both."""

Interval = tuple[float, float]


def extrapolate(main: Estimate, weak: Estimate, scale: float | Tensor) -> Estimate:
    """weak + scale (main - weak), for x and for eps. scale: a number, or a tensor () or (B,)."""
    if not isinstance(scale, Tensor):
        return Estimate(torch.lerp(weak.x, main.x, scale), torch.lerp(weak.eps, main.eps, scale))
    scale = expand(scale, main.x)
    return Estimate(weak.x + scale * (main.x - weak.x), weak.eps + scale * (main.eps - weak.eps))


def classifier_free(
    model: Model[Cond], cond: Cond, null: Cond, scale: float | Rule, *, interval: Interval = (0.0, 1.0)
) -> Denoise:
    """null + scale (cond - null), both branches as one batch (arXiv:2207.12598, eq. 6 with scale = 1 + w).

    cond, null: tuples of tensors (B, ...). scale: 1 is the conditional model and costs one branch; above 1 is guidance;
    or a rule, with cond as main and null as weak. interval: guide only where low <= t <= high, with t of shape ()
    (arXiv:2404.07724); elsewhere the conditional model alone. Raises ValueError unless 0 <= low < high <= 1.
    """
    both, rule = _joined(cond, null), _rule(scale)

    def guided(x_t: Tensor, t: Tensor) -> Estimate:
        found = model(torch.cat([x_t, x_t]), torch.cat([t, t]) if t.ndim else t, both)
        x, eps = found.x.chunk(2), found.eps.chunk(2)
        return rule(Estimate(x[0], eps[0]), Estimate(x[1], eps[1]), x_t, t)

    return _where_it_acts(bind(model, cond), guided, scale, interval)


def autoguidance(main: Denoise, weak: Denoise, scale: float | Rule, *, interval: Interval = (0.0, 1.0)) -> Denoise:
    """weak + scale (main - weak), the weak one being a smaller or less trained model (arXiv:2406.02507).

    scale: 1 is the main model alone; or a rule. interval: as in `classifier_free`, with the main model elsewhere.
    """
    rule = _rule(scale)

    def guided(x_t: Tensor, t: Tensor) -> Estimate:
        return rule(main(x_t, t), weak(x_t, t), x_t, t)

    return _where_it_acts(main, guided, scale, interval)


def _rule(scale: float | Rule) -> Rule:
    if callable(scale):
        return scale
    return lambda main, weak, x_t, t: extrapolate(main, weak, scale)


def _where_it_acts(main: Denoise, guided: Denoise, scale: float | Rule, interval: Interval) -> Denoise:
    """The guided model inside the interval and the main one outside, or the only one that is ever needed."""
    low, high = interval
    if not 0 <= low < high <= 1:
        raise ValueError(f"guidance interval {interval}, expected 0 <= low < high <= 1; (0, 1) guides everywhere")
    if scale == 1:
        return main
    if interval == (0, 1):
        return guided

    def where(x_t: Tensor, t: Tensor) -> Estimate:
        if t.ndim:
            raise ValueError(
                f"guidance within {interval} at times {tuple(t.shape)}, expected one time () for the batch"
            )
        return guided(x_t, t) if low <= t <= high else main(x_t, t)

    return where


def _joined(first: Tensors, second: Tensors) -> Tensors:
    parts: Iterable[Tensor] = [torch.cat([a, b]) for a, b in zip(first, second, strict=True)]
    make = getattr(type(first), "_make", type(first))  # a NamedTuple takes its fields one by one
    return make(parts)
