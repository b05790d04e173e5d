"""Squared maximum mean discrepancies between two sets of features, by the kernel of KID and by that of CMMD."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.interval import Interval, jackknife
from eval.rows import check_pair, unit_rows
from eval.threads import spread

ROWS = 1024  # rows and columns of the kernel matrix held in memory at once: 8 MB, which allocators keep
BANDWIDTH = 10.0  # sigma of CMMD
SCALE = 1000.0  # what CMMD is multiplied by

Array = NDArray[np.float64]
Kernel = Callable[[Array, Array], Array]  # (n, d), (m, d) -> (n, m)
Estimate = Callable[[NDArray[np.bool_]], float]  # of the parts that are kept, (g,)


def kid(a: ArrayLike, b: ArrayLike) -> float:
    """Unbiased squared discrepancy with k(x, y) = (x.y / d + 1)^3: the kernel distance (arXiv:1801.01401, eq. 4).

        mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)

    a: (n, d), b: (m, d); every pair counts. Unbiased, so small sets compare with large ones; of sets alike it is as
    often below zero, and of a set with itself always. Raises ValueError for bad features or fewer than two rows.
    """
    return _kid(*check_pair(a, b))


def kid_interval(a: ArrayLike, b: ArrayLike, *, blocks: int = 10) -> Interval:
    """`kid` of all rows with its jackknife interval over `blocks` disjoint parts of both sets.

    The estimates that leave a part out are compared: overlapping subsets would understate the spread, and estimates
    within single parts overstate it. n counts rows of the smaller set. Raises ValueError where a part would have fewer
    than two rows.
    """
    x, y = check_pair(a, b)
    return _jackknifed(x, y, blocks, lambda p, q: _Sums.of(p, q, cubic).unbiased)


def kid_subsets(
    a: ArrayLike, b: ArrayLike, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> NDArray[np.float64]:
    """`kid` of subsets without replacement, (subsets,), drawn as torch-fidelity draws them: the published protocol.

    Published figures are the mean; the deviation over overlapping subsets is no standard error. Raises ValueError
    where a subset would be larger than a set.
    """
    x, y = check_pair(a, b)
    smaller = min(len(x), len(y))
    if subsets < 1 or not 2 <= subset_size <= smaller:
        raise ValueError(
            f"subsets={subsets} and subset_size={subset_size} need subsets >= 1 and 2 <= subset_size <= {smaller}, the "
            "smaller set: lower subset_size, or use kid, which takes all rows"
        )
    rng = np.random.RandomState(seed)
    drawn = [[rng.choice(len(rows), subset_size, replace=False) for rows in (x, y)] for _ in range(subsets)]
    return np.array(spread(lambda pair: _kid(x[pair[0]], y[pair[1]]), drawn))


def cmmd(a: ArrayLike, b: ArrayLike) -> float:
    """1000 times the squared discrepancy of rows of length one with k = exp(-|x - y|^2 / 200) (arXiv:2401.09603).

    a: (n, d), b: (m, d), scaled to length one here. The sums keep i = j: the biased estimate, >= 0, as in the published
    code. So wide a kernel is nearly flat on the sphere: the value is close to 10 |mean a - mean b|^2 and hardly sees
    spread. The name belongs to features of CLIP ViT-L/14 at 336 pixels; name another embedder beside the value.
    Raises ValueError for bad features and for rows of length zero.
    """
    x, y = (unit_rows(rows) for rows in check_pair(a, b))
    return SCALE * _Sums.of([x], [y], gaussian, diagonal=True).biased(np.ones(1, dtype=bool))


def cmmd_interval(a: ArrayLike, b: ArrayLike, *, blocks: int = 10) -> Interval:
    """`cmmd` with its jackknife interval over `blocks` disjoint parts of both sets, at these n and m, bias included.

    Between sets of one law it is too wide, not wrong: there the value has no first derivative. n counts rows of the
    smaller set. Raises ValueError as `kid_interval`.
    """
    x, y = (unit_rows(rows) for rows in check_pair(a, b))
    found = _jackknifed(x, y, blocks, lambda p, q: _Sums.of(p, q, gaussian, diagonal=True).biased)
    return Interval(SCALE * found.value, max(0.0, SCALE * found.low), SCALE * found.high, found.n, found.df)


def _kid(x: Array, y: Array) -> float:
    return _Sums.of([x], [y], cubic).unbiased(np.ones(1, dtype=bool))


def cubic(x: Array, y: Array) -> Array:
    """(x.y / d + 1)^3 of all pairs, (n, d) and (m, d) -> (n, m)."""
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    cube = base * base
    cube *= base
    return cube


def gaussian(x: Array, y: Array) -> Array:
    """exp(-|x - y|^2 / (2 sigma^2)) of all pairs of rows of length one, whose |x - y|^2 is 2 - 2 x.y."""
    return np.exp((x @ y.T - 1) / BANDWIDTH**2)


@dataclass(frozen=True)
class _Sums:
    """Sums of a kernel between parts of two sets, (g, g) each; those within a set leave i = j out unless asked."""

    within_x: Array
    within_y: Array
    between: Array
    rows: tuple[NDArray[np.int64], NDArray[np.int64]]  # (g,) of either set

    @classmethod
    def of(cls, x: list[Array], y: list[Array], kernel: Kernel, *, diagonal: bool = False) -> "_Sums":
        rows = np.array([len(part) for part in x]), np.array([len(part) for part in y])
        return cls(_within(x, kernel, diagonal), _within(y, kernel, diagonal), _between(x, y, kernel), rows)

    def unbiased(self, kept: NDArray[np.bool_]) -> float:
        """The estimate without i = j over the kept parts (g,) of both sets."""
        n, m = (int(rows[kept].sum()) for rows in self.rows)
        square = np.ix_(kept, kept)
        within = self.within_x[square].sum() / (n * (n - 1)) + self.within_y[square].sum() / (m * (m - 1))
        return float(within - 2 * self.between[square].sum() / (n * m))

    def biased(self, kept: NDArray[np.bool_]) -> float:
        """The estimate with i = j over the kept parts (g,) of both sets."""
        n, m = (int(rows[kept].sum()) for rows in self.rows)
        x, y, between = (sums[np.ix_(kept, kept)].sum() for sums in (self.within_x, self.within_y, self.between))
        return float(x / n**2 + y / m**2 - 2 * between / (n * m))


def _jackknifed(x: Array, y: Array, blocks: int, of: Callable[[list[Array], list[Array]], Estimate]) -> Interval:
    """The estimate of all parts of two sets, with the jackknife's interval of those without each."""
    smaller = min(len(x), len(y))
    if not 2 <= blocks <= smaller // 2:
        raise ValueError(f"blocks={blocks} needs 2 <= blocks <= {smaller // 2}, half of the smaller set")
    estimate = of(np.array_split(x, blocks), np.array_split(y, blocks))
    without = [estimate(np.arange(blocks) != i) for i in range(blocks)]
    return replace(jackknife(estimate(np.ones(blocks, dtype=bool)), without), n=smaller)


