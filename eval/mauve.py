"""MAUVE: how far two sets of texts overlap, from their features, with the spread that the clustering alone causes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.integrate import trapezoid
from scipy.special import rel_entr

from eval.interval import Interval
from eval.rows import check_pair, unit_rows

SCALE = 5.0  # c of the paper, in exp(-c KL)
POINTS = 25  # mixture weights of the paper
SEEDS = range(5)
ROWS_PER_CLUSTER = 10
LEAST = 2 * ROWS_PER_CLUSTER  # rows of a set: fewer do not fill two clusters
VARIANCE = 0.9  # share that the principal components keep
ROUNDS = 100  # of Lloyd's algorithm at most


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over seeds of k-means: how much the clustering moves it. The sampling of the texts is not in it."""

    mean: float
    sd: float  # of one seed; NaN with a single seed
    low: float
    high: float
    seeds: int

    def interval(self) -> Interval:
        """The mean between the smallest and the largest value; n counts seeds."""
        return Interval(self.mean, self.low, self.high, self.seeds)


@dataclass(frozen=True, kw_only=True)
class Mauve:
    """Overlap of two sets of texts under one embedder. Figures compare at equal embedder, k, n and m only."""

    mauve: Spread  # in (0, 1], higher is closer
    smoothed: Spread  # MAUVE*: the same with add-1/2 histograms
    frontier_integral: Spread  # in [0, 1], lower is closer
    embedder: str
    k: int  # clusters
    n: int  # rows of the first set
    m: int  # rows of the second set

    def label(self, figure: str = "mauve") -> str:
        """Name of a figure with all that it hangs on, as in `mauve[own-ar|k=50|n=500/500]`."""
        return f"{figure}[{self.embedder}|k={self.k}|n={self.n}/{self.m}]"


def mauve(
    a: ArrayLike, b: ArrayLike, *, embedder: str, clusters: int | None = None, seeds: Sequence[int] = SEEDS
) -> Mauve:
    """MAUVE (arXiv:2102.01454), MAUVE* and the frontier integral (arXiv:2212.14578) from features of texts.

    Rows of length one, principal components of 90 % of the joint variance, k-means on both sets together, and per seed
    the figures of the two histograms. Exchanging the sets or reordering rows changes nothing.

    a: (n, d), b: (m, d) from one embedder, which the caller names. clusters: by default a tenth of the smaller set;
    never more than there are distinct rows. Two halves of the real set at the same n show what no difference at all
    would score: below 1. Raises ValueError for small sets, unequal widths, rows of zeros, or no seed.
    """
    x, y = check_pair(a, b)
    smaller = min(len(x), len(y))
    _check_request(smaller, clusters, seeds)
    rows, inverse, weights = np.unique(
        unit_rows(np.concatenate([x, y])), axis=0, return_inverse=True, return_counts=True
    )  # sorted, so that the order of the texts cannot matter
    points, inverse = principal(rows, weights), inverse.reshape(-1)
    k = min(clusters or round(smaller / ROWS_PER_CLUSTER), len(rows))
    figures = []
    for seed in seeds:
        codes = kmeans(points, weights, k, np.random.default_rng(seed))[inverse]  # (n + m,)
        p, q = np.bincount(codes[: len(x)], minlength=k), np.bincount(codes[len(x) :], minlength=k)
        figures.append((mauve_of(p, q), mauve_of(smooth(p), smooth(q)), frontier_integral(p, q)))
    plain, smoothed, integral = (_spread(values) for values in zip(*figures, strict=True))
    return Mauve(mauve=plain, smoothed=smoothed, frontier_integral=integral, embedder=embedder, k=k, n=len(x), m=len(y))


def mauve_of(p: ArrayLike, q: ArrayLike, *, scale: float = SCALE, points: int = POINTS) -> float:
    """Area under the divergence frontier of two histograms: 1 for equal ones, c B(c + 1, c) for disjoint ones.

    p, q: (k,), counts or shares. The trapezoid over 25 points is part of the definition; more points move it slightly.
    """
    frontier = divergence_frontier(p, q, scale=scale, points=points)
    return float(trapezoid(frontier[::-1, 1], frontier[::-1, 0]))


def divergence_frontier(
    p: ArrayLike, q: ArrayLike, *, scale: float = SCALE, points: int = POINTS
) -> NDArray[np.float64]:
    """The curve whose area is MAUVE, from (1, 0) to (0, 1) (arXiv:2102.01454, divergence curve).

        (exp(-c KL(q | r)), exp(-c KL(p | r))),   r = w p + (1 - w) q,   0 < w < 1

    p, q: (k,). Returns (points + 2, 2), both corners included, the first coordinate falling and the second rising.
    """
    first, second = _histograms(p, q)
    w = np.linspace(1e-6, 1 - 1e-6, points)[:, None]  # inside (0, 1): both divergences are finite
    mixture = w * first + (1 - w) * second  # (points, k)
    nats = np.stack([rel_entr(second, mixture).sum(1), rel_entr(first, mixture).sum(1)], 1)
    return np.concatenate([[[1.0, 0.0]], np.exp(-scale * nats), [[0.0, 1.0]]])


