"""Sliced distance (the MIND formula): optimal transport along random directions, cheap enough to follow a training."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from eval.rows import check_pair

BLOCK = 4_000_000  # projected values held in memory at once


def mind(a: ArrayLike, b: ArrayLike, *, directions: int = 1000, seed: int = 2020) -> float:
    """Mean squared 2-Wasserstein distance along random directions u of length one, times 3 d (arXiv:2605.06797).

        3 d  mean_u  int_0^1 (F_u^-1(q) - G_u^-1(q))^2 dq,   F_u, G_u the laws of u.a and u.b

    a: (n, d), b: (m, d). For Gaussians with covariances s^2 I and t^2 I it is 3 times the Fréchet distance. Directions
    are those of torch-fidelity; where n and m differ, it drops rows, while here every row counts. Biased upwards
    by O(1/n), more slowly rising with d than that of the Fréchet distance. Raises ValueError for bad features.
    """
    x, y = check_pair(a, b)
    if directions < 1:
        raise ValueError(f"directions={directions} must be at least 1; the published figures use 1000")
    width = x.shape[1]
    u = torch.randn(directions, width, generator=torch.Generator().manual_seed(seed)).double().numpy()
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    rows_x, rows_y, weights = _coupled(len(x), len(y))
    step, total = max(1, BLOCK // len(weights)), 0.0
    for start in range(0, directions, step):
        p, q = (np.sort(u[start : start + step] @ rows.T, axis=1) for rows in (x, y))  # (step, n), (step, m)
        total += float((((p[:, rows_x] - q[:, rows_y]) ** 2) @ weights).sum())
    return 3 * width * total / directions


def _coupled(n: int, m: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Pieces of [0, 1] on which both empirical quantile functions are constant: order statistics and lengths, (p,)."""
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1 / (n m), exact
    starts = np.concatenate([[0], ends[:-1]])
    return starts // m, starts // n, (ends - starts) / (n * m)
