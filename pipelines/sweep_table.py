"""What the sections of all sweeps share: metrics, figures of rows, curves over what rows vary along, tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from eval.blocks import Block, Cell, Column, Curve, Row, Series, Table
from eval.figure import Better, Figure, Known, Unit, missing
from eval.interval import paired
from pipelines.sampling_options import NOISY_SAMPLERS, REMASKING_SAMPLERS
from pipelines.sweep_judged import REAL, SHUFFLED

FAMILIES = {  # of curves, few enough for one chart
    "multistep": ("ddim", "dpmpp_2m", "dpmpp_3m", "unipc"),
    "stochastic": NOISY_SAMPLERS,
    "confidence-ordered": ("confidence", "maskgit", "entropy_bound"),
    "remasking": REMASKING_SAMPLERS,
}
Measured = Mapping[str, Any]


class Metric(NamedTuple):
    """What a row was measured by."""

    key: str
    label: str
    unit: Unit
    better: Better | None

    @property
    def column(self) -> Column:
        """Its column in a table."""
        return Column(self.label, self.unit, self.better)


METRICS = {
    metric.key: metric
    for metric in (
        Metric("colour", "colours as asked", "share", "higher"),
        Metric("shape", "shapes as asked", "share", "higher"),
        Metric("caption_colour", "colours in captions", "share", "higher"),
        Metric("caption_shape", "shapes in captions", "share", "higher"),
        Metric("kd", "kernel distance", "plain", "lower"),
        Metric("fd", "Fréchet distance", "plain", "lower"),
        Metric("mind", "MIND", "plain", "lower"),
        Metric("clip_score", "CLIP score", "plain", "higher"),
        Metric("precision", "precision", "share", "higher"),
        Metric("recall", "recall", "share", "higher"),
        Metric("code_entropy", "entropy of codes", "plain", None),
        Metric("caption_entropy", "entropy of words", "plain", None),
        Metric("seconds", "seconds each", "plain", "lower"),
    )
}
DISTANCE = "distance"  # Fréchet's or the kernel distance
DIFFERENCES = {"clip_score": "CLIP score less that of the best row", "scene": "as asked less the best row"}


class Axis(NamedTuple):
    """What the rows of a group vary along."""

    label: str
    of: Callable[[Measured], float]


COLUMNS: dict[str, Callable[[Measured], Cell]] = {  # what is said of a row; of a real one only its name
    "curve": lambda row: row["curve"],
    "evaluations": lambda row: None if row["group"] == REAL else row["evaluations"],
    "guidance": lambda row: None if row["group"] == REAL else f"{row['scale']:g}",
}
EVALUATIONS = Axis("network evaluations", lambda row: row["evaluations"])
SECONDS = Axis("seconds each", lambda row: row["figures"]["seconds"]["value"])


def kept(interval: Mapping[str, Any], source: str) -> Figure:
    """Return the figure of an interval that was written down as plain values."""
    df = interval.get("df", math.inf)
    return Figure(interval["value"], interval["n"], interval["low"], interval["high"], source, df)


def figure_of(row: Measured, metric: str, name: str) -> Figure:
    """A figure of a row of sweep `name`, with what made it and what is to be minded."""
    sampler = row["sampler"] if row["curve"] == row["sampler"] else f"{row['curve']} ({row['sampler']})"
    how = f"{sampler}, {row['evaluations']} evaluations, guidance {row['scale']:g}"
    if row["group"] == REAL:
        how = row["curve"]
    note = row.get("notes", {}).get(metric)
    return kept(row["figures"][metric], f"{name}: {row['model']}, {how}{f'; {note}' if note else ''}")


def known(row: Measured, metric: str, name: str) -> Known | None:
    """A figure of a row of sweep `name`, or why it cannot be had; None for what was not asked."""
    if metric in row["figures"]:
        return figure_of(row, metric, name)
    note = row.get("notes", {}).get(metric)
    return missing(note) if note else None


def family(curve: str) -> str:
    """The family of samplers that a curve belongs to; empty for plain ones."""
    return next((label for label, curves in FAMILIES.items() if curve in curves), "")


def measured(rows: Sequence[Measured]) -> list[Metric]:
    """The metrics that some row was measured by."""
    return [metric for key, metric in METRICS.items() if any(key in row["figures"] for row in rows)]


def distance(rows: Sequence[Measured]) -> Metric:
    """The distance to read: Fréchet's, or the kernel distance where a covariance of some row lacks rank."""
    sound = all("fd" in row["figures"] and "fd" not in row.get("notes", {}) for row in rows)
    return METRICS["fd" if rows and sound else "kd"]


