"""The curves of a training, as its log has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eval.blocks import Series
from pipelines.curves import LOG


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a stage's log, none where it has not trained."""
    path = folder / LOG
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def logged(lines: list[dict[str, Any]], name: str, split: str, label: str) -> Series:
    """A figure of one split over the steps."""
    points = [(line["step"], line[name]) for line in lines if line["split"] == split and name in line]
    return Series(label, [step for step, _ in points], [value for _, value in points])
