"""All rows of all sweeps of a report as one table, for other programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.artefact import write_atomically

NAME = "sweep.csv"
OWN = ("sweep", "group", "model", "curve", "sampler", "steps", "evaluations", "scale", "temperature", "length", "step",
       "passes", "comparable", "why")  # fmt: skip
OPTIONS = ("latent", "masked", "choice_temperature", "caption_guidance")  # of sampling, together in one column
SAID = ("keys", "notes")  # of metrics: what they were measured with, and what is to be minded or why one is missing
PARTS = {"": "value", "_low": "low", "_high": "high", "_n": "n"}


def write_csv(folder: Path, sweeps: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write `sweep.csv` into a folder: a line for each row, each metric with value, low, high and n.

    What a row was not measured by stays empty, and so does an end of an interval that there is not. Where there is no
    sweep there is no such file.
    """
    path = folder / NAME
    if not any(sweeps.values()):
        path.unlink(missing_ok=True)
        return
    text = to_csv(sweeps)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def to_csv(sweeps: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The rows of sweeps by their names as CSV."""
    rows = [{"sweep": name, **row} for name, of in sweeps.items() for row in of]
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["figures"]))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*OWN, "options", *(f"{metric}{end}" for metric in metrics for end in PARTS), *SAID])
    for row in rows:
        figures = [row["figures"].get(metric, {}).get(part) for metric in metrics for part in PARTS.values()]
        options = json.dumps({name: row[name] for name in OPTIONS if name in row}, sort_keys=True)
        said = [json.dumps(row[name], sort_keys=True) if name in row else None for name in SAID]
        writer.writerow([*(row.get(name) for name in OWN), options, *figures, *said])
    return buffer.getvalue()