def real_of(rows: Sequence[Measured], *, shuffled: bool = False) -> Measured | None:
    """The row of held-out pictures with their captions, or with those of others; rows of older versions have none."""
    found = (row for row in rows if row["group"] == row["model"] == REAL)
    return next((row for row in found if (row["curve"] == SHUFFLED) == shuffled), None)


def curves(
    rows: Sequence[Measured],
    metrics: Sequence[str],
    axis: Axis,
    *,
    families: bool = False,
    more: str = "",
    levels: Mapping[str, Measured] | None = None,
) -> list[Block]:
    """A chart for each metric over an axis, or for each family of samplers; levels: rows that are lines all along.

    metrics: by their keys; DISTANCE is the one of the two that these rows are to be read by.
    """
    blocks: list[Block] = []
    for metric in (distance(rows) if key == DISTANCE else METRICS[key] for key in metrics):
        found = [row for row in rows if metric.key in row["figures"]]
        for kin in dict.fromkeys(family(row["curve"]) if families else "" for row in found):
            mine = [row for row in found if not families or family(row["curve"]) == kin]
            series = lines(mine, metric.key, axis)
            series += [
                level(name, row, metric.key, series)
                for name, row in (levels or {}).items()
                if metric.key in row["figures"]
            ]
            title = f"{metric.label}{more}{f', {kin} samplers' if kin else ''}"
            blocks.append(
                Curve(title, series, x_label=axis.label, y_label=metric.label, log=metric.key in ("kd", "fd", "mind"))
            )
    return blocks


def lines(rows: Sequence[Measured], metric: str, axis: Axis) -> list[Series]:
    """The curves of a chart: a metric over what the rows vary along, with its intervals where all rows have them."""
    made = []
    for curve in dict.fromkeys(row["curve"] for row in rows):
        mine = sorted((row for row in rows if row["curve"] == curve), key=axis.of)
        y, low, high = ([row["figures"][metric][end] for row in mine] for end in ("value", "low", "high"))
        ends = () if None in (*low, *high) else (low, high)
        made.append(Series(curve, [axis.of(row) for row in mine], y, *ends))
    return made


def level(name: str, row: Measured, metric: str, beside: Sequence[Series]) -> Series:
    """A line at the height of one row, as long as the curves beside it."""
    places = [x for series in beside for x in series.x]
    return Series(name, [min(places), max(places)], [row["figures"][metric]["value"]] * 2)


def table(
    title: str,
    rows: Sequence[Measured],
    name: str,
    columns: Mapping[str, Callable[[Measured], Cell]],
    *,
    differences: bool = False,
    note: str = "",
) -> Table:
    """All rows: columns of their own, then their figures, then differences to the best row on the same draws."""
    metrics = measured([row for row in rows if row["group"] != REAL])
    best = {which: _best(rows, which) for which in DIFFERENCES} if differences else {}
    best = {which: row for which, row in best.items() if row is not None}
    made = []
    for row in rows:
        cells = [of(row) for of in columns.values()]
        cells += [known(row, m.key, name) for m in metrics]
        cells += [difference(row, top, which) for which, top in best.items()]
        kind = "model" if row["group"] != REAL else "floor" if row["curve"] == SHUFFLED else "ceiling"
        made.append(Row(cells, kind=kind))
    heads = [*columns, *(metric.column for metric in metrics), *(Column(DIFFERENCES[which]) for which in best)]
    paired_note = "Differences are paired by captions: all rows share captions and draws." if best else ""
    return Table(title, heads, made, note=" ".join(filter(None, (note, paired_note))))


def _best(rows: Sequence[Measured], which: str) -> Measured | None:
    known = [row for row in rows if which in row.get("each", {}) and row["group"] != REAL]
    return max(known, key=lambda row: sum(row["each"][which]) / len(row["each"][which]), default=None)


def difference(row: Measured, best: Measured, which: str) -> Figure | None:
    """By how much a row is below the best one, over the same prompts; None for rows without means of prompts."""
    mine, other = row.get("each", {}).get(which, ()), best["each"][which]
    if len(mine) != len(other) or len(mine) < 2 or row is best:
        return None
    return Figure.of(paired(mine, other), "paired by captions, Student's t")
