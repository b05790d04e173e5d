"""Fréchet distance without the bias of finite samples: a line through distances of subsets, read off at no bias."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.frechet import frechet_distance, moments
from eval.rows import check_pair

LEAST = 4  # subsets: a line has two coefficients, and its error needs more


@dataclass(frozen=True, kw_only=True)
class FrechetInfinity:
    """Intercept of FD = value + bias / s over subsets of a share s of each set, with the points of the fit.

    se: standard error of the intercept by least squares. It tells how well the line fits; the subsets share rows, so
    another sample would move the value further than that (by how much, `frechet_interval` knows).
    """

    value: float
    se: float
    r2: float  # share of the points' variance that the line explains
    bias: float  # by how much the distance of the whole sets is too high
    points: tuple[tuple[int, int, float], ...]  # n, m and the distance of these subsets, for a chart over 1/n


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
    whole = moments(y)
    sides = ((_drawn(x, i, rng), _drawn(y, j, rng) if both else whole) for i, j in zip(n, m, strict=True))
    return _fit(n, m, np.array([frechet_distance(*side) for side in sides]))


def _fit(n: NDArray[np.int64], m: NDArray[np.int64], found: NDArray[np.float64]) -> FrechetInfinity:
    design = np.column_stack([np.ones(len(n)), n[-1] / n])
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
    )


def _sizes(rows: int, points: int, share: float, which: str) -> NDArray[np.int64]:
    sizes = np.linspace(share * rows, rows, points).round().astype(np.int64)
    if sizes[0] < 2 or len(np.unique(sizes)) < points:
        raise ValueError(
            f"the {which} set has {rows} rows, too few for {points} different sizes from share={share} of them on: "
            "pass fewer points or more rows"
        )
    return sizes


def _drawn(x: NDArray[np.float64], rows: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return x[rng.permutation(len(x))[:rows]]
