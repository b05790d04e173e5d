"""All distances between two sets of features: each a figure with its honest name, its count and its interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from eval.blocks import Column, Row, RowKind, Table
from eval.features import NOTE, Embedder, feature_key
from eval.figure import Better, Figure, Known, Missing, Unit, attempted
from eval.frechet import frechet_distance, frechet_interval, moments, rank_note
from eval.frechet_infinity import frechet_infinity
from eval.interval import Interval
from eval.kernel import cmmd_interval, kid_interval
from eval.prdc import prdc_intervals
from eval.sliced import mind_interval
from eval.towers import is_fid
from pipelines.scoring.reference import Statistics

NEIGHBOURS = 5
JACKKNIFE = "jackknife over blocks of both sets"
LARGER = 2  # pictures for each dimension, at least, before a line is laid through distances
SHARES = ("precision", "recall", "density", "coverage")
HEADS = {"fd": "Fréchet", "fid": "FID", "fd-infinity": "Fréchet, infinite n", "fid-infinity": "FID, infinite n",
         "kd": "kernel", "mind": "MIND", "cmmd": "CMMD"}  # fmt: skip
Features = NDArray[np.float32]  # (n, d)


@dataclass(frozen=True)
class Distance:
    """A figure with the name of its metric (fd, kd, ...) and its key, the embedder and both sizes included."""

    metric: str
    key: str
    figure: Known

    @property
    def column(self) -> Column:
        """The column of a table in which it stands."""
        name = self.metric.partition("-k")[0]
        unit, better = _reads(name)
        return Column(HEADS.get(name, name), unit, better)


@dataclass(frozen=True)
class SetRow:
    """The distances of one set of pictures. subject: the first part of its figures' names; label: what a table says."""

    subject: str
    label: str
    kind: RowKind
    distances: list[Distance]


def figures_of(rows: Sequence[SetRow]) -> dict[str, Known]:
    """Figures by name."""
    return {f"{row.subject}.{one.key}": one.figure for row in rows for one in row.distances}


def table_of(title: str, rows: Sequence[SetRow], embedder: Embedder, about: str = "") -> Table:
    """All sets, a distance a column; the warning says why a Fréchet distance is no FID.

    about: what more there is to say of them. What no set has is said below, with the reason, instead of a column.
    """
    columns = [[row.distances[i] for row in rows] for i in range(len(rows[0].distances))]
    shown = [column for column in columns if any(isinstance(one.figure, Figure) for one in column)]
    reasons = {column[0].column.name: column[0].figure for column in columns if column not in shown}
    absent = [f"{name}: {found.reason}." for name, found in reasons.items() if isinstance(found, Missing)]
    by = f"By {embedder.name}:{embedder.sha256[:8]}, resize {embedder.resize}."
    return Table(
        title,
        ["pictures", *(column[0].column for column in shown)],
        [Row([row.label, *(column[i].figure for column in shown)], row.kind) for i, row in enumerate(rows)],
        warning="" if is_fid(embedder.name, embedder.sha256, embedder.resize) else f"No FID: {_why(embedder)}.",
        note=" ".join(filter(None, (by, about, "Distances depend on the sizes of both sets.", *absent))),
    )


def _why(embedder: Embedder) -> str:
    """Say why a Fréchet distance of this embedder has no famous name."""
    if embedder.name.startswith("inception-2015"):
        return "these weights, or this resize, are not those of 2015-12-05"
    return f"this is {NOTE}" if embedder.name.startswith("indomain") else "only Inception-2015-12-05 makes one"


def distances(
    found: Features, against: Features | Statistics, embedder: Embedder, split: str, *, seed: int = 0
) -> list[Distance]:
    """All distances of features found, (n, d), to a reference; split: what the reference is a part of.

    Of statistics only the Fréchet distance can be had, without an interval, and it is not called FID: nobody says by
    which resize they were made. What cannot be measured is missing with its reason. Where there are fewer pictures than
    dimensions the Fréchet distance says so, and the kernel distance beside it is the one to read.
    """
    n, frechet = len(found), "fid" if is_fid(embedder.name, embedder.sha256, embedder.resize) else "fd"

    def one(metric: str, source: str, measure: Callable[[], Interval], n: int, m: int) -> Distance:
        key = str(feature_key(metric, embedder, generated=n, reference=m, split=split))
        return Distance(metric, key, attempted(measure, source))

    if isinstance(against, Statistics):
        reference, source = against.moments, f"against {against.title}, of unknown size and resize: no interval"
        return [one("fd", source, lambda: _alone(frechet_distance(moments(found), reference), n), n, 0)]
    rng = np.random.default_rng(seed)  # names in order may mean kinds in order
    found, against = (features[rng.permutation(len(features))] for features in (found, against))
    m, d = len(against), found.shape[1]
    rank, blocks = rank_note(n, m, d), min(10, min(n, m) // 2)
    whole = cache(lambda: frechet_interval(found, against))
    infinite, fit = _infinite(found, against, whole, seed)
    made = [
        one(frechet, "; ".join(filter(None, ("jackknife over blocks, biased upwards by about c / n", rank))),
            whole, n, m),
        one(f"{frechet}-infinity", f"line over 1 / n of both sides; interval of the Fréchet distance, widened{fit}",
            infinite, n, m),
        one("kd", JACKKNIFE, lambda: kid_interval(found, against, blocks=blocks), n, m),
        one("mind", f"1000 directions; {JACKKNIFE}", lambda: mind_interval(found, against, blocks=blocks), n, m),
    ]  # fmt: skip
    if embedder.name.startswith(("openclip", "indomain-openclip")):
        measure = partial(cmmd_interval, found, against, blocks=blocks)
        made.append(one("cmmd", f"biased, as published; {JACKKNIFE}", measure, n, m))
    return made + list(_balls(found, against, one))


def _infinite(
    found: Features, against: Features, whole: Callable[[], Interval], seed: int
) -> tuple[Callable[[], Interval], str]:
    """The measure of the Fréchet distance of infinitely many pictures, and what is said of the line that gives it."""
    few, wanted = min(len(found), len(against)), LARGER * found.shape[1]
    if few < wanted:
        reason = f"{few} pictures for {found.shape[1]} dimensions: its law holds from {wanted} pictures on"
        return partial(_refused, reason), ""
    try:
        line = frechet_infinity(found, against, seed=seed)
    except ValueError as error:
        return partial(_refused, str(error)), ""
    return lambda: line.interval(whole()), f"; the error of the fit is {line.se:.3g}, R2 {line.r2:.3f}"


def _balls(found: Features, against: Features, one: Callable[..., Distance]) -> Iterator[Distance]:
    """Precision, recall, density and coverage, of equal sizes of both sets: they depend on them."""
    same = min(len(found), len(against))
    overlap = cache(lambda: prdc_intervals(against[:same], found[:same], NEIGHBOURS))
    source = f"balls of {NEIGHBOURS} neighbours, equal sizes of both sets; interval over pictures of both"
    for part in SHARES:
        yield one(f"{part}-k{NEIGHBOURS}", source, lambda part=part: overlap()[part], same, same)


def _refused(reason: str) -> Interval:
    raise ValueError(reason)


def _alone(value: float, n: int) -> Interval:
    return Interval(float(value), -np.inf, np.inf, n)


def _reads(name: str) -> tuple[Unit, Better]:
    return ("share" if name != "density" else "plain", "higher") if name in SHARES else ("plain", "lower")
