"""How far raters agree: Krippendorff's alpha, its interval over items, and the plain share of equal pairs.

Alpha is 1 for perfect agreement and 0 for what chance gives. Taste differs, so low values of preferences are normal;
.667 and .8 are guides for codings of facts.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eval.human.errors import StudyError
from eval.interval import RESAMPLES, Interval, ends

Level = Literal["nominal", "ordinal", "interval", "ratio"]
LEVELS: tuple[Level, ...] = ("nominal", "ordinal", "interval", "ratio")
Ratings = Sequence[Sequence[Any]] | NDArray


def krippendorff_alpha(ratings: Ratings, level: Level = "nominal") -> float:
    """Krippendorff's alpha of ratings (raters, items); NaN or None where a rater did not rate an item.

        alpha = 1 - (n - 1) sum_ck o_ck d_ck^2 / sum_ck n_c n_k d_ck^2

    o: coincidences of the values c and k within items, n_c their sums (Krippendorff 2011, Computing alpha-reliability).
    NaN where all values are the same: then nothing could have differed. Raises StudyError where no item has two values.
    """
    together, values = _coincidences(ratings, level)
    return float(_alpha(together.sum(0)[None], values, level)[0])


def alpha_interval(ratings: Ratings, level: Level = "nominal", *, seed: int = 0, draws: int = RESAMPLES) -> Interval:
    """Alpha with the 95 % interval over resampled items; n counts the items with two values or more."""
    together, values = _coincidences(ratings, level)
    items = len(together)
    weights = np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), draws)
    drawn = _alpha(np.tensordot(weights.astype(np.float64), together, 1), values, level)
    value = float(_alpha(together.sum(0)[None], values, level)[0])
    known = drawn[np.isfinite(drawn)]
    return Interval(value, *(ends(known, items) if len(known) else (-np.inf, np.inf)), items)


def raw_agreement(ratings: Ratings) -> float:
    """Share of pairs of raters who gave an item the same value."""
    counts, _ = _counts(ratings, "nominal")
    return float((counts * (counts - 1)).sum() / (counts.sum(1) * (counts.sum(1) - 1)).sum())


def _coincidences(ratings: Ratings, level: Level) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coincidences of every item (I, V, V) and the sorted values (V,)."""
    if level not in LEVELS:
        raise StudyError(f"level {level!r} is unknown: give one of {', '.join(LEVELS)}")
    counts, values = _counts(ratings, level)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(values))
    return pairs / (counts.sum(1) - 1)[:, None, None], values


def _counts(ratings: Ratings, level: Level) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How often every item got every value (I, V), of items with two values or more; nominal values as numbers."""
    rows = [list(row) for row in ratings]
    if len({len(row) for row in rows}) != 1:
        raise StudyError(f"ratings have {len(rows)} rows of lengths {sorted({len(r) for r in rows})}: expected one")
    given = [(i, value) for row in rows for i, value in enumerate(row) if not _absent(value)]
    if level != "nominal" and not all(np.isfinite(value) for _, value in given):
        raise StudyError(f"a {level} rating is not finite: leave a missing rating as NaN or None")
    kinds = dict.fromkeys(value for _, value in given)
    order: list[Hashable] = list(kinds) if level == "nominal" else sorted(kinds)
    place = {value: at for at, value in enumerate(order)}
    counts = np.zeros((len(rows[0]), max(len(order), 1)))
    for item, value in given:
        counts[item, place[value]] += 1
    counts = counts[counts.sum(1) >= 2]
    if not len(counts):
        raise StudyError("no item was rated by two raters: agreement needs at least one that was")
    return counts, np.arange(len(order), dtype=np.float64) if level == "nominal" else np.array(order, dtype=np.float64)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and np.isnan(value))


def _alpha(together: NDArray[np.float64], values: NDArray[np.float64], level: Level) -> NDArray[np.float64]:
    """Alpha (B,) of coincidence matrices (B, V, V)."""
    n_c = together.sum(-1)  # (B, V)
    n = n_c.sum(-1)
    apart = _distance(n_c, values, level)
    seen = (together * apart).sum((-1, -2))
    chance = (n_c[:, :, None] * n_c[:, None, :] * apart).sum((-1, -2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance > 0, 1 - (n - 1) * seen / chance, np.nan)


def _distance(n_c: NDArray[np.float64], values: NDArray[np.float64], level: Level) -> NDArray[np.float64]:
    """Squared differences of values (B or 1, V, V); ordinal ones count the ratings that lie between."""
    if level == "nominal":
        return (1 - np.eye(len(values)))[None]
    if level == "ordinal":
        upto = n_c.cumsum(-1)
        between = np.abs(upto[:, :, None] - upto[:, None, :])  # from the end of one value to the end of the other
        low = np.minimum(np.arange(len(values))[:, None], np.arange(len(values))[None, :])
        high = np.maximum(np.arange(len(values))[:, None], np.arange(len(values))[None, :])
        return (between + n_c[:, low] / 2 - n_c[:, high] / 2) ** 2
    gap = values[:, None] - values[None, :]
    if level == "interval":
        return (gap**2)[None]
    total = np.where(values[:, None] + values[None, :] == 0, 1, values[:, None] + values[None, :])
    return ((gap / total) ** 2)[None]
