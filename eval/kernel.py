"""Kernel distance (the KID formula): an unbiased estimate, so that small sets can be compared; it may be negative."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from eval.frechet import check_pair
from eval.interval import Interval

ROWS = 1024  # rows of the kernel matrix held in memory at once


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """The full-sample estimate and its jackknife standard error over `blocks` disjoint blocks of the samples."""

    value: float
    se: float
    blocks: int
    n: int

    def interval(self, confidence: float = 0.95) -> Interval:
        """Student t interval over the blocks around the full-sample estimate."""
        half = float(stats.t.ppf(0.5 + confidence / 2, self.blocks - 1)) * self.se
        return Interval(self.value, self.value - half, self.value + half, self.n)


def kernel_distance(a: ArrayLike, b: ArrayLike, *, blocks: int = 10) -> KernelDistance:
    """Unbiased squared maximum mean discrepancy with k(x, y) = (x.y / d + 1)^3 (arXiv:1801.01401, eq. 4).

        mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)

    a: (n, d), b: (m, d). Every pair counts. The standard error is the jackknife's, from the estimates that leave out
    one of `blocks` disjoint parts of both sets: overlapping subsets would understate it, and estimates within single
    parts overstate it. Raises ValueError where a part would have fewer than two rows.
    """
    x, y = check_pair(a, b)
    smaller = min(len(x), len(y))
    if not 2 <= blocks <= smaller // 2:
        raise ValueError(f"blocks={blocks} needs 2 <= blocks <= {smaller // 2}, half of the smaller set")
    sums = _BlockSums.of(np.array_split(x, blocks), np.array_split(y, blocks))
    every = np.ones(blocks, dtype=bool)
    without = np.array([sums.mmd2(every & (np.arange(blocks) != i)) for i in range(blocks)])
    se = float(np.sqrt((blocks - 1) / blocks * ((without - without.mean()) ** 2).sum()))
    return KernelDistance(value=sums.mmd2(every), se=se, blocks=blocks, n=smaller)


@dataclass(frozen=True)
class _BlockSums:
    """Sums of the kernel between blocks, (g, g) each, those within a set without its diagonal; rows per block, (g,)."""

    within_x: NDArray[np.float64]
    within_y: NDArray[np.float64]
    between: NDArray[np.float64]
    rows_x: NDArray[np.int64]
    rows_y: NDArray[np.int64]

    @classmethod
    def of(cls, x: list[NDArray[np.float64]], y: list[NDArray[np.float64]]) -> "_BlockSums":
        def table(first: list[NDArray[np.float64]], second: list[NDArray[np.float64]]) -> NDArray[np.float64]:
            return np.array([[_kernel_sum(p, q) for q in second] for p in first])

        def within(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
            return table(parts, parts) - np.diag([_diagonal_sum(part) for part in parts])

        rows_x, rows_y = (np.array([len(part) for part in parts]) for parts in (x, y))
        return cls(within(x), within(y), table(x, y), rows_x, rows_y)

    def mmd2(self, kept: NDArray[np.bool_]) -> float:
        """The estimate over the kept blocks (g,) of both sets."""
        n, m = self.rows_x[kept].sum(), self.rows_y[kept].sum()
        square = np.ix_(kept, kept)
        within = self.within_x[square].sum() / (n * (n - 1)) + self.within_y[square].sum() / (m * (m - 1))
        return float(within - 2 * self.between[square].sum() / (n * m))


def _kernel_sum(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    d = x.shape[1]
    return float(sum(((x[i : i + ROWS] @ y.T / d + 1) ** 3).sum() for i in range(0, len(x), ROWS)))


def _diagonal_sum(x: NDArray[np.float64]) -> float:
    return float((((x**2).sum(1) / x.shape[1] + 1) ** 3).sum())
