"""Fréchet distance without the bias of finite samples: a line through distances of subsets, read off at no bias."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.frechet import frechet_distance, moments
from eval.interval import Interval
from eval.rows import check_pair

LEAST = 4  # subsets: a line has two coefficients, and its error needs more


@dataclass(frozen=True, kw_only=True)
class FrechetInfinity:
    """Intercept of FD = value + bias / s over subsets of a share s of each set, with the points of the fit.

    se: standard error of the intercept by least squares. It tells how well the line fits; the subsets share rows, so
    another sample would move the value further than that (`interval`).
    """

    value: float
    se: float
    r2: float  # share of the points' variance that the line explains
    bias: float  # by how much the distance of the whole sets is too high
    points: tuple[tuple[int, int, float], ...]  # n, m and the distance of these subsets, for a chart over 1/n
    unevenness: float  # standard error of the value over that of the distance of the whole sets

    def interval(self, whole: Interval) -> Interval:
        """The value with its interval at these n and m; whole: `frechet_interval` of the same sets.

        To first order a distance is a mean over rows, so that the intercept is one that weighs rows by the subsets
        that drew them: its error is that of the whole sets' distance times the root of n sum w^2. Simulated at 2.5 to
        50 rows a dimension, 96 to 99 % of these intervals hold the mean, and nearly as many the true distance.
        """
        half = (whole.high - whole.value) * self.unevenness
        return Interval(self.value, self.value - half, self.value + half, whole.n, whole.df)


def frechet_infinity(
    a: ArrayLike, b: ArrayLike, *, points: int = 15, share: float = 0.5, both: bool = True, seed: int = 0
) -> FrechetInfinity:
    """Distance that infinitely many rows would have (arXiv:1911.07023, sec. 3.2, there of the generated side only).

        E[FD(n, m)] = FD + c / n + c' / m + ...,   n = s |a| and m = s |b|:   FD + (c / |a| + c' / |b|) / s

    a: (n, d), b: (m, d). Subsets without replacement, their shares s evenly spaced from `share` to 1. Along this ray
    one slope holds the bias of both sides, which is told more sharply than two. With `both=False` the second set stays
    whole and its bias stays in the value: the published protocol, b being the reference. The law needs subsets of
    several times as many rows as dimensions. Raises ValueError for bad features and sets that are too small.
    """
    x, y = check_pair(a, b)
    if points < LEAST or not 0 < share < 1:
        raise ValueError(f"points={points} and share={share} need points >= {LEAST} and 0 < share < 1")
    rng = np.random.default_rng(seed)
    n = _sizes(len(x), points, share, "first")
    m = _sizes(len(y), points, share, "second") if both else np.full(points, len(y))
    shares = _line(n)
    whole, weighed = moments(y), [np.zeros(len(x)), np.zeros(len(y))]
    found = []
    for i, j, share_of_line in zip(n, m, shares, strict=True):
        rows = [rng.permutation(len(x))[:i], rng.permutation(len(y))[:j] if both else np.arange(len(y))]
        for weights, chosen in zip(weighed, rows, strict=True):
            weights[chosen] += share_of_line / len(chosen)
        found.append(frechet_distance(x[rows[0]], y[rows[1]] if both else whole))
    uneven = max(len(weights) * float((weights**2).sum()) for weights in weighed)
    return _fit(n, m, np.array(found), float(np.sqrt(uneven)))


def _line(n: NDArray[np.int64]) -> NDArray[np.float64]:
    """What each point adds to the intercept of the line through all, (points,); sum 1."""
    return np.linalg.pinv(_design(n))[0]


def _design(n: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.column_stack([np.ones(len(n)), n[-1] / n])


def _fit(n: NDArray[np.int64], m: NDArray[np.int64], found: NDArray[np.float64], unevenness: float) -> FrechetInfinity:
    design = _design(n)
    coefficients = np.linalg.lstsq(design, found)[0]
    left = ((found - design @ coefficients) ** 2).sum()
    variance = left / (len(n) - 2) * np.linalg.inv(design.T @ design)[0, 0]
    spread = ((found - found.mean()) ** 2).sum()
    return FrechetInfinity(
        value=float(coefficients[0]),
        se=float(np.sqrt(variance)),
        r2=float(1 - left / spread) if spread else 1.0,
        bias=float(coefficients[1]),
        points=tuple((int(i), int(j), float(value)) for i, j, value in zip(n, m, found, strict=True)),
        unevenness=unevenness,
    )


def _sizes(rows: int, points: int, share: float, which: str) -> NDArray[np.int64]:
    sizes = np.linspace(share * rows, rows, points).round().astype(np.int64)
    if sizes[0] < 2 or len(np.unique(sizes)) < points:
        raise ValueError(
            f"the {which} set has {rows} rows, too few for {points} different sizes from share={share} of them on: "
            "pass fewer points or more rows"
        )
    return sizes
