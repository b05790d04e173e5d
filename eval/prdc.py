"""Precision and recall (Kynkäänniemi), density and coverage (Naeem) over balls of the k-th nearest neighbour."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from eval.rows import check_pair

ROWS = 1024  # rows of the distance matrix held in memory at once


@dataclass(frozen=True, kw_only=True)
class PRDC:
    """Shares in [0, 1] (density may exceed 1); the duplicate shares tell where ties decide them."""

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    real_duplicates: float
    fake_duplicates: float


def prdc(*, real: ArrayLike, fake: ArrayLike, k: int = 5) -> PRDC:
    """Four manifold measures; the arguments go by name because exchanging them exchanges precision and recall.

        precision = share of fake inside some real ball       recall   = share of real inside some fake ball
        density   = mean over fake of (real balls around) / k coverage = share of real whose ball holds a fake

    real: (n, d), fake: (m, d). A ball reaches to the k-th neighbour and includes its border (<=); distances are exact
    float64. All four depend on n and m. Sources: arXiv:1904.06991, eq. 1-2; arXiv:2002.09797, eq. 3-4.
    """
    r, f = check_pair(real, fake)
    if not 1 <= k < min(len(r), len(f)):
        raise ValueError(f"k={k} needs 1 <= k < {min(len(r), len(f))}, the size of the smaller set")
    radius_r, radius_f = _radii(r, k), _radii(f, k)
    inside_real = np.zeros(len(f), dtype=np.int64)  # real balls around each fake
    recalled = np.zeros(len(r), dtype=bool)
    covered = np.zeros(len(r), dtype=bool)
    for start in range(0, len(r), ROWS):
        rows = slice(start, start + ROWS)
        distance = cdist(r[rows], f, "sqeuclidean")  # (rows, m)
        within = distance <= radius_r[rows, None]
        inside_real += within.sum(0)
        covered[rows] = within.any(1)
        recalled[rows] = (distance <= radius_f).any(1)
    return PRDC(
        precision=float((inside_real > 0).mean()),
        recall=float(recalled.mean()),
        density=float(inside_real.mean() / k),
        coverage=float(covered.mean()),
        k=k,
        real_duplicates=_duplicates(r),
        fake_duplicates=_duplicates(f),
    )


def _radii(x: NDArray[np.float64], k: int) -> NDArray[np.floating]:
    """Squared distance of each row to its k-th nearest other row, (n,)."""
    blocks = (cdist(x[i : i + ROWS], x, "sqeuclidean") for i in range(0, len(x), ROWS))
    return np.concatenate([np.partition(block, k, axis=1)[:, k] for block in blocks])  # index 0 is the row itself


def _duplicates(x: NDArray[np.float64]) -> float:
    return 1 - len(np.unique(x, axis=0)) / len(x)