def _between(x: list[Array], y: list[Array], kernel: Kernel) -> Array:
    """Sums between the parts of two sets, (g, h)."""
    left, right = _blocks(x), _blocks(y)

    def strip(p: int) -> Array:
        sums = np.zeros((len(x), len(y)))
        for part, block in right:
            sums[left[p][0], part] += kernel(left[p][1], block).sum()
        return sums

    return sum(spread(strip, range(len(left))), np.zeros((len(x), len(y))))


def _within(x: list[Array], kernel: Kernel, diagonal: bool) -> Array:
    """Sums between the parts of one set, (g, g): a kernel is symmetric, so half of them is computed."""
    blocks = _blocks(x)

    def strip(p: int) -> Array:
        part, block = blocks[p]
        square, sums = kernel(block, block), np.zeros((len(x), len(x)))
        sums[part, part] = square.sum() - (0.0 if diagonal else np.trace(square))
        for other, earlier in blocks[:p]:
            found = kernel(block, earlier).sum()
            sums[part, other] += found
            sums[other, part] += found
        return sums

    return sum(spread(strip, reversed(range(len(blocks)))), np.zeros((len(x), len(x))))  # the longest strips first


def _blocks(parts: list[Array]) -> list[tuple[int, Array]]:
    """Blocks of at most ROWS rows, each with the number of its part."""
    return [(i, part[start : start + ROWS]) for i, part in enumerate(parts) for start in range(0, len(part), ROWS)]
