"""Two reports side by side: what has changed, what has changed beyond chance, and what cannot be compared."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scipy import stats

from eval.definitions import define
from eval.figure import Better
from eval.report import SCHEMA
from eval.samples import Samples, change, from_json

LEVEL = 0.05
ROUNDED = 1e-3  # by how much, of itself, a figure may differ from the mean of its rounded values
ASIDE = re.compile(r"(real|reference|shuffled|chance|card)\.")  # figures of no model
JUDGED = re.compile(r"\.(scene|sweep)\.")
JUDGES = ("judge", "scene_judge")
Verdict = Literal["better", "worse", "changed", "", "no interval"]


class CompareError(ValueError):
    """Reports that cannot be compared; the message says why and what to do."""


@dataclass(frozen=True)
class Difference:
    """A figure of both reports. change is second - first with its 95 % interval [low, high], NaN without intervals.

    p: of no difference, corrected by Holm over all figures with intervals. verdict: better or worse where p < 0.05 and
    the figure has a direction, changed where it has none. pairs: pictures or prompts that both reports have the values
    of, which change, interval and p then rest on; 0 where the figures count as independent.
    """

    name: str
    first: float
    second: float
    change: float
    low: float
    high: float
    p: float
    better: Better | None
    verdict: Verdict = ""
    pairs: int = 0


@dataclass(frozen=True)
class Comparison:
    """Figures of both reports, and those that cannot be compared."""

    differences: tuple[Difference, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    lost: tuple[str, ...]  # measured in the first report; in the second it could not be
    unlike: tuple[str, ...]  # read by judges that are not the same in both

    @property
    def regressions(self) -> tuple[Difference, ...]:
        """What has become worse beyond chance."""
        return tuple(one for one in self.differences if one.verdict == "worse")


def read_report(path: Path) -> dict[str, Any]:
    """Read a report.json, or that of a run's folder. Raises CompareError for anything else."""
    found = next((p for p in (path, path / "report.json", path / "eval" / "report.json") if p.is_file()), None)
    if found is None:
        raise CompareError(f"There is no report at {path}: give a report.json, or a folder that holds one.")
    try:
        content = json.loads(found.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CompareError(f"{found} is no JSON ({error}): make the report again.") from error
    if not isinstance(content, dict) or not isinstance(content.get("figures"), dict):
        raise CompareError(f"{found} is no report: it has no figures.")
    if content.get("schema") != SCHEMA:
        raise CompareError(
            f"{found} has schema {content.get('schema')!r}, expected {SCHEMA}: make it again with this version."
        )
    return content


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """Compare the figures of equal names; what is in brackets is a part of the name.

    Where both reports hold the values of a figure for the same pictures or prompts, the test is paired, over what each
    of them changes by (`eval.samples.change`). Else the standard error of a difference is that of independent figures,
    from the widths of both intervals: of the same pictures it is too large, misses small changes and invents none.
    Figures that a judge of scenes reads say nothing of it in their names: where the judges differ they are left out.
    Raises CompareError where the reports judge by different data, or have no figure of a model in common.
    """
    data = [report.get("provenance", {}).get("data", {}).get("hash") for report in (first, second)]
    if data[0] != data[1]:
        raise CompareError(
            f"The reports were made on different data ({data[0]} and {data[1]}): judge both against the same."
        )
    a, b = first["figures"], second["figures"]
    both = [name for name in a if name in b and _value(a[name]) is not None]
    other = _judges(first) != _judges(second)
    unlike = tuple(name for name in both if other and JUDGED.search(name))
    lost = tuple(name for name in both if _value(b[name]) is None and not ASIDE.match(name))
    common = [name for name in both if _value(b[name]) is not None and name not in unlike]
    if not lost and all(ASIDE.match(name) for name in common):
        raise CompareError(
            "The reports have no figure of a model in common: a name holds the folder or stage, the embedder's hash, "
            "the resize and the sizes, which must agree."
        )
    singly = _singly(first), _singly(second)
    return Comparison(
        differences=_judged(
            [_paired(name, a[name], b[name], *singly) or _difference(name, a[name], b[name]) for name in common]
        ),
        only_first=tuple(name for name in a if name not in b),
        only_second=tuple(name for name in b if name not in a),
        lost=lost,
        unlike=unlike,
    )


def _judges(report: Mapping[str, Any]) -> dict[str, Any]:
    """The hashes of the stages that judge."""
    made = report.get("provenance", {})
    stages = made.get("resolved", {}).get("stage", {})
    kinds = {name: stage.get("kind") for name, stage in stages.items() if isinstance(stage, dict)}
    return {name: found for name, found in made.get("artefacts", {}).items() if kinds.get(name) in JUDGES}


def _judged(raw: list[Difference]) -> tuple[Difference, ...]:
    """Correct the p values over all figures that have one (Holm 1979), and say what they mean."""
    order = sorted((i for i, one in enumerate(raw) if not math.isnan(one.p)), key=lambda i: raw[i].p)
    found, highest = list(raw), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * raw[i].p))
        found[i] = replace(raw[i], p=highest, verdict=_verdict(raw[i], highest))
    return tuple(found)


