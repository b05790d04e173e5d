"""Rules that keep strong guidance from overexposing a sample; all reductions run over one item, never over the batch.

They act on x (or on the velocity), whatever the network predicts, so that a rule means the same for every prediction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latent.guide.pair import Rule, extrapolate
from latent.guide.shift import difference, shifted
from latent.predict import Estimate, estimate, target
from latent.schedule import Schedule, expand


def rescaled(schedule: Schedule, scale: float, factor: float = 0.7) -> Rule:
    """Bring the contrast of the guided x back to that of the main x (arXiv:2305.08891, section 3.4).

        x = weak + scale (main - weak),   x <- factor x std(main) / std(x) + (1 - factor) x

    factor: 0 is plain guidance, 1 keeps the standard deviation of main; 0.7 is the paper's. The paper applies it to the
    network's output, here it is x. Raises ValueError for a factor outside [0, 1].
    """
    if not 0 <= factor <= 1:
        raise ValueError(f"guidance rescale factor is {factor}, expected 0 <= factor <= 1; 0 is plain guidance")

    def rule(main: Estimate, weak: Estimate, x_t: Tensor, t: Tensor) -> Estimate:
        guided = extrapolate(main, weak, scale)
        both, wanted, found = guided.x + main.x, _deviation(main.x), _deviation(guided.x)
        excess = (scale - 1) * _covariance(difference(main, weak, schedule, t), both)  # found^2 - wanted^2
        missing = _over(-excess, found * (found + wanted))  # wanted / found - 1, precise where they are close
        return shifted(guided, schedule, factor * expand(missing, x_t) * guided.x, t)

    return rule


def projected(
    schedule: Schedule, scale: float, *, parallel: float = 0.0, threshold: float = 15.0, momentum: float = -0.5
) -> Rule:
    """Adaptive projected guidance: leave out what only saturates (arXiv:2410.02416).

        m <- main - weak + momentum m,   d = m min(1, threshold / |m|)
        x = main + (scale - 1) (d_orthogonal + parallel d_parallel),   the parts being those across and along main

    The defaults are the paper's for Stable Diffusion XL, with latents (4, 128, 128); the norm grows with the root of
    the number of elements, so the same threshold for n elements is 15 sqrt(n / 65536). parallel = 1, threshold =
    infinity and momentum = 0 are plain guidance.

    The rule remembers m over the steps of a trajectory and forgets it where t grows, so that one rule serves many
    batches in turn, but not two at once. Calls at one time count once (Heun makes two). A sampler that adds noise by
    going back in time starts anew each time. Raises ValueError unless threshold > 0 and |momentum| < 1.
    """
    if not threshold > 0:
        raise ValueError(f"guidance threshold is {threshold}, expected above 0; math.inf switches it off")
    if not abs(momentum) < 1:
        raise ValueError(f"guidance momentum is {momentum}, expected -1 < momentum < 1; 0 switches it off")
    average = _Momentum(momentum)

    def rule(main: Estimate, weak: Estimate, x_t: Tensor, t: Tensor) -> Estimate:
        m = average(difference(main, weak, schedule, t), t)
        length = _dot(m, m).sqrt()
        d = expand(_over(length.clamp(max=threshold), length), x_t) * m
        along = expand(_over(_dot(d, main.x), _dot(main.x, main.x)), x_t) * main.x
        return shifted(main, schedule, (scale - 1) * (d - (1 - parallel) * along), t)

    return rule


def zero_star(schedule: Schedule, scale: float, *, zero_above: float = 0.96) -> Rule:
    """CFG-Zero*: fit the weak velocity to the main one, and stand still at first (arXiv:2503.18886).

        v = s weak + scale (main - s weak),   s = <main, weak> / |weak|^2,   v = 0 where t > zero_above

    weak, main and v are dx_t/dt. The paper runs the first K of N steps at velocity 0. A step starts at times[i], so
    zero_above = times[K] is just that, on any grid; on an even one it is 1 - K / N. The default is the paper's 4 % of
    an even grid (at least the first step); on a shifted grid pass times[K]. 1 never stands still. Made for straight
    paths (`Flow`). Raises ValueError unless 0 < zero_above <= 1.
    """
    if not 0 < zero_above <= 1:
        raise ValueError(f"zero_above is {zero_above}, expected 0 < zero_above <= 1; 1 switches it off")

    def rule(main: Estimate, weak: Estimate, x_t: Tensor, t: Tensor) -> Estimate:
        ahead, behind = (target("velocity", schedule, *part, t) for part in (main, weak))
        fitted = expand(_over(_dot(ahead, behind), _dot(behind, behind)), x_t) * behind
        moving = expand(t <= zero_above, x_t)
        return estimate("velocity", schedule, x_t, moving * (fitted + scale * (ahead - fitted)), t)

    return rule


class _Momentum:
    """m <- value + beta m over decreasing times; a time that is repeated replaces its value."""

    def __init__(self, beta: float) -> None:
        self.beta, self.time = beta, -math.inf
        self.earlier: Tensor | float = 0.0  # m at the time before
        self.latest: Tensor | float = 0.0

    def __call__(self, value: Tensor, t: Tensor) -> Tensor:
        time = t.max().item()
        if time != self.time:
            self.earlier = self.latest if time < self.time else 0.0
        self.time, self.latest = time, value + self.beta * self.earlier
        return self.latest


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)  # (B,)


def _covariance(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten(1), b.flatten(1)
    return ((a - a.mean(1, keepdim=True)) * (b - b.mean(1, keepdim=True))).mean(1)  # (B,)


def _deviation(x: Tensor) -> Tensor:
    return _covariance(x, x).sqrt()  # (B,)


def _over(a: Tensor, b: Tensor) -> Tensor:
    """a / b with 0 / 0 = 0: a network that starts at zero gives nothing to project on or to fit."""
    return a / b.clamp(min=torch.finfo(b.dtype).tiny)
