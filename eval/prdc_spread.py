"""How far precision, recall, density and coverage move with the samples: each row is left out in turn, by counting.

A point j has a value t_j, such as whether some ball holds it. Leaving out the centre i of a ball changes it by e_ij:
the ball goes, and those of its neighbours grow to their next neighbour. The mean of t over p points has the variance

    var(t) / p  +  1/p^2 ( sum_i (sum_j e_ij)^2  -  sum_ij e_ij^2  -  1/b (sum_ij e_ij)^2 )

over both samples: points for themselves, and what pairs of points share by their centres. What a point shares with
itself is part of its own variance: counted twice, as the plain jackknife does, the error would be half as large again.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

MOST = 4_000_000  # pairs of balls and points in them that are kept: 36 MB, and several times as much to sum them

Array = NDArray[np.float64]


class Found(NamedTuple):
    """Balls and the points in them or in their next larger ones, (q,) each; whether they lie in the smaller one."""

    balls: NDArray[np.int32]
    points: NDArray[np.int32]
    inside: NDArray[np.bool_]
    number: int  # q, also where the pairs themselves were left out

    @classmethod
    def of(cls, within: NDArray[np.bool_], reach: NDArray[np.bool_], ball: int, point: int, before: int) -> "Found":
        """From whether balls (rows) and larger ones hold points (columns); ball, point: numbers of the first.

        before: how many this part has listed so far: none are where they would be too many.
        """
        count = int(np.count_nonzero(reach))
        if before + count > MOST:
            reach = np.zeros_like(reach)
        i, j = np.nonzero(reach)
        return cls((i + ball).astype(np.int32), (j + point).astype(np.int32), within[i, j], count)


@dataclass
class Pairs:
    """Pairs of all parts; too many are dropped."""

    balls: list[NDArray[np.int32]] = field(default_factory=list)
    points: list[NDArray[np.int32]] = field(default_factory=list)
    inside: list[NDArray[np.bool_]] = field(default_factory=list)
    count: int = 0

    def add(self, found: Found) -> None:
        """Take in the pairs of a part."""
        self.count += found.number
        if self.count > MOST:
            self.balls, self.points, self.inside = [], [], []
            return
        self.balls.append(found.balls)
        self.points.append(found.points)
        self.inside.append(found.inside)


@dataclass(frozen=True)
class Balls:
    """b balls over p points, all sparse."""

    inside: Any  # (b, p) points in a ball
    shell: Any  # (b, p) points between a ball and the next larger one
    near: Any  # (b, b) 1 at (l, i) where i is one of the k neighbours of l

    @classmethod
    def of(cls, pairs: Pairs, neighbours: NDArray[np.int64], points: int) -> Self | None:
        """neighbours: (b, k). None where there were too many pairs."""
        if pairs.count > MOST:
            return None
        balls, k = neighbours.shape
        i, j, inside = np.concatenate(pairs.balls), np.concatenate(pairs.points), np.concatenate(pairs.inside)

        def made(chosen: NDArray[np.bool_]) -> Any:
            ones = np.ones(int(chosen.sum()), dtype=np.float32)
            return sparse.csc_array((ones, (i[chosen], j[chosen])), shape=(balls, points))

        ones = np.ones(balls * k, dtype=np.float32)
        near = sparse.csr_array((ones, (np.repeat(np.arange(balls), k), neighbours.ravel())), shape=(balls, balls))
        return cls(made(inside), made(~inside), near)

    @property
    def gained(self) -> Any:
        """How many neighbours of a centre take a point in when it is left out, (b, p)."""
        return sparse.csc_array(self.near.T @ self.shell)


def share_variance(balls: Balls) -> float:
    """Variance of the share of points that some ball holds: precision, and with the sets exchanged recall."""
    around, gained = _sums(balls.inside, 0), balls.gained
    gained.data[:] = 1
    alone = balls.inside @ sparse.diags_array((around == 1).astype(np.float32))
    lost = alone - alone * gained  # unless another ball grows over the point
    return _variance(
        (around > 0).astype(np.float64), lost - gained @ sparse.diags_array((around == 0).astype(np.float32))
    )


def density_variance(balls: Balls) -> float:
    """Variance of the mean number of balls around a point, over k."""
    k = balls.near.nnz / balls.near.shape[0]
    return _variance(_sums(balls.inside, 0), balls.inside - balls.gained) / k**2


def coverage_variance(balls: Balls) -> float:
    """Variance of the share of balls that hold a point: balls have the values, and share what rows of both kinds do."""
    held, b = _sums(balls.inside, 1), balls.inside.shape[0]
    value = (held > 0).astype(np.float64)
    alone = sparse.diags_array((held == 1).astype(np.float32)) @ balls.inside
    by_points = _shared(_sums(alone, 0), float(alone.sum()))
    opened = ((held == 0) & (_sums(balls.shell, 1) > 0)).astype(np.float32)  # by any one neighbour less
    gains = np.asarray(balls.near.T @ opened, dtype=np.float64)
    own = value - value.mean() - gains
    by_centres = ((own - own.mean()) ** 2).sum() - gains.sum()
    return float(max(by_centres, value.var() * b) + by_points) / b**2


def _variance(values: Array, effects: Any) -> float:
    """The formula above: values (p,), effects (b, p)."""
    p = len(values)
    return float(
        values.var(ddof=1) / p + _shared(_sums(effects, 1), float((effects.data.astype(float) ** 2).sum())) / p**2
    )


def _shared(effects: Array, own: float) -> float:
    """What pairs of values share by the rows that are left out, >= 0; effects: sums over the values, (rows,)."""
    return float(max(0.0, (effects**2).sum() - own - effects.sum() ** 2 / len(effects)))


def _sums(matrix: Any, axis: int) -> Array:
    return np.asarray(matrix.sum(axis), dtype=np.float64).ravel()
