"""What has changed since a baseline, as a section of a report."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.blocks import Column, Report, Row, RowKind, Section, Table
from eval.compare import LEVEL, CompareError, Comparison, Difference, compare, read_report
from eval.definitions import define
from eval.figure import Figure, Unit
from eval.report import to_json

KEYED = re.compile(r"(?P<what>[^\[]+)\[(?P<parts>.*)\]")
SIGNS = {"better": "✓ better", "worse": "✗ worse", "changed": "≠ changed"}
KINDS: dict[str, RowKind] = {"better": "better", "worse": "worse"}
NOTHING = "No figure differs beyond chance."
TITLE = "Change since the baseline"


@dataclass(frozen=True)
class Baseline:
    """An earlier report and where it lay when it was read: what is written later may take its place."""

    path: str
    content: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Read a report.json, or that of a folder. Raises CompareError for anything else."""
        return cls(str(path), read_report(path))

    def check_data(self, judged_by: str) -> None:
        """Raise CompareError where the baseline was judged by other data, before anything is measured.

        judged_by: the hash of the data of what is to be compared with it.
        """
        before = self.content.get("provenance", {}).get("data", {}).get("hash")
        if before != judged_by:
            raise CompareError(
                f"The baseline {self.path} was made on other data ({before}, now {judged_by}): give a report on the "
                "same data, or leave --against out."
            )


def with_change(report: Report, before: Baseline | None) -> Report:
    """The report with the section on what has changed behind its first one; as it is without a baseline."""
    if before is None:
        return report
    first, rest = report.sections[:1], report.sections[1:]
    return replace(report, sections=[*first, change(before, to_json(report)), *rest])


def change(before: Baseline, now: Mapping[str, Any]) -> Section:
    """The section on what differs beyond chance between the baseline and the content of a report.json."""
    said = f"Against {before.path}"
    if commit := before.content.get("provenance", {}).get("commit"):
        said += f", made by commit {commit[:20]}"
    try:
        found = compare(before.content, now)
    except CompareError as error:
        return Section(TITLE, _apart((), before.content, now), lead=f"{said}. {error}", empty="")
    blocks = [*_differing(found, before.content, now), *_apart(found.unlike, before.content, now)]
    return Section(TITLE, blocks, lead=f"{said}. {counted(found)}", empty=NOTHING)


def counted(found: Comparison) -> str:
    """How many figures were compared and what came out, in one sentence."""
    judged = sum(not math.isnan(one.p) for one in found.differences)
    parts = [f"{sum(one.verdict == name for one in found.differences)} {name}" for name in SIGNS]
    lost = f", {len(found.lost)} lost" if found.lost else ""
    return f"{len(found.differences)} figures in both, {judged} of them with intervals: {', '.join(parts)}{lost}."


def _differing(found: Comparison, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Table]:
    """The table of what differs beyond chance, the surest first, and of what is lost, where there is any."""
    differing = sorted((one for one in found.differences if one.verdict in SIGNS), key=lambda one: one.p)
    rows = [_row(one, before, now) for one in differing]
    rows += [
        Row(
            [name, _known(before, name), None, None, None, None, "✗ lost: measured before and not now"],
            "worse",
            _unit(name),
        )
        for name in found.lost
    ]
    moved = Column("difference", signed=True)
    columns = [Column("figure", code=True), "before", "after", moved, "pairs", "p (Holm)", "verdict"]
    note = (
        f"Every figure that differs with p < {LEVEL}, corrected for their number (Holm). Of "
        f"{sum(one.pairs > 0 for one in found.differences)} figures the same pictures or prompts are compared pair by "
        "pair, as many as their row says; both sides of all others count as independent, so that on the same pictures "
        "small changes are missed. Differences of shares are in points of 100. Figures without intervals "
        f"cannot differ beyond chance: {sum(one.verdict == 'no interval' for one in found.differences)} are in both."
    )
    return [Table("What differs beyond chance", columns, rows, note=note)] if rows else []


def _row(one: Difference, before: Mapping[str, Any], now: Mapping[str, Any]) -> Row:
    after = now["figures"][one.name]
    moved = Figure(one.change, after["n"], one.low, one.high, "after less before")
    cells = [
        one.name,
        _known(before, one.name),
        _known(now, one.name),
        moved,
        one.pairs or None,
        one.p,
        SIGNS[one.verdict],
    ]
    return Row(cells, KINDS.get(one.verdict, "model"), _unit(one.name))


def _apart(otherwise_read: Sequence[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Table]:
    """The table of what cannot be compared, each with its reason, where there is any.

    otherwise_read: names of figures that a judge of scenes read who is another one now.
    """
    a, b = before["figures"], now["figures"]
    only_first, only_second = [name for name in a if name not in b], [name for name in b if name not in a]
    pairs = unlike_keys(only_first, only_second)
    rows = [
        Row([a, _known(before, a), b, _known(now, b), why], "unlike", _unit(a)) for a, b, why in pairs
    ]  # fmt: skip
    rows += [
        Row([name, _known(before, name), name, _known(now, name), "read by a judge of scenes that is another one now"],
            "unlike", _unit(name))
        for name in otherwise_read
    ]  # fmt: skip
    columns = [Column("before", code=True), "value before", Column("after", code=True), "value after", "why not"]
    alone = len(only_first) + len(only_second) - 2 * len(pairs)
    note = f"{alone} more figures are in one of the two reports alone." if alone else ""
    return [Table("Not comparable", columns, rows, note=note)] if rows else []


def unlike_keys(only_first: Sequence[str], only_second: Sequence[str]) -> list[tuple[str, str, str]]:
    """Figures of one metric and subject whose keys differ between the reports: (before, after, which parts differ)."""
    later: dict[str, list[str]] = {}
    for name in only_second:
        if key := KEYED.fullmatch(name):
            later.setdefault(key["what"], []).append(name)
    pairs = []
    for name in only_first:
        if (key := KEYED.fullmatch(name)) and later.get(key["what"]):
            nearest = min(later[key["what"]], key=lambda other: len(_parts_apart(name, other)))
            later[key["what"]].remove(nearest)
            pairs.append((name, nearest, "; ".join(_parts_apart(name, nearest))))
    return pairs


def _parts_apart(before: str, after: str) -> list[str]:
    """The parts of two keys that differ, in words."""
    a, b = (_parts(name) for name in (before, after))
    parts = [part for part in {**a, **b} if a.get(part) != b.get(part)]
    return [f"{part} {a.get(part, 'none')}, now {b.get(part, 'none')}" for part in parts]


def _parts(name: str) -> dict[str, str]:
    """A key's parts by their names; the one without a name is what judges."""
    found = KEYED.fullmatch(name)
    split = (part.rpartition("=") for part in (found["parts"].split("|") if found else []))
    return {what or "judge": value for what, _, value in split}


def _known(report: Mapping[str, Any], name: str) -> Figure | None:
    one = report["figures"].get(name)
    value = one.get("value") if isinstance(one, dict) else None
    if not isinstance(one, dict) or not isinstance(value, int | float):
        return None
    return Figure(value, one.get("n", 0), one.get("low"), one.get("high"), str(one.get("source", "")))


def _unit(name: str) -> Unit:
    return define(name).unit
