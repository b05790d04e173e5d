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
    """The full-sample estimate and its standard error over `blocks` disjoint blocks of the samples."""

    value: float
    se: float
    blocks: int
    n: int

    def interval(self, confidence: float = 0.95) -> Interval:
        """Student t interval over the blocks around the full-sample estimate."""
        half = float(stats.t.ppf(0.5 + confidence / 2, self.blocks - 1)) * self.se
        return Interval(self.value, self.value - half, self.value + half, self.n)


def kernel_distance(a: ArrayLike, b: ArrayLike, *, block_size: int | None = None) -> KernelDistance:
    """Unbiased squared maximum mean discrepancy with k(x, y) = (x.y / d + 1)^3 (arXiv:1801.01401, eq. 4).

        mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)

    a: (n, d), b: (m, d). Every pair counts; the standard error comes from disjoint blocks of `block_size` rows (default
    a tenth), because overlapping subsets understate it. Raises ValueError where fewer than two blocks fit.
    """
    x, y = check_pair(a, b)
    smaller = min(len(x), len(y))
    size = block_size or max(2, smaller // 10)
    blocks = smaller // size
    if size < 2 or blocks < 2:
        raise ValueError(f"block_size={size} needs 2 <= block_size <= {smaller // 2}, half of the smaller set")
    parts = [mmd2(x[i * size : (i + 1) * size], y[i * size : (i + 1) * size]) for i in range(blocks)]
    se = float(np.std(parts, ddof=1) / np.sqrt(blocks))
    return KernelDistance(value=mmd2(x, y), se=se, blocks=blocks, n=smaller)


def mmd2(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The estimate of `kernel_distance` over all pairs of x (n, d) and y (m, d)."""
    n, m = len(x), len(y)
    within_x = (_kernel_sum(x, x) - _diagonal_sum(x)) / (n * (n - 1))
    within_y = (_kernel_sum(y, y) - _diagonal_sum(y)) / (m * (m - 1))
    return float(within_x + within_y - 2 * _kernel_sum(x, y) / (n * m))


def _kernel_sum(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    d = x.shape[1]
    return float(sum(((x[i : i + ROWS] @ y.T / d + 1) ** 3).sum() for i in range(0, len(x), ROWS)))


def _diagonal_sum(x: NDArray[np.float64]) -> float:
    return float((((x**2).sum(1) / x.shape[1] + 1) ** 3).sum())