def _verdict(one: Difference, p: float) -> Verdict:
    if p >= LEVEL:
        return ""
    if one.better is None:
        return "changed"
    return "better" if (one.change > 0) == (one.better == "higher") else "worse"


def _difference(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Difference:
    first, second = float(a["value"]), float(b["value"])
    errors = [_error(one) for one in (a, b)]
    gap, error, df = second - first, math.hypot(*errors), _welch(errors, [_df(one) for one in (a, b)])
    if math.isnan(error) or (not error and gap):  # intervals without width come from samples that are all alike
        p, verdict = math.nan, "no interval"
    else:
        p = float(2 * stats.t.sf(abs(gap) / error, df)) if error else float(gap == 0)
        verdict = ""
    half = float(stats.t.ppf(0.975, df)) * error
    return Difference(name, first, second, gap, gap - half, gap + half, p, _better(name), verdict)


def _singly(report: Mapping[str, Any]) -> dict[str, Samples]:
    """The values of single pictures and prompts by figure. Raises CompareError where they cannot be read."""
    try:
        return from_json(report.get("samples", {}))
    except ValueError as error:
        raise CompareError(str(error)) from error


def _paired(
    name: str, a: Mapping[str, Any], b: Mapping[str, Any], first: Mapping[str, Samples], second: Mapping[str, Samples]
) -> Difference | None:
    """The difference over the same pictures or prompts; None where there are none, or they do not make the figures."""
    if name not in first or name not in second:
        return None
    for figure, samples in ((a, first[name]), (b, second[name])):
        if not math.isclose(samples.mean, figure["value"], rel_tol=ROUNDED, abs_tol=ROUNDED):
            return None
    found = change(first[name], second[name])
    if found is None:
        return None
    gap, p = found
    made = Difference(name, float(a["value"]), float(b["value"]), gap.value, gap.low, gap.high, p, _better(name))
    return replace(made, pairs=gap.n)


def _better(name: str) -> Better | None:
    return None if ASIDE.match(name) else define(name).better  # a floor that falls is no loss


def _value(figure: Any) -> float | None:
    value = figure.get("value") if isinstance(figure, dict) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _error(figure: Mapping[str, Any]) -> float:
    """Standard error that an interval tells of; NaN where there is none."""
    low, high = figure.get("low"), figure.get("high")
    if low is None or high is None:
        return math.nan
    df = _df(figure)
    half = high - figure["value"] if math.isfinite(df) else (high - low) / 2  # Student's are cut off at 0 only below
    return float(half) / float(stats.t.ppf(0.975, df))


def _df(figure: Mapping[str, Any]) -> float:
    return float(figure.get("df", math.inf))


def _welch(errors: list[float], df: list[float]) -> float:
    """Degrees of freedom of a difference of two independent figures (Welch 1947, Satterthwaite 1946)."""
    total = sum(error**2 for error in errors)
    parts = sum(error**4 / each for error, each in zip(errors, df, strict=True))
    return total**2 / parts if parts else math.inf