def frontier_integral(p: ArrayLike, q: ArrayLike) -> float:
    """Mean cost of coding both histograms by their mixtures, in [0, 1]: 0 for equal ones, 1 for disjoint ones.

        2 int_0^1 w KL(p | r) + (1 - w) KL(q | r) dw = sum (p + q) / 2 - p q ln(p / q) / (p - q),   r = w p + (1 - w) q

    p, q: (k,), counts or shares (arXiv:2106.07898; arXiv:2212.14578). It has no scale c and no grid.
    """
    first, second = _histograms(p, q)
    both = (first > 0) & (second > 0)
    half = (np.log(first[both]) - np.log(second[both])) / 2
    shrink = np.divide(half, np.sinh(half), out=np.ones_like(half), where=half != 0)
    shared = np.sqrt(first[both] * second[both]) * shrink  # p q ln(p / q) / (p - q) without 0 / 0 at p = q
    return max(0.0, float(1 - shared.sum()))


def smooth(counts: ArrayLike) -> NDArray[np.float64]:
    """Krichevsky-Trofimov estimate (counts + 1/2) / (n + k/2) of a histogram (k,): no empty cluster is impossible."""
    raised = np.asarray(counts, np.float64) + 0.5
    return raised / raised.sum()


def principal(x: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """Scores of rows (n, d) on the fewest principal components that hold 90 % of the variance; (n, r).

    weights: (n,), how often each row stands in the set.
    """
    rows, w = np.asarray(x, np.float64), np.asarray(weights, np.float64)
    centred = rows - w @ rows / w.sum()
    _, singular, axes = np.linalg.svd(np.sqrt(w)[:, None] * centred, full_matrices=False)
    held = np.cumsum(singular**2)
    rank = int(np.argmax(held >= VARIANCE * held[-1])) + 1
    return centred @ axes[:rank].T


def kmeans(x: NDArray[np.float64], weights: NDArray, k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Cluster of each row: Lloyd's algorithm from k-means++ seeds until nothing moves, at most ROUNDS times.

    x: (n, d) distinct rows; weights: (n,), how often each occurs; k <= n. A cluster that empties keeps its centre.
    """
    centres, codes = _plus_plus(x, weights, k, rng), np.full(len(x), -1)
    for _ in range(ROUNDS):
        moved = np.argmin((centres**2).sum(1) - 2 * (x @ centres.T), 1)  # |x|^2 is the same for every centre
        if (moved == codes).all():
            break
        codes = moved
        sums = sparse.csr_array((weights.astype(np.float64), (codes, np.arange(len(x)))), shape=(k, len(x))) @ x
        totals = np.bincount(codes, weights, minlength=k)
        centres = np.where(totals[:, None] > 0, sums / np.maximum(totals, 1)[:, None], centres)
    return codes


def _plus_plus(x: NDArray[np.float64], weights: NDArray, k: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """k rows as first centres, each drawn by its squared distance to those before (Arthur and Vassilvitskii 2007)."""
    chosen = [int(rng.choice(len(x), p=weights / weights.sum()))]
    nearest = ((x - x[chosen[0]]) ** 2).sum(1)
    while len(chosen) < k and nearest.any():
        mass = weights * nearest
        chosen.append(int(rng.choice(len(x), p=mass / mass.sum())))
        nearest = np.minimum(nearest, ((x - x[chosen[-1]]) ** 2).sum(1))
    rest = np.setdiff1d(np.arange(len(x)), chosen)[: k - len(chosen)]  # rows that coincide after the projection
    return x[[*chosen, *rest]]


def _check_request(smaller: int, clusters: int | None, seeds: Sequence[int]) -> None:
    if smaller < LEAST:
        raise ValueError(
            f"MAUVE got {smaller} texts in the smaller set but needs at least {LEAST}, and 5,000 for figures like the "
            "paper's: sample more texts"
        )
    if clusters is not None and not 2 <= clusters <= smaller:
        raise ValueError(f"clusters={clusters} needs 2 <= clusters <= {smaller}, the smaller set: about a tenth of it")
    if not len(seeds):
        raise ValueError("seeds is empty but one k-means seed moves MAUVE by 0.05: pass several, as range(5)")


def _histograms(p: ArrayLike, q: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"histograms need one shape (k,), got {first.shape} and {second.shape}: use the same clusters")
    for shares in (first, second):
        if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
            raise ValueError(f"a histogram needs finite entries >= 0 with a sum above 0, got {shares}: pass counts")
    return first / first.sum(), second / second.sum()


def _spread(values: Sequence[float]) -> Spread:
    x = np.array(values)
    sd = float(x.std(ddof=1)) if len(x) > 1 else float("nan")
    return Spread(mean=float(x.mean()), sd=sd, low=float(x.min()), high=float(x.max()), seeds=len(x))
