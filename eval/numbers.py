"""The numbers behind a chart as CSV, to be copied from the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter

from eval.blocks import Bars, Chart, Curve, Scatter, Tradeoff, Usage
from eval.charts import POINTS, thin
from eval.figure import Figure, Missing
from eval.page import printable

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would take for one
Value = str | float | None


def as_csv(block: Chart) -> str:
    """A header and a line for every point. Text that a spreadsheet would run begins with an apostrophe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in _rows(block):
        writer.writerow([_plain(value) for value in row])
    return buffer.getvalue()


def thinned(block: Chart) -> bool:
    """Whether the lines of a curve are means over neighbouring points, as the chart shows them."""
    return isinstance(block, Curve) and any(len(series.x) > POINTS for series in block.series)


def _rows(block: Chart) -> Iterable[Sequence[Value]]:
    match block:
        case Curve():
            yield "series", block.x_label, block.y_label, "low", "high"
            for series in block.series:
                x, y = (values.tolist() for values in thin(series))
                ends = zip(series.low, series.high, strict=True) if series.low and series.high else [("", "")] * len(x)
                yield from ((series.name, a, b, *end) for a, b, end in zip(x, y, ends, strict=True))
        case Usage():
            yield "rank from", "to", "count"
            ranked = groupby(enumerate(sorted(block.counts, reverse=True), 1), key=itemgetter(1))
            for value, ranks in ranked:  # a line for all codes that are equally common: there may be thousands
                first, *rest = (rank for rank, _ in ranks)
                yield first, rest[-1] if rest else first, value
        case Bars():
            yield f"{block.x_label} from", "to", block.y_label
            yield from zip(block.edges[:-1], block.edges[1:], block.heights, strict=True)
        case Scatter():
            yield "name", block.x_label, block.y_label, "low", "high", "n"
            yield from ((point.name, point.x, *_figure(point.y)) for point in block.points)
        case Tradeoff():
            x, y = block.x_label, block.y_label
            yield "series", "name", x, f"{x} low", f"{x} high", y, f"{y} low", f"{y} high", "n"
            rows = [(series, pair) for series, pairs in block.series.items() for pair in pairs]
            rows += [("beside", pair) for pair in block.references]
            yield from ((series, pair.name, *_figure(pair.x)[:3], *_figure(pair.y)) for series, pair in rows)
        case _:
            yield "row", "slice", "value", "low", "high", "n"
            for who, figures in block.rows.items():
                yield from ((who, part, *_figure(known)) for part, known in figures.items())


def _figure(known: Figure | Missing) -> tuple[Value, ...]:
    if isinstance(known, Missing):
        return "", "", "", ""
    return (known.value, *(known.interval() or ("", "")), known.n)


def _plain(value: Value) -> Value:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return "'" + text if text.startswith(FORMULA) else text
