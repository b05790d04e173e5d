"""Precision and recall (Kynkäänniemi), density and coverage (Naeem) over balls of the k-th nearest neighbour."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from eval.interval import Interval, wilson_of
from eval.neighbours import Centred, blocks, nearest, squared_distances
from eval.prdc_spread import Balls, Found, Pairs, coverage_variance, density_variance, share_variance
from eval.rows import check_pair, repeats
from eval.threads import spread

Array = NDArray[np.float64]


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
    r, f = _checked(real, fake, k)
    return _summed(r, f, k, _overlap(r, f, nearest(r, k=k).squared[:, -1:], nearest(f, k=k).squared[:, -1:]))


def prdc_intervals(real: ArrayLike, fake: ArrayLike, k: int = 5) -> dict[str, Interval]:
    """`prdc` with the 95 % intervals of its four measures at these n and m, by name; the values are those of `prdc`.

    Pictures do not stand alone: one real picture more or less opens or closes its ball for many generated ones, and
    moves its neighbours' borders. Wilson's interval of independent pictures is too narrow for that by a factor of up
    to 1.8, and leaving out blocks too wide by up to 2. Here each row is left out in turn, all effects counted from one
    pass over the pairs (`eval.prdc_spread`); shares then have Wilson's interval of as many independent pictures as
    would vary as much. Simulated, 92 to 98 % of the intervals of shares hold the mean; that of density holds it
    oftener, being up to 1.5 times too wide in a few dimensions. Sets so full of copies that their balls hold most of
    the other set, and sets of k + 1 rows, have no finite interval. n counts the pictures whose share, or mean, it is.
    """
    r, f = _checked(real, fake, k)
    if min(len(r), len(f)) < k + 2:
        value = prdc(r, f, k)
        return {name: Interval(getattr(value, name), -np.inf, np.inf, len(rows)) for name, rows in _counted(r, f)}
    near = nearest(r, k=k + 1), nearest(f, k=k + 1)
    pairs = Pairs(), Pairs()
    found = _overlap(r, f, near[0].squared[:, -2:], near[1].squared[:, -2:], pairs)
    value = _summed(r, f, k, found)
    balls_real = Balls.of(pairs[0], near[0].rows[:, :k], len(f))
    balls_fake = Balls.of(pairs[1], near[1].rows[:, :k], len(r))
    variances = {
        "precision": balls_real and share_variance(balls_real),
        "recall": balls_fake and share_variance(balls_fake),
        "density": balls_real and density_variance(balls_real),
        "coverage": balls_real and coverage_variance(balls_real),
    }
    return {name: _interval(name, value, variances[name], len(rows)) for name, rows in _counted(r, f)}


def _interval(name: str, found: PRDC, variance: float | None, n: int) -> Interval:
    value = float(getattr(found, name))
    if variance is None:
        return Interval(value, -np.inf, np.inf, n)
    if name != "density":
        return wilson_of(value, variance, n)
    half = float(stats.t.ppf(0.975, n - 1) * np.sqrt(variance))
    return Interval(value, max(0.0, value - half), value + half, n, n - 1)


def _counted(real: Array, fake: Array) -> list[tuple[str, Array]]:
    """The measures with the set that each is a share of, or a mean over."""
    return [("precision", fake), ("recall", real), ("density", fake), ("coverage", real)]


def _checked(real: ArrayLike, fake: ArrayLike, k: int) -> tuple[Array, Array]:
    r, f = check_pair(real, fake)
    if not 1 <= k < min(len(r), len(f)):
        raise ValueError(f"k={k} needs 1 <= k < {min(len(r), len(f))}, the size of the smaller set")
    return r, f


def _summed(real: Array, fake: Array, k: int, found: tuple[NDArray, NDArray, NDArray]) -> PRDC:
    around, recalled, covered = found
    return PRDC(
        precision=float((around > 0).mean()),
        recall=float(recalled.mean()),
        density=float(around.mean() / k),
        coverage=float(covered.mean()),
        k=k,
        real_duplicates=repeats(real),
        fake_duplicates=repeats(fake),
    )


def _overlap(
    real: Array, fake: Array, radii_real: Array, radii_fake: Array, pairs: tuple[Pairs, Pairs] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Real balls around each fake (m,), reals inside a fake ball (n,), reals whose ball holds a fake (n,).

    The radii are squared, (n, r) and (m, r): those of the balls, and where `pairs` takes in what lies in the balls of
    real and of fake, also those of the next larger balls. Only where a product cannot tell the side of a border is the
    distance computed exactly.
    """
    centre = real.mean(0)

    def strip(rows: slice) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_], list[tuple[Found, Found]]]:
        side, around = Centred.of(real[rows], centre), np.empty(len(fake), dtype=np.int64)
        recalled, covered = (np.zeros(rows.stop - rows.start, dtype=bool) for _ in range(2))
        listed = list[tuple[Found, Found]]()
        for columns in blocks(len(fake)):
            other = Centred.of(fake[columns], centre)
            distance = side.squared(other)  # (b, c)
            slack = side.rounding * (side.lengths.max() + other.lengths.max())
            borders = [*radii_real[rows].T[..., None], *radii_fake[columns].T[:, None]]
            within = [distance <= border - slack for border in borders]
            unsure = [(distance <= border + slack) ^ sure for border, sure in zip(borders, within, strict=True)]
            i, j = np.nonzero(np.logical_or.reduce(unsure))
            exact = squared_distances(real, fake, i + rows.start, j + columns.start)
            for border, sure in zip(borders, within, strict=True):
                sure[i, j] = exact <= np.broadcast_to(border, distance.shape)[i, j]
            in_real, in_fake = within[0], within[len(within) // 2]
            around[columns] = in_real.sum(0)
            covered |= in_real.any(1)
            recalled |= in_fake.any(1)
            if pairs is not None:
                before = [sum(found[side].number for found in listed) for side in (0, 1)]
                held = Found.of(in_real, within[1], rows.start, columns.start, before[0])
                listed.append((held, Found.of(in_fake.T, within[3].T, columns.start, rows.start, before[1])))
        return around, recalled, covered, listed

    around, recalled, covered = np.zeros(len(fake), dtype=np.int64), list[NDArray](), list[NDArray]()
    for more, called, cover, listed in spread(strip, blocks(len(real))):
        around += more
        recalled.append(called)
        covered.append(cover)
        for found in listed:
            for kept, one in zip(pairs or (), found, strict=True):
                kept.add(one)
    return around, np.concatenate(recalled), np.concatenate(covered)
