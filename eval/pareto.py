"""Of points that are judged by two figures: those that no other beats in both, and where giving up one buys little."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def front(gain: ArrayLike, cost: ArrayLike) -> list[int]:
    """The Pareto front: the points that no other one beats, by rising gain.

        i is beaten by j where gain_j >= gain_i and cost_j <= cost_i, and one of the two is strict

    gain, cost: (n,); points that are not finite are left out, and of equal points the first stands for all. Both rise
    along the front: more gain costs more. Raises ValueError for unequal lengths.
    """
    x, y = np.asarray(gain, dtype=np.float64), np.asarray(cost, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"a front needs one gain and one cost for each point, got shapes {x.shape} and {y.shape}")
    kept, least = list[int](), np.inf
    for i in np.lexsort((np.arange(len(x)), y, -x)):  # most gain first, of equal gain the cheapest
        if np.isfinite(x[i]) and np.isfinite(y[i]) and y[i] < least:
            kept.append(int(i))
            least = y[i]
    return kept[::-1]


def knee(gain: Sequence[float], cost: Sequence[float]) -> int | None:
    """The place on a front, (n,) by rising gain, of the point farthest on the better side of the line between its ends.

        argmax_i  u_i - v_i > 0,   u, v: gain and cost of the front, each scaled so that its ends are 0 and 1

    Up to the knee gain is cheaper than on average over the front, behind it dearer. None where the front has fewer than
    three points, or none of them lies on the better side. Of equal points it is the first, the one of least cost.
    """
    if len(gain) < 3:
        return None
    u, v = ((np.asarray(part, dtype=np.float64) - part[0]) / (part[-1] - part[0]) for part in (gain, cost))
    best = int(np.argmax(u - v))
    return best if (u - v)[best] > 0 else None
