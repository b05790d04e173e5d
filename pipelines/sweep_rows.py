"""Rows of a sweep, each written as it is measured, so that an interrupted sweep goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eval.interval import Interval, mean_interval
from pipelines.artefact import write_atomically
from pipelines.kept_weights import USED, Weights
from pipelines.progress import meter
from pipelines.sampling_options import Settings

ROWS = "sweep.jsonl"
SCHEMA = 3  # of rows: an unfinished sweep makes those of another one again, a report shows what they have


@dataclass(frozen=True)
class Setting:
    """One row to measure: which curve it belongs to, and how to sample."""

    group: str
    model: str
    curve: str
    settings: Settings
    within: int | None = None  # the evaluations that were allowed
    weights: Weights = USED

    @property
    def key(self) -> str:
        """What tells a row from the others: how it is sampled, and not how many evaluations were allowed."""
        other = [self.weights] if self.weights != USED else []
        parts = [self.group, self.model, self.curve, dataclasses.asdict(self.settings), *other]
        return json.dumps(parts, sort_keys=True)

    @property
    def scale(self) -> float:
        """The scale of what guides: of a classifier's gradient where there is one, else of the two branches."""
        options = self.settings.latent
        return options.classifier_scale if options.classifier else self.settings.guidance

    @property
    def plain(self) -> dict[str, Any]:
        """What a row says of itself, as plain values."""
        own = {"group": self.group, "model": self.model, "curve": self.curve, "within": self.within}
        return {**own, **self.weights._asdict(), **dataclasses.asdict(self.settings)}


Wanted = TypeVar("Wanted", bound=Setting)


def measure_rows(folder: Path, name: str, wanted: Sequence[Wanted], measure: Callable[[Wanted], dict[str, Any]]) -> int:
    """Measure every setting that is not yet in the file of rows, as rows are made now; equal settings are one row.

    Returns the number of rows that were wanted.
    """
    path = folder / ROWS
    rows = {key: row for key, row in read_rows(path).items() if row.get("schema") == SCHEMA}
    whole = "".join(json.dumps(row) + "\n" for row in rows.values())
    write_atomically(path, lambda temporary: temporary.write_text(whole, encoding="utf-8"))
    once = dict[str, Wanted]()
    for setting in wanted:
        once.setdefault(setting.key, setting)
    with meter(name, len(once)) as shown, path.open("a", encoding="utf-8") as file:
        for key, setting in once.items():
            if key not in rows:
                file.write(json.dumps({"schema": SCHEMA, "key": key, **measure(setting)}) + "\n")
                file.flush()
            shown.advance(1, setting.curve)
    return len(once)


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


def plain_interval(interval: Interval) -> dict[str, float | None]:
    """Return an interval as plain values; an end that is not finite is None."""
    low, high = (end if math.isfinite(end) else None for end in (interval.low, interval.high))
    known = {"df": interval.df} if math.isfinite(interval.df) else {}
    return {"value": interval.value, "low": low, "high": high, "n": interval.n, **known}


def timed(taken: Sequence[float], sizes: Sequence[int]) -> Interval:
    """Seconds of a picture, from those of batches; fewer than three batches have no interval."""
    value, n = sum(taken) / sum(sizes), sum(sizes)
    if len(taken) < 3:
        return Interval(value, -math.inf, math.inf, n)
    spread = mean_interval([seconds / size for seconds, size in zip(taken, sizes, strict=True)])
    half = (spread.high - spread.low) / 2
    return Interval(value, max(0.0, value - half), value + half, n)
