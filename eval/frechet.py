"""Fréchet distance between two sets of features, in float64 and without complex numbers."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class FrechetTerms(NamedTuple):
    """The two parts of the distance: `mean` grows with a shift, `cov` with lost or invented variety."""

    mean: float
    cov: float


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean (d,) and scatter = sum (x - mean)(x - mean)^T (d, d) of n rows; sets merge without their rows."""

    n: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @property
    def cov(self) -> NDArray[np.float64]:
        """Unbiased covariance (d, d)."""
        return self.scatter / (self.n - 1)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together (Chan, Golub and LeVeque 1979), stable where a one-pass sum is not."""
        n, shift = self.n + other.n, other.mean - self.mean
        mean = self.mean + shift * (other.n / n)
        scatter = self.scatter + other.scatter + np.outer(shift, shift) * (self.n * other.n / n)
        return Moments(n=n, mean=mean, scatter=scatter)


def moments(features: ArrayLike) -> Moments:
    """Moments of features (n, d)."""
    x = check_features(features, rows=1)
    mean = x.mean(0)
    centred = x - mean
    return Moments(n=len(x), mean=mean, scatter=centred.T @ centred)


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Squared Fréchet distance between Gaussians fitted to a (n, d) and b (m, d) (arXiv:1706.08500, eq. 6).

        |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2)

    S is the unbiased covariance. Raises ValueError for NaN, unequal widths or fewer than two rows.
    Biased upwards by about c / n: compare only at equal n and m.
    """
    return float(sum(frechet_terms(a, b)))


def frechet_terms(a: ArrayLike, b: ArrayLike) -> FrechetTerms:
    """The mean and the covariance term of `frechet_distance`, each >= 0."""
    x, y = check_pair(a, b)
    if min(len(x), len(y)) >= x.shape[1]:
        return frechet_from_moments(moments(x), moments(y))
    root_x, root_y = _root(x), _root(y)
    cross = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()  # tr (S_a S_b)^(1/2) is a nuclear norm
    trace = (root_x**2).sum() + (root_y**2).sum()
    return _terms(x.mean(0) - y.mean(0), float(trace), float(cross))


def frechet_from_moments(a: Moments, b: Moments) -> FrechetTerms:
    """The two terms from moments; (S_a S_b)^(1/2) has the eigenvalues of the symmetric (S_a^½ S_b S_a^½)^(1/2)."""
    values, vectors = np.linalg.eigh(a.cov)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.cov @ root).clip(0)).sum()
    return _terms(a.mean - b.mean, float(np.trace(a.cov) + np.trace(b.cov)), float(cross))


def check_features(features: ArrayLike, *, name: str = "features", rows: int = 2) -> NDArray[np.float64]:
    """Features as float64 (n, d). Raises ValueError for another shape, non-finite entries or too few rows."""
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"{name} must have shape (n, d), got {x.shape}")
    if len(x) < rows:
        raise ValueError(f"{name} has {len(x)} rows, at least {rows} are needed")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} has {int((~np.isfinite(x)).any(1).sum())} rows with NaN or infinite entries")
    return x


def check_pair(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both sets as float64 (n, d) and (m, d). Raises ValueError as `check_features`, and for unequal widths."""
    x, y = check_features(a, name="the first set of features"), check_features(b, name="the second set of features")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"features of widths {x.shape[1]} and {y.shape[1]} cannot be compared: use one embedder for both"
        )
    return x, y


def _root(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """A matrix R with R^T R = covariance of x: scaled centred rows, or their (d, d) QR factor when they are many."""
    root = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    return np.asarray(np.linalg.qr(root, mode="r")) if len(x) > x.shape[1] else root


def _terms(shift: NDArray, trace: float, cross: float) -> FrechetTerms:
    return FrechetTerms(mean=float(shift @ shift), cov=max(0.0, trace - 2 * cross))
