"""Averages of weights by power functions, and any length of them made afterwards from a few (arXiv:2312.02696, sec. 3).

An average at step t weighs the weights of the steps before it by the profile

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),   0 < tau <= t,

whose width is a fixed share of t, the relative length sigma_rel. A recursion gives it, exactly where the weights are
constant between steps: theta_hat(t) = beta theta_hat(t - 1) + (1 - beta) theta(t) with beta = (1 - 1/t)^(gamma + 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LONGEST = 1 / math.sqrt(12)  # the relative length of gamma = 0, the mean of all steps


class Profile(NamedTuple):
    """An average of exponent gamma, at step t."""

    gamma: float
    t: float


def length_of(gamma: float) -> float:
    """The standard deviation of a profile as a share of its t: sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3)))."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def exponent(length: float) -> float:
    """The exponent gamma >= 0 of a relative length: the largest root of what `length_of` inverts, a cubic.

    Raises ValueError for lengths outside (0, LONGEST].
    """
    if not 0 < length <= LONGEST:
        raise ValueError(f"an average of length {length:g}, expected a share above 0, up to {LONGEST:.4f}")
    inverse = length**-2
    return float(max(root.real for root in np.roots([1, 7, 16 - inverse, 12 - inverse])))


def beta(gamma: float, t: int) -> float:
    """The decay of the recursion at step t, counted from 1: the first step forgets what was before it."""
    return (1 - 1 / t) ** (gamma + 1)


def products(first: Sequence[Profile], second: Sequence[Profile]) -> NDArray[np.float64]:
    """Inner products of unit profiles, (N, M), each p divided by its norm (appendix C, with the norms divided out).

    integral p q = (a + 1)(b + 1) / (a + b + 1) * m^(a + b + 1) / (t^(a + 1) s^(b + 1)),   m = min(t, s)
    """
    a, t = (np.array(column, float)[:, None] for column in zip(*first, strict=True))
    b, s = (np.array(column, float)[None, :] for column in zip(*second, strict=True))
    m = np.minimum(t, s)
    powers = (a + 0.5) * np.log(m / t) + (b + 0.5) * np.log(m / s)  # logarithms: a step to the 17th is no float64
    return np.exp(powers) * np.sqrt((2 * a + 1) * (2 * b + 1)) / (a + b + 1)


def norms(profiles: Sequence[Profile]) -> NDArray[np.float64]:
    """The L2 norms of profiles, (N,): (gamma + 1) / sqrt((2 gamma + 1) t)."""
    gamma, t = (np.array(column, float) for column in zip(*profiles, strict=True))
    return (gamma + 1) / np.sqrt((2 * gamma + 1) * t)


def synthesis(kept: Sequence[Profile], wanted: Profile) -> tuple[NDArray[np.float64], float]:
    """Return the factors (N,) of kept averages whose sum is nearest to a wanted one, and how far it is.

    The factors solve least squares over the profiles (appendix C). The error is the L2 distance of the two profiles as
    a share of the wanted one's norm: 0 where it is met exactly, 1 where nothing of it is.
    """
    gram, aims = products(kept, kept), products(kept, [wanted])[:, 0]
    unit = np.linalg.lstsq(gram, aims, rcond=1e-13)[0]
    error = math.sqrt(max(0.0, 1 - 2 * aims @ unit + unit @ gram @ unit))
    return unit * norms([wanted])[0] / norms(kept), error
