"""Fréchet distance between two sets of features, in float64 and without complex numbers."""

import contextlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

from eval.interval import Interval, jackknife
from eval.rows import check_features, check_pair


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


def frechet_distance(a: ArrayLike | Moments, b: ArrayLike | Moments) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets, each features (n, d) or Moments, in any order.

        |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2)                                 (arXiv:1706.08500, eq. 6)

    S is the unbiased covariance. Raises ValueError for NaN, unequal widths or fewer than two rows.
    Biased upwards by about c / n (`eval.frechet_infinity`): compare only at equal sizes of both sets. With fewer rows
    than dimensions the value is exact, but most of it is bias (`rank_note`).
    """
    return float(sum(frechet_terms(a, b)))


def frechet_terms(a: ArrayLike | Moments, b: ArrayLike | Moments) -> FrechetTerms:
    """The mean and the covariance term of `frechet_distance`, each >= 0."""
    if isinstance(a, Moments) or isinstance(b, Moments):
        return _from_moments(*(_fitted(side) for side in (a, b)))
    x, y = check_pair(a, b)
    if min(len(x), len(y)) > x.shape[1]:
        with contextlib.suppress(linalg.LinAlgError):  # a constant column leaves no covariance of full rank
            first, second = moments(x), moments(y)
            return _terms(first, second, _trace_of_root(first.cov, second.cov))
    root_x, root_y = _root(x), _root(y)
    cross = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()  # tr (S_a S_b)^(1/2) is a nuclear norm
    spread = (root_x**2).sum() + (root_y**2).sum()
    return _summed(x.mean(0) - y.mean(0), float(spread), float(cross))


def frechet_interval(a: ArrayLike, b: ArrayLike, *, blocks: int = 10) -> Interval:
    """`frechet_distance` with its jackknife interval over `blocks` disjoint parts of the rows of a (n, d) and b (m, d).

    It says how far the distance *at these n and m* moves with the samples; it knows nothing of the bias that any
    finite n has. Rows drawn with replacement would repeat each other and raise every distance: hence no bootstrap.
    Parts are runs of neighbouring rows, so that row i of both may be one picture and its reconstruction; sets of fewer
    than two rows a part get fewer parts, and below four rows there is no interval but [-inf, inf]. Costs blocks + 1
    distances; n counts rows of the smaller set.
    """
    x, y = check_pair(a, b)
    if blocks < 2:
        raise ValueError(f"blocks={blocks} must be at least 2: the parts are compared with each other")
    smaller, value = min(len(x), len(y)), frechet_distance(x, y)
    if smaller < 4:
        return Interval(value, -np.inf, np.inf, smaller)
    parts = [np.array_split(np.arange(len(rows)), min(blocks, smaller // 2)) for rows in (x, y)]
    without = [frechet_distance(np.delete(x, i, 0), np.delete(y, j, 0)) for i, j in zip(*parts, strict=True)]
    found = jackknife(value, without)
    return replace(found, low=max(0.0, found.low), n=smaller)


def rank_note(n: int, m: int, d: int) -> str:
    """What to say beside a Fréchet distance of n and m rows of width d where a covariance lacks rank, else nothing."""
    if min(n, m) > d:
        return ""
    return (
        f"rank-deficient: {min(n, m)} rows for {d} dimensions, where bias outweighs most differences; read the kernel "
        f"distance instead, or take more than {d} pictures"
    )


def _from_moments(a: Moments, b: Moments) -> FrechetTerms:
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments of widths {len(a.mean)} and {len(b.mean)} cannot be compared: use one embedder")
    try:
        cross = _trace_of_root(a.cov, b.cov)
    except linalg.LinAlgError:
        values, vectors = linalg.eigh(a.cov, check_finite=False)
        root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        cross = np.sqrt(linalg.eigvalsh(root @ b.cov @ root, check_finite=False).clip(0)).sum()
    return _terms(a, b, float(cross))


def _trace_of_root(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """tr (a b)^(1/2): a b has the eigenvalues of the symmetric L^T a L where b = L L^T.

    Raises LinAlgError where b is not of full rank.
    """
    values = linalg.eigvalsh(a, b, type=2, driver="gv", check_finite=False)
    return float(np.sqrt(values.clip(0)).sum())


def _fitted(side: ArrayLike | Moments) -> Moments:
    if not isinstance(side, Moments):
        return moments(check_features(side))
    if side.n < 2:
        raise ValueError(f"moments of {side.n} rows have no covariance, at least 2 are needed")
    return side


def _root(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """A matrix R with R^T R = covariance of x: scaled centred rows, or their (d, d) QR factor when they are many."""
    root = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    return np.asarray(np.linalg.qr(root, mode="r")) if len(x) > x.shape[1] else root


def _terms(a: Moments, b: Moments, cross: float) -> FrechetTerms:
    return _summed(a.mean - b.mean, float(np.trace(a.cov) + np.trace(b.cov)), cross)


def _summed(shift: NDArray[np.float64], spread: float, cross: float) -> FrechetTerms:
    return FrechetTerms(mean=float(shift @ shift), cov=max(0.0, spread - 2 * cross))
