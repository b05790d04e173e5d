"""Intervals of shares, means and smooth statistics: Wilson, Student t, the jackknife, and a bootstrap over prompts."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Clusters = Sequence[Hashable] | NDArray
RESAMPLES = 2000
BLOCK = 4_000_000  # bootstrap indices held in memory at once


@dataclass(frozen=True)
class Interval:
    """A value with its interval [low, high]; n counts the independent units (clusters where there are any)."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: float, n: int, *, confidence: float = 0.95) -> Interval:
    """Score interval of a share (Wilson 1927), centred at (s + z^2/2) / (n + z^2).

    Raises ValueError unless 0 <= successes <= n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a share needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = stats.norm.ppf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return Interval(share, low, high, n)


def mean_interval(
    values: ArrayLike, clusters: Clusters | None = None, *, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Mean of values (n,): Student t where every value stands alone, bootstrap over clusters where some share one.

    A single value has no spread: its interval is [-inf, inf]. Raises ValueError for empty or non-finite values.
    """
    x = _finite(values)
    if clusters is not None and not _alone(x, clusters):
        return cluster_bootstrap(x, clusters, seed=seed, confidence=confidence)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, -np.inf, np.inf, 1)
    half = float(stats.t.ppf(0.5 + confidence / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half, len(x))


def share_interval(
    values: ArrayLike, clusters: Clusters | None = None, *, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Share of values in [0, 1]: Wilson where every value stands alone, bootstrap over clusters where some share one.

    All right or all wrong leaves a bootstrap without spread: then Wilson over the number of clusters, never [1, 1].
    """
    x = _finite(values)
    if x.min() < 0 or x.max() > 1:
        raise ValueError(f"a share is made of values in [0, 1], got [{x.min()}, {x.max()}]")
    if clusters is None or _alone(x, clusters):
        return wilson(float(x.sum()), len(x), confidence=confidence)
    if x.min() == x.max() and x.min() in (0, 1):
        n = len(np.unique(_codes(clusters)))
        return wilson(float(x[0]) * n, n, confidence=confidence)
    return cluster_bootstrap(x, clusters, seed=seed, confidence=confidence)


def paired(
    a: ArrayLike, b: ArrayLike, clusters: Clusters | None = None, *, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Interval of mean(a - b) over the same items: what two models share (the prompt's difficulty) cancels."""
    first, second = _finite(a), _finite(b)
    if first.shape != second.shape:
        raise ValueError(f"paired values need equal lengths, got {len(first)} and {len(second)}")
    return mean_interval(first - second, clusters, seed=seed, confidence=confidence)


def cluster_bootstrap(
    values: ArrayLike, clusters: Clusters, *, seed: int = 0, confidence: float = 0.95, weights: ArrayLike | None = None
) -> Interval:
    """Percentile interval of sum(values) / sum(weights) over RESAMPLES draws of whole clusters; weights default to 1.

    With weights this is a ratio, such as total nats over total characters. values, weights: (n,). A single cluster has
    no spread: its interval is [-inf, inf].
    """
    x, codes = _finite(values), _codes(clusters)
    w = np.ones_like(x) if weights is None else _finite(weights)
    if not len(x) == len(codes) == len(w):
        raise ValueError(f"{len(x)} values, {len(codes)} cluster ids and {len(w)} weights: the lengths must agree")
    sums, totals = np.bincount(codes, x), np.bincount(codes, w)  # (k,) each
    if len(sums) == 1:
        return Interval(float(x.sum() / w.sum()), -np.inf, np.inf, 1)
    draws = _resample(sums, totals, np.random.default_rng(seed))
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(x.sum() / w.sum()), float(low), float(high), len(sums))


def jackknife(value: float, without: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Interval of a smooth statistic of n items from its values without each of them in turn (Efron 1981), (n,).

        value -+ t s,   s^2 = (n - 1) / n sum_i (v_i - mean v)^2

    One item alone has no spread: its interval is [-inf, inf].
    """
    v = _finite(without)
    n = len(v)
    if n == 1:
        return Interval(float(value), -np.inf, np.inf, 1)
    spread = np.sqrt((n - 1) / n * ((v - v.mean()) ** 2).sum())
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1) * spread)
    return Interval(float(value), float(value) - half, float(value) + half, n)


def _resample(sums: NDArray, totals: NDArray, rng: np.random.Generator) -> NDArray:
    k, step = len(sums), max(1, BLOCK // len(sums))
    draws = []
    for start in range(0, RESAMPLES, step):
        index = rng.integers(0, k, (min(step, RESAMPLES - start), k))
        draws.append(sums[index].sum(1) / totals[index].sum(1))
    return np.concatenate(draws)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"an interval needs a list of at least one value, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).sum())} of {len(x)} values are not finite")
    return x


def _codes(clusters: Clusters) -> NDArray[np.int64]:
    """Cluster ids of any hashable kind as integers in order of first appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(c, len(seen)) for c in clusters], dtype=np.int64)


def _alone(x: NDArray, clusters: Clusters) -> bool:
    if len(clusters) != len(x):
        raise ValueError(f"{len(x)} values but {len(clusters)} cluster ids")
    return len(set(clusters)) == len(x)
