"""Precision and recall (Kynkäänniemi), density and coverage (Naeem) over balls of the k-th nearest neighbour."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.neighbours import Centred, blocks, nearest, squared_distances
from eval.rows import check_pair, repeats
from eval.threads import spread


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


def prdc(real: ArrayLike, fake: ArrayLike, k: int = 5) -> PRDC:
    """Four measures of how two sets overlap; exchanging the sets exchanges precision and recall.

        precision = share of fake inside some real ball       recall   = share of real inside some fake ball
        density   = mean over fake of (real balls around) / k coverage = share of real whose ball holds a fake

    real: (n, d), fake: (m, d). A ball reaches to the k-th neighbour and includes its border (<=); distances are exact
    float64, so ties and copies count as what they are. All four depend on n and m: compare at equal sizes. Sources:
    arXiv:1904.06991, eq. 1-2; arXiv:2002.09797, eq. 3-4. Raises ValueError for bad features and an impossible k.
    """
    r, f = check_pair(real, fake)
    if not 1 <= k < min(len(r), len(f)):
        raise ValueError(f"k={k} needs 1 <= k < {min(len(r), len(f))}, the size of the smaller set")
    around, recalled, covered = _overlap(r, f, nearest(r, k=k).squared[:, -1], nearest(f, k=k).squared[:, -1])
    return PRDC(
        precision=float((around > 0).mean()),
        recall=float(recalled.mean()),
        density=float(around.mean() / k),
        coverage=float(covered.mean()),
        k=k,
        real_duplicates=repeats(r),
        fake_duplicates=repeats(f),
    )


def _overlap(
    real: NDArray[np.float64], fake: NDArray[np.float64], radius_real: NDArray, radius_fake: NDArray
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Real balls around each fake (m,), reals inside a fake ball (n,), reals whose ball holds a fake (n,).

    The radii are squared. Only where a product cannot tell the side of a border is the distance computed exactly.
    """
    centre = real.mean(0)

    def strip(rows: slice) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        around = np.empty(len(fake), dtype=np.int64)
        recalled, covered = (np.zeros(rows.stop - rows.start, dtype=bool) for _ in range(2))
        side = Centred.of(real[rows], centre)
        for columns in blocks(len(fake)):
            other = Centred.of(fake[columns], centre)
            distance = side.squared(other)  # (b, c)
            slack = side.rounding * (side.lengths[:, None] + other.lengths.max())
            borders = radius_real[rows, None], radius_fake[None, columns]
            i, j = np.nonzero(np.logical_or(*(np.abs(distance - border) <= slack for border in borders)))
            distance[i, j] = squared_distances(real, fake, i + rows.start, j + columns.start)
            within_real, within_fake = (distance <= border for border in borders)
            around[columns] = within_real.sum(0)
            covered |= within_real.any(1)
            recalled |= within_fake.any(1)
        return around, recalled, covered

    around, recalled, covered = zip(*spread(strip, blocks(len(real))), strict=True)
    return np.sum(around, axis=0), np.concatenate(recalled), np.concatenate(covered)
