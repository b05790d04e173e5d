"""Jackknife intervals of any measure of two sets, over disjoint blocks of both."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eval.interval import Interval, jackknife

Measure = Callable[[NDArray, NDArray], float]


def over_blocks(measure: Measure, a: NDArray, b: NDArray, *, blocks: int = 10) -> Interval:
    """measure(a, b) with its jackknife interval over `blocks` parts of the rows of a (n, d) and b (m, d).

    Parts are runs of neighbouring rows, left out of both sets together. It says how far the value *at these sizes*
    moves with the samples. Below four rows there is no interval but [-inf, inf]. Costs blocks + 1 measures; n counts
    rows of the smaller set.
    """
    smaller, value = min(len(a), len(b)), measure(a, b)
    if smaller < 4:
        return Interval(value, -np.inf, np.inf, smaller)
    parts = [np.array_split(np.arange(len(rows)), min(blocks, smaller // 2)) for rows in (a, b)]
    without = [measure(np.delete(a, i, 0), np.delete(b, j, 0)) for i, j in zip(*parts, strict=True)]
    return replace(jackknife(value, without), n=smaller)
