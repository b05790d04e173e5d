"""How generated pictures were drawn, where the files beside them say it: those of this project do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.blocks import Judged
from pipelines.judged_models import DIGITS, drawn_with
from pipelines.scoring.sets import PictureSet


def judged_set(one: PictureSet, path: str) -> Judged:
    """A set of pictures as a report names it: the hash of the pictures, and how they were drawn where all agree."""
    settings = {json.dumps(made, sort_keys=True) for made in _said(Path(path))}
    how: dict[str, Any] = {}
    if len(settings) == 1 and (made := json.loads(settings.pop())):
        how = {**drawn_with(made["settings"]), "seed": made["seed"]}
    return Judged(name=one.title, pictures=one.sha256[:DIGITS], **how)


def _said(folder: Path) -> Iterator[dict[str, Any]]:
    """What each file beside a picture says of settings and seed; nothing of a file that is none of ours."""
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            made = json.loads(path.read_text(encoding="utf-8"))
            known = {"settings": made["settings"], "seed": int(made["seed"])}
            drawn_with(known["settings"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            known = {}
        yield known
