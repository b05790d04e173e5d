"""The report: one self-contained page and one JSON file from plain data (`eval.blocks`).

`report.html` holds everything (pictures, charts, style) under a policy that lets nothing load or run but its own style
and script. `report.json` holds every figure with its count, interval and source, and what single pictures add to means
(`eval.samples`). Equal input gives equal bytes.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from eval import charts, samples
from eval.blocks import (
    Block,
    Column,
    Curve,
    Dots,
    Gallery,
    Judged,
    Provenance,
    Report,
    Row,
    Section,
    Series,
    Table,
    Texts,
    Usage,
)
from eval.definitions import define
from eval.display import draw, grid, labelled, pictures_line, runs, seconds, show, usage_line
from eval.figure import Figure, Known, Missing, missing, why_not_finite
from eval.headline import headline
from eval.marks import mark
from eval.numbers import as_csv, thinned
from eval.page import asset, data_uri, environment, render, write_whole
from eval.selftest import alarm, as_table, self_test

SCHEMA = 1
SCRIPTS = ("report.js", "filter.js", "gallery.js")
__all__ = [
    "Block",
    "Column",
    "Curve",
    "Dots",
    "Figure",
    "Gallery",
    "Judged",
    "Missing",
    "Provenance",
    "Report",
    "Row",
    "Section",
    "Series",
    "Table",
    "Texts",
    "Usage",
    "headline",
    "missing",
    "to_html",
    "to_json",
    "write_report",
]


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `report.html` and `report.json` into `folder`, each whole or not at all. Returns both paths."""
    page, figures = folder / "report.html", folder / "report.json"
    write_whole(figures, samples.written(to_json(report)))
    write_whole(page, to_html(report))
    return page, figures


def to_json(report: Report) -> dict[str, Any]:
    """The content of report.json; numbers are finite or null, and a null figure has a reason."""
    blocks = [block for section in report.sections for block in section.blocks]
    return {
        "schema": SCHEMA,
        "title": report.title,
        "figures": {name: _figure_json(figure) for name, figure in report.figures.items()},
        "provenance": _finite(dataclasses.asdict(report.provenance)),
        "self_test": [_finite(dataclasses.asdict(one)) for one in self_test()],
        "texts": [
            {
                "title": block.title,
                "items": [text if isinstance(text, str) else list(map(str, text)) for text in block.items],
            }
            for block in blocks
            if isinstance(block, Texts)
        ],
        **({"samples": samples.to_json(report.samples)} if report.samples else {}),
    }


def to_html(report: Report) -> str:
    """The page as text."""
    made = environment()
    numbers = count(1)
    made.filters |= {"grid": grid, "picture": data_uri, "seconds": seconds, "runs": runs, "pretty": pretty}
    made.filters |= {"csv": as_csv, "thinned": thinned}
    made.globals |= {
        "draw": lambda block: draw(block, f"c{next(numbers)}-"),
        "usage_line": usage_line,
        "pictures_line": pictures_line,
        "labelled": labelled,
    }
    style = asset("page.css") + asset("report.css") + charts.css()
    highlights = [(name, known) for name in report.highlights if isinstance(known := report.figures.get(name), Figure)]
    checks = self_test()
    return render(
        made,
        "report.html",
        style,
        "".join(map(asset, SCRIPTS)),
        report=report,
        tiles=[(define(name), show(figure, define(name).unit)) for name, figure in highlights],
        mark=mark(report.figures) if report.about == "recipe" else None,
        alarm=alarm(checks),
        passed=sum(one.passed for one in checks),
        checks=as_table(checks),
        judged=judged(report.provenance.models),
        captions=_captioned(report),
        files=Table("Files", ["file", Column("sha256", code=True)], list(report.provenance.files.items())),
        all_figures=_all_figures(report),
        words=_words(report),
    )


def _captioned(report: Report) -> bool:
    """Whether there are captions to be filtered; the texts of a study are questions."""
    kinds = Gallery | Texts if report.about == "recipe" else Gallery
    return any(isinstance(block, kinds) for section in report.sections for block in section.blocks)


def judged(models: Sequence[Judged]) -> Table:
    """What was judged, a line for each; what is known of none has no column."""
    facts = [field.name for field in dataclasses.fields(Judged)]
    shown = [fact for fact in facts if any(getattr(one, fact) not in ("", None) for one in models)]
    columns = [Column("model" if fact == "name" else fact, code=fact in ("checkpoint", "pictures")) for fact in shown]
    return Table("What was judged", columns, [[_said(getattr(one, fact)) for fact in shown] for one in models])


def _said(value: str | int | None) -> str | None:
    return None if value in ("", None) else str(value)


def pretty(value: Any) -> str:
    """Plain values as indented JSON; the template escapes it."""
    return json.dumps(value, indent=1, ensure_ascii=False)


def _all_figures(report: Report) -> Table:
    """Every figure of report.json on one line, for the appendix."""
    rows = []
    for name, figure in report.figures.items():
        about = (figure.n, figure.source) if isinstance(figure, Figure) else (None, figure.reason)
        rows.append(Row([name, figure, *about], unit=define(name).unit))
    return Table("Every figure", [Column("name", code=True), "value", "n", "source, or why it is missing"], rows)


def _words(report: Report) -> list[tuple[str, list[str]]]:
    """Definitions in plain words, each with the names of the figures that it covers."""
    covered: dict[str, list[str]] = {}
    for name in report.figures:
        covered.setdefault(define(name).text, []).append(name)
    return list(covered.items())


def _figure_json(figure: Known) -> dict[str, Any]:
    if isinstance(figure, Missing):
        return {"value": None, "reason": figure.reason}
    if not math.isfinite(figure.value):
        return {"value": None, "reason": why_not_finite(figure), "n": int(figure.n), "source": figure.source}
    low, high = figure.interval() or (None, None)
    known = {"df": figure.df} if low is not None and math.isfinite(figure.df) else {}
    return {
        "value": float(figure.value),
        "n": int(figure.n),
        "low": low,
        "high": high,
        **known,
        "source": figure.source,
    }


def _finite(value: Any) -> Any:
    """JSON without NaN: a number that is not finite becomes its name."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
