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

from eval.threads import spread

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
    keep = min(k + SPARE, len(others) - (y is None))
    found = _Candidates.none(len(x), keep)

    def strip(rows: slice) -> list[tuple[slice, _Candidates]]:
        """The candidates of these rows, and, without y, those among these rows of the rows that come later."""
        side, own, theirs = Centred.of(x[rows], centre), _Candidates.none(rows.stop - rows.start, keep), []
        for columns in blocks(len(others)):
            if y is None and columns.start < rows.start:
                continue  # known from the other side
            itself = y is None and columns == rows
            least = side.squared(side if itself else Centred.of(others[columns], centre), error=-1)
            if itself:
                np.fill_diagonal(least, np.inf)
            own = own.joined(_Candidates.smallest(least, columns.start, keep))
            if y is None and not itself:
                theirs.append((columns, _Candidates.smallest(least.T, rows.start, keep)))
        return [(rows, own), *theirs]

    for strips in spread(strip, blocks(len(x))):
        for rows, candidates in strips:
            found.put(rows, found.at(rows).joined(candidates))
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

    @classmethod
    def smallest(cls, least: Array, start: int, keep: int) -> "_Candidates":
        """The smallest of lower bounds (n, c) to rows that begin at `start`; all of them where there are no more."""
        if least.shape[1] <= keep:
            index = np.broadcast_to(np.arange(start, start + least.shape[1]), least.shape)
            return cls(least, index)
        place = np.argpartition(least, keep - 1, axis=1)[:, :keep]
        return cls(np.take_along_axis(least, place, 1), place + start)

    def joined(self, other: "_Candidates") -> "_Candidates":
        """The smallest of both, as many as here."""
        keep = self.least.shape[1]
        both = np.concatenate([self.least, other.least], 1)
        place = np.argpartition(both, keep - 1, axis=1)[:, :keep]
        index = np.concatenate([self.index, other.index], 1)
        return _Candidates(np.take_along_axis(both, place, 1), np.take_along_axis(index, place, 1))

    def at(self, rows: slice) -> "_Candidates":
        return _Candidates(self.least[rows], self.index[rows])

    def put(self, rows: slice, found: "_Candidates") -> None:
        self.least[rows], self.index[rows] = found.least, found.index


def _settled(x: NDArray, others: NDArray, found: _Candidates, k: int, *, own: bool) -> Neighbours:
    """Exact distances of the candidates, and of all rows where those left out might be nearer."""
    keep = found.index.shape[1]

    def exactly(rows: slice) -> Array:
        near = found.index[rows]
        return squared_distances(x, others, np.repeat(np.arange(rows.start, rows.stop), keep), near.ravel())

    squared = np.concatenate(spread(exactly, blocks(len(x)))).reshape(-1, keep)
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
