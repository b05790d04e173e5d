"""Nearest neighbours by squared Euclidean distance: the speed of matrix products, the answers of exact differences.

|x - y|^2 = |x|^2 + |y|^2 - 2 x.y costs one product for all pairs but rounds at the scale of |x|^2: near pairs, ties and
copies come out wrong, and the further the features lie from zero, the worse. Here rows are centred first, products only
rule pairs out, and what lies within their rounding error is decided by the sum of squared differences itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROWS = 1024  # rows and columns of the distance matrix held in memory at once: 8 MB, which allocators keep
SPARE = 2  # candidates beyond the k nearest whose distances are computed exactly
ROUNDING = 4 * np.finfo(np.float64).eps  # per dimension, of a product's distance relative to |x|^2 + |y|^2
PAIRS = 2_000_000  # numbers of exact differences held in memory at once

Array = NDArray[np.float64]


class Neighbours(NamedTuple):
    """The k nearest of each row in order: squared distances (n, k) and the rows that they lead to (n, k)."""

    squared: Array
    rows: NDArray[np.int64]


def nearest(x: NDArray, y: NDArray | None = None, *, k: int = 1) -> Neighbours:
    """The k nearest rows of y (m, d) to each row of x (n, d); without y those of x itself but for the row's own.

    Rows may be of any number type, such as the bytes of pictures; they are read as float64 a block at a time. Distances
    are exact, copies are at 0, and of rows equally near any may be named. k <= m, or k < n without y.
    """
    others = x if y is None else y
    centre = others.mean(0, dtype=np.float64)
    found = _Candidates.none(len(x), min(k + SPARE, len(others) - (y is None)))
    for rows in blocks(len(x)):
        side = Centred.of(x[rows], centre)
        for columns in blocks(len(others)):
            if y is None and columns.start < rows.start:
                continue  # known from the other side
            itself = y is None and columns == rows
            least = side.squared(side if itself else Centred.of(others[columns], centre), error=-1)
            if itself:
                np.fill_diagonal(least, np.inf)
            found.offer(rows, columns, least)
            if y is None and not itself:
                found.offer(columns, rows, least.T)
    return _settled(x, others, found, k, own=y is None)


def squared_distances(x: NDArray, y: NDArray, i: NDArray[np.int64], j: NDArray[np.int64]) -> Array:
    """sum (x_i - y_j)^2 of single pairs, (p,); a pair gives the same bits in either order and any company."""
    found, step = np.empty(len(i)), max(1, PAIRS // x.shape[1])
    for start in range(0, len(i), step):
        pairs = slice(start, start + step)
        gap = np.subtract(x[i[pairs]], y[j[pairs]], dtype=np.float64)
        found[pairs] = np.einsum("pd,pd->p", gap, gap)
    return found


def blocks(rows: int) -> Iterator[slice]:
    """Slices of ROWS rows, the last one as long as what is left."""
    return (slice(start, min(start + ROWS, rows)) for start in range(0, rows, ROWS))


@dataclass(frozen=True)
class Centred:
    """A block of rows about a common centre with their squared lengths: (b, d) and (b,)."""

    rows: Array
    lengths: Array

    @classmethod
    def of(cls, rows: NDArray, centre: Array) -> "Centred":
        """Rows of any number type (b, d) less the centre (d,)."""
        moved = np.subtract(rows, centre, dtype=np.float64)
        return cls(moved, np.einsum("bd,bd->b", moved, moved))

    def squared(self, other: "Centred", *, error: int = 0) -> Array:
        """Squared distances by a product, (b, c): at least the true ones with error=1, at most with error=-1."""
        scale = 1 + error * self.rounding
        found = self.rows @ other.rows.T
        found *= -2
        found += scale * self.lengths[:, None]
        found += scale * other.lengths
        return found

    @property
    def rounding(self) -> float:
        """Bound of a product's error over the sum of both squared lengths."""
        return ROUNDING * (self.rows.shape[1] + 4)


@dataclass(frozen=True)
class _Candidates:
    """The rows of smallest lower bound for each row so far: bounds (n, keep) and indices (n, keep)."""

    least: Array
    index: NDArray[np.int64]

    @classmethod
    def none(cls, rows: int, keep: int) -> "_Candidates":
        return cls(np.full((rows, keep), np.inf), np.zeros((rows, keep), np.int64))

    def offer(self, rows: slice, columns: slice, least: Array) -> None:
        """Take in the lower bounds (b, c) between these rows and columns."""
        keep = self.least.shape[1]
        bounds = np.concatenate([self.least[rows], least], 1)
        if bounds.shape[1] > keep:
            place = np.argpartition(bounds, keep - 1, axis=1)[:, :keep]
        else:
            place = np.broadcast_to(np.arange(bounds.shape[1]), bounds.shape)
        known = np.take_along_axis(self.index[rows], np.minimum(place, keep - 1), 1)
        self.index[rows] = np.where(place < keep, known, place - keep + columns.start)
        self.least[rows] = np.take_along_axis(bounds, place, 1)


def _settled(x: NDArray, others: NDArray, found: _Candidates, k: int, *, own: bool) -> Neighbours:
    """Exact distances of the candidates, and of all rows where those left out might be nearer."""
    keep = found.index.shape[1]
    squared = squared_distances(x, others, np.repeat(np.arange(len(x)), keep), found.index.ravel()).reshape(-1, keep)
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    squared, index = np.take_along_axis(squared, order, 1), np.take_along_axis(found.index, order, 1)
    left_out = len(others) - own > keep
    for row in np.flatnonzero(left_out & (squared[:, -1] > found.least.max(1).clip(0))):
        exact = squared_distances(x, others, np.full(len(others), row), np.arange(len(others)))
        if own:
            exact[row] = np.inf
        index[row] = np.argsort(exact, kind="stable")[:k]
        squared[row] = exact[index[row]]
    return Neighbours(squared, index)
