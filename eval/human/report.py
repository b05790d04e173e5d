"""The report of a study: one page in the style of all reports, study.json with every figure, and the table of votes."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.blocks import Judged, Provenance, Report
from eval.figure import Figure, Known, Missing
from eval.human.analysis import Results, View
from eval.human.metrics import Fit
from eval.human.sections import (
    agreement_section,
    defect_section,
    design_section,
    metric_section,
    outcome_section,
    rater_section,
    strength_section,
)
from eval.human.study import Study
from eval.human.votes import Vote
from eval.interval import Interval
from eval.page import write_whole
from eval.report import to_html

SCHEMA = 2
TILES = 4


@dataclass(frozen=True)
class Material:
    """All that a report is made of. command: what was asked for; commit: of the code; versions: of the packages."""

    study: Study
    results: Results
    votes: Sequence[Vote]
    registered: Mapping[str, Any]
    fits: Sequence[Fit]
    command: str
    commit: str
    versions: Mapping[str, str]


def write_report(material: Material, folder: Path) -> tuple[Path, Path]:
    """Write report.html and study.json into `folder`, each whole or not at all. Returns both paths."""
    page, figures = folder / "report.html", folder / "study.json"
    write_whole(figures, json.dumps(to_json(material), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(page, to_html(as_report(material)))
    return page, figures


def to_json(material: Material) -> dict[str, Any]:
    """The content of study.json: results of all raters and of those that count, with what was registered."""
    results = material.results
    return {
        "schema": SCHEMA,
        "study": results.study,
        "registered": _finite(dict(material.registered)),
        "figures": {name: _figure(figure) for name, figure in study_figures(results).items()},
        "everyone": _finite(dataclasses.asdict(results.everyone)),
        "kept": None if results.kept is None else _finite(dataclasses.asdict(results.kept)),
        "raters": _finite([dataclasses.asdict(rater) for rater in results.raters]),
        "metrics": _finite([dataclasses.asdict(fit) for fit in material.fits]),
        "notes": list(results.notes),
        "command": material.command,
        "commit": material.commit,
    }


def as_report(material: Material) -> Report:
    """The report as plain blocks."""
    study, results = material.study, material.results
    out = [rater for rater in results.raters if rater.excluded]
    summary = (
        f"{results.main.votes} judgements of {len(results.raters) - len(out)} raters"
        + (f" ({len(out)} more are excluded by the registered rules)" if results.kept and out else "")
        + f" on {len(study.models)} models: {', '.join(study.models)}."
    )
    sections = [
        outcome_section(study, results),
        strength_section(study, results.main),
        agreement_section(results.main),
        defect_section(study, results.main),
        rater_section(study, results, material.votes),
        metric_section(study, material.fits),
        design_section(study, material.registered),
    ]
    figures = study_figures(results)
    return Report(
        title=f"Human study: {study.name}",
        summary=summary,
        provenance=Provenance(
            commit=material.commit.removesuffix("-dirty"),
            dirty=material.commit.endswith("-dirty"),
            recipe=study.name,
            recipe_hash=results.study,
            command=material.command,
            resolved=dict(material.registered["study"]),
            seeds={"study": study.seed},
            artefacts={f"pictures of {name}": sha[:16] for name, sha in material.registered["pictures"].items()},
            versions=material.versions,
            models=[Judged(name=name, pictures=sha[:12]) for name, sha in material.registered["pictures"].items()],
        ),
        sections=[section for section in sections if section is not None],
        figures=figures,
        highlights=_tiles(study, figures),
        about="study",
    )


def study_figures(results: Results) -> dict[str, Known]:
    """Every figure of the main view by its name."""
    source = f"study {results.study}"
    shown: View = results.main
    found: dict[str, Known] = {}
    for one in shown.outcomes:
        found[f"study.{one.criterion}.win_rate[{one.model_a} over {one.model_b}]"] = Figure.of(one.win_rate, source)
    for standing in shown.standings:
        for row in standing.strengths:
            found[f"study.{standing.criterion}.points[{row.model}]"] = Figure.of(row.points, source)
    for grade in shown.grades:
        found[f"study.{grade.criterion}.grade[{grade.model}]"] = Figure.of(grade.mean, source)
    for agreed in shown.agreement:
        nothing = Missing("every answer was the same, so that nothing could differ")
        found[f"study.{agreed.criterion}.alpha"] = Figure.of(agreed.alpha, source) if agreed.alpha else nothing
    if shown.consistency:
        found["study.consistency"] = Figure.of(shown.consistency, source)
    if shown.left:
        found["study.left"] = Figure.of(shown.left, source)
    return found


def _tiles(study: Study, figures: Mapping[str, Known]) -> list[str]:
    """The figures at the top: win rates, or grades, on the criterion that sums up the others."""
    criterion = "preference" if "preference" in study.criteria else study.criteria[0]
    kind = "grade" if study.mode == "likert" else "win_rate"
    return [name for name in figures if name.startswith(f"study.{criterion}.{kind}[")][:TILES]


def _figure(figure: Known) -> dict[str, Any]:
    if isinstance(figure, Missing):
        return {"value": None, "reason": figure.reason}
    low, high = figure.interval() or (None, None)
    return {"value": float(figure.value), "n": int(figure.n), "low": low, "high": high, "source": figure.source}


def _finite(value: Any) -> Any:
    """JSON without NaN and infinities: they become null."""
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, Interval):
        return _finite(dataclasses.asdict(value))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
