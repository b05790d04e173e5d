"""Sliced distance (the MIND formula): optimal transport along random directions, cheap enough to follow a training."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from eval.interval import Interval, jackknife
from eval.rows import check_pair

BLOCK = 4_000_000  # projected values held in memory at once

Array = NDArray[np.float64]


def mind(a: ArrayLike, b: ArrayLike, *, directions: int = 1000, seed: int = 2020) -> float:
    """Mean squared 2-Wasserstein distance along random directions u of length one, times 3 d (arXiv:2605.06797).

        3 d  mean_u  int_0^1 (F_u^-1(q) - G_u^-1(q))^2 dq,   F_u, G_u the laws of u.a and u.b

    a: (n, d), b: (m, d). For Gaussians with covariances s^2 I and t^2 I it is 3 times the Fréchet distance. Directions
    are those of torch-fidelity; where n and m differ, it drops rows, while here every row counts. Biased upwards
    by O(1/n), more slowly rising with d than that of the Fréchet distance. Raises ValueError for bad features.
    """
    x, y = check_pair(a, b)
    return float(_costs(x, y, directions, seed, 0)[0])


def mind_interval(
    a: ArrayLike, b: ArrayLike, *, directions: int = 1000, seed: int = 2020, blocks: int = 10
) -> Interval:
    """`mind` with its jackknife interval over `blocks` disjoint parts of both sets, along the same directions.

    It is an interval of the value at these n and m, bias included; between sets of one law it is too wide, not wrong.
    What is left out of a sorted row leaves it sorted: this costs the order of the rows and blocks + 1 sums. n counts
    rows of the smaller set. Raises ValueError where a part would have fewer than two rows.
    """
    x, y = check_pair(a, b)
    smaller = min(len(x), len(y))
    if not 2 <= blocks <= smaller // 2:
        raise ValueError(f"blocks={blocks} needs 2 <= blocks <= {smaller // 2}, half of the smaller set")
    value, *without = _costs(x, y, directions, seed, blocks)
    found = jackknife(value, without)
    return replace(found, low=max(0.0, found.low), n=smaller)


def _costs(x: Array, y: Array, directions: int, seed: int, blocks: int) -> Array:
    """The value of all rows, then without each of so many parts of both sets, (1 + blocks,)."""
    if directions < 1:
        raise ValueError(f"directions={directions} must be at least 1; the published figures use 1000")
    width = x.shape[1]
    u = torch.randn(directions, width, generator=torch.Generator().manual_seed(seed)).double().numpy()
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    part_x, part_y = (np.repeat(np.arange(max(blocks, 1)), _lengths(len(rows), blocks)) for rows in (x, y))
    left = [(len(x), len(y)), *((int((part_x != i).sum()), int((part_y != i).sum())) for i in range(blocks))]
    coupled = [_coupled(*sizes) for sizes in left]
    step, totals = max(1, BLOCK // len(coupled[0][2])), np.zeros(1 + blocks)
    for start in range(0, directions, step):
        sides = [_sorted(u[start : start + step] @ rows.T, part) for rows, part in ((x, part_x), (y, part_y))]
        for i, (rows_x, rows_y, weights) in enumerate(coupled):
            p, q = (_kept(*side, i - 1) for side in sides)
            totals[i] += (((p[:, rows_x] - q[:, rows_y]) ** 2) @ weights).sum()
    return 3 * width * totals / directions


def _lengths(rows: int, blocks: int) -> list[int]:
    return [len(part) for part in np.array_split(np.arange(rows), max(blocks, 1))]


def _sorted(values: Array, part: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    """Values (s, n) in order along each direction, and the parts that they belong to; one part is not told apart."""
    if part[-1] == 0:
        return np.sort(values, axis=1), part
    order = np.argsort(values, axis=1)
    return np.take_along_axis(values, order, 1), part[order]


def _kept(values: Array, part: NDArray[np.int64], out: int) -> Array:
    """Sorted values without a part, all for -1: (s, n) -> (s, n - rows of that part)."""
    return values if out < 0 else values[part != out].reshape(len(values), -1)


def _coupled(n: int, m: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Pieces of [0, 1] on which both empirical quantile functions are constant: order statistics and lengths, (p,)."""
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1 / (n m), exact
    starts = np.concatenate([[0], ends[:-1]])
    return starts // m, starts // n, (ends - starts) / (n * m)
