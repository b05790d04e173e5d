"""Rows of a sweep, each written as it is measured, so that an interrupted sweep goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eval.interval import Interval
from pipelines.artefact import write_atomically
from pipelines.progress import meter
from pipelines.sampling_options import Settings

ROWS = "sweep.jsonl"


@dataclass(frozen=True)
class Setting:
    """One row to measure: which curve it belongs to, and how to sample."""

    group: str
    model: str
    curve: str
    settings: Settings
    within: int | None = None  # the evaluations that were allowed

    @property
    def key(self) -> str:
        """What tells a row from the others."""
        return json.dumps([self.group, self.model, self.curve, dataclasses.asdict(self.settings)], sort_keys=True)


Wanted = TypeVar("Wanted", bound=Setting)


def measure_rows(
    folder: Path, name: str, wanted: Sequence[Wanted], measure: Callable[[Wanted], dict[str, Any]]
) -> None:
    """Measure every setting that is not yet in the file of rows."""
    path = folder / ROWS
    rows = read_rows(path)
    whole = "".join(json.dumps(row) + "\n" for row in rows.values())
    write_atomically(path, lambda temporary: temporary.write_text(whole, encoding="utf-8"))
    with meter(name, len(wanted)) as shown, path.open("a", encoding="utf-8") as file:
        for setting in wanted:
            if setting.key not in rows:
                file.write(json.dumps({"key": setting.key, **measure(setting)}) + "\n")
                file.flush()
            shown.advance(1, setting.curve)


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows that are there, by key; a torn last line is left out, and its row made again."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        rows[row["key"]] = row
    return rows


def plain_interval(interval: Interval) -> dict[str, float]:
    """Return an interval as plain values."""
    return {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
