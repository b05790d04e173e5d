"""Intervals of shares, means and smooth statistics: Wilson, Student t, the jackknife, and a bootstrap over prompts.

Coverage of the 95 % intervals in simulations of 1,000 draws, three votes on each of 10 to 200 prompts: shares of 0.5 to
0.97 between 93.5 and 98 % (percentiles of a bootstrap: 89 to 99.9), means of a normal law 93.5 to 95 % (plain
percentiles at 10 prompts: 89). A heavy tail in few prompts defeats them: of a lognormal law 88 % at 20, 90 % at 50.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Clusters = Sequence[Hashable] | NDArray
RESAMPLES = 2000
FEWEST = 10  # clusters from which on they are resampled
BLOCK = 4_000_000  # bootstrap indices held in memory at once


@dataclass(frozen=True)
class Interval:
    """A value with its interval [low, high]; n counts the independent units (clusters where there are any).

    df: degrees of freedom of Student's t behind the ends; infinite for a normal law.
    """

    value: float
    low: float
    high: float
    n: int
    df: float = np.inf


def wilson(successes: float, n: int, *, confidence: float = 0.95) -> Interval:
    """Score interval of a share (Wilson 1927), centred at (s + z^2/2) / (n + z^2).

    Raises ValueError unless 0 <= successes <= n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a share needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    return _score(successes / n, n, n, confidence)


def wilson_of(
    share: float, variance: float, n: int, *, clusters: int | None = None, confidence: float = 0.95
) -> Interval:
    """Wilson's interval of a share of n values that hang together: of as many independent ones as have its variance.

    The count is n v / (v + e), v the binomial variance of a share that is drawn a little towards 1/2, as Wilson's
    centre is, and e what `variance` has more than the binomial one; it never exceeds n (Korn and Graubard 1998, Survey
    Methodology 24, 193, and like them with Student's t in place of z, where the variance comes from few clusters). All
    right or all wrong says nothing of how clusters differ: then each of them counts once. n of the result counts
    clusters where there are any.
    """
    if clusters is not None and share in (0, 1):
        return wilson(share * clusters, clusters, confidence=confidence)
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    drawn = (share * n + z * z / 2) / (n + z * z)
    alone = drawn * (1 - drawn) / n
    count = n * alone / (alone + max(0.0, variance - share * (1 - share) / n))
    if clusters is not None:
        count *= (z / float(stats.t.ppf(0.5 + confidence / 2, clusters - 1))) ** 2 if clusters > 1 else 0.0
    if not count:
        return Interval(share, -np.inf, np.inf, 1)
    return _score(share, count, n if clusters is None else clusters, confidence)


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
    return Interval(mean, mean - half, mean + half, len(x), len(x) - 1)


def share_interval(values: ArrayLike, clusters: Clusters | None = None, *, confidence: float = 0.95) -> Interval:
    """Share of values in [0, 1], by Wilson; where some share a cluster, of as many as vary like the clusters do.

    Of a single cluster the interval is [-inf, inf].
    """
    x = _finite(values)
    if x.min() < 0 or x.max() > 1:
        raise ValueError(f"a share is made of values in [0, 1], got [{x.min()}, {x.max()}]")
    if clusters is None or _alone(x, clusters):
        return wilson(float(x.sum()), len(x), confidence=confidence)
    sums, counts = _by_cluster(x, clusters)
    share, k = float(x.mean()), len(sums)
    variance = ratio_variance(sums, counts) if k > 1 else np.inf
    return wilson_of(share, variance, len(x), clusters=k, confidence=confidence)


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
    """Interval of sum(values) / sum(weights) over RESAMPLES draws of whole clusters; weights default to 1.

    With weights this is a ratio, such as total nats over total characters. values, weights: (n,). Draws of fewer than
    ten clusters cannot leave their own range: those have Student's t, and a single one [-inf, inf]. Raises ValueError
    for weights that are all 0.
    """
    x = _finite(values)
    sums, totals = _by_cluster(x, clusters, weights)
    value, k = float(sums.sum() / totals.sum()), len(sums)
    if k < FEWEST:
        half = (
            float(stats.t.ppf(0.5 + confidence / 2, k - 1)) * ratio_variance(sums, totals) ** 0.5 if k > 1 else np.inf
        )
        return Interval(value, value - half, value + half, k, max(1, k - 1))
    draws = _resample(sums, totals, np.random.default_rng(seed))
    low, high = ends(draws[np.isfinite(draws)], k, confidence=confidence)  # a draw may be of empty texts alone
    return Interval(value, low, high, k, k - 1)


def ends(drawn: NDArray[np.float64], n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Both ends of an interval from resamples of n units: percentiles, expanded as Student's t is.

    Plain percentiles are too narrow by sqrt((n - 1) / n) and by the ratio of z to t (Hesterberg 2015, The American
    Statistician 69, 371). One unit has no spread: [-inf, inf].
    """
    if n < 2:
        return -np.inf, np.inf
    tail = stats.norm.cdf(-stats.t.ppf(0.5 + confidence / 2, n - 1) * np.sqrt(n / (n - 1)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def ratio_variance(sums: ArrayLike, totals: ArrayLike) -> float:
    """Variance of sum(sums) / sum(totals) over k clusters, (k,) each and k > 1, to first order.

    k / (k - 1)  sum_i (s_i - r t_i)^2 / (sum_i t_i)^2,   r the ratio                 (Cochran 1977, eq. 6.13)
    """
    s, t = np.asarray(sums, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    left = s - s.sum() / t.sum() * t
    return float(len(s) / (len(s) - 1) * (left**2).sum() / t.sum() ** 2)


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
    return Interval(float(value), float(value) - half, float(value) + half, n, n - 1)


def _score(share: float, count: float, n: int, confidence: float) -> Interval:
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = (0.0 if share == 0 else float(centre - half)), (1.0 if share == 1 else float(centre + half))
    return Interval(share, low, high, n)


def _resample(sums: NDArray, totals: NDArray, rng: np.random.Generator) -> NDArray:
    k, step = len(sums), max(1, BLOCK // len(sums))
    draws = []
    for start in range(0, RESAMPLES, step):
        index = rng.integers(0, k, (min(step, RESAMPLES - start), k))
        with np.errstate(invalid="ignore", divide="ignore"):
            draws.append(sums[index].sum(1) / totals[index].sum(1))
    return np.concatenate(draws)


def _by_cluster(x: NDArray, clusters: Clusters, weights: ArrayLike | None = None) -> tuple[NDArray, NDArray]:
    """Sums of the values and of their weights, 1 where there are none, of each of k clusters, (k,) twice."""
    codes = _codes(clusters)
    w = np.ones_like(x) if weights is None else _finite(weights)
    if not len(x) == len(codes) == len(w):
        raise ValueError(f"{len(x)} values, {len(codes)} cluster ids and {len(w)} weights: the lengths must agree")
    if not w.sum() > 0:
        raise ValueError(f"the weights of {len(x)} values have the sum {w.sum():g}, expected one above 0")
    return np.bincount(codes, x), np.bincount(codes, w)


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
