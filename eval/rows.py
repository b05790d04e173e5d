"""What every distance asks of its features (n, d): finite numbers, equal widths, in places rows of length one."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def check_features(features: ArrayLike, *, name: str = "features", rows: int = 2) -> NDArray[np.float64]:
    """Features as float64 (n, d). Raises ValueError for another shape, non-finite entries or too few rows."""
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"{name} must have shape (n, d), got {x.shape}: one row for each picture or text")
    if len(x) < rows:
        raise ValueError(f"{name} has {len(x)} rows, at least {rows} are needed: judge more samples")
    if not np.isfinite(x).all():
        raise ValueError(
            f"{name} has {int((~np.isfinite(x)).any(1).sum())} rows with NaN or infinite entries, not finite ones: "
            "check the embedder and the pictures that it was given"
        )
    return x


def check_pair(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both sets as float64 (n, d) and (m, d). Raises ValueError as `check_features`, and for unequal widths."""
    x, y = check_features(a, name="the first set of features"), check_features(b, name="the second set of features")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"features of widths {x.shape[1]} and {y.shape[1]} cannot be compared: use one embedder for both"
        )
    return x, y


def unit_rows(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (n, d) scaled to length one. Raises ValueError for a row of zeros."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError(
            f"{int((lengths == 0).sum())} rows of features have length zero, which no direction fits: check the "
            "embedder on empty pictures and texts"
        )
    return x / lengths


def repeats(x: NDArray) -> float:
    """Share of rows (n, ...) that equal an earlier one."""
    flat = x.reshape(len(x), -1)
    _, which, count = np.unique(flat.sum(1), return_inverse=True, return_counts=True)
    alike = flat[count[which] > 1]  # what has a sum of its own equals no other row
    different = len({row.tobytes() for row in alike + alike.dtype.type(0)})  # adding 0 turns -0 into 0
    return (len(alike) - different) / len(x)
