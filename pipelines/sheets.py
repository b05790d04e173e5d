"""What stages drew while they trained: the same captions and the same noise at several steps."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from eval.blocks import Gallery, Section
from pipelines.runs import Run

SHEET = re.compile(r"(?P<what>.+)-(?P<step>\d+)\.png")
MOST = 6  # steps of a stage that are shown
NOTE = "Each place is of one caption, or picture, and one noise at all steps; none picked."
EMPTY = "No stage kept pictures at several steps: training.picture_every says how often, in steps."


def sheets(run: Run) -> Section:
    """The sheets of pictures of every stage that kept them at several steps, the first and the last among them."""
    blocks = []
    for name in run.recipe.order():
        kept: dict[str, dict[int, Path]] = {}
        for path in (run.stage_folder(name) / "pictures").glob("*.png"):
            if found := SHEET.fullmatch(path.name):
                kept.setdefault(found["what"], {})[int(found["step"])] = path
        for what, at in sorted(kept.items()):
            steps = spread(sorted(at), MOST)
            items = [(_opened(at[step]), f"step {step:,}") for step in steps]
            note = f"{NOTE} {len(items)} of {len(at)} steps."
            if len(items) > 1:
                blocks.append(Gallery(f"{name}: {what} while it trained", items, columns=min(3, len(items)), note=note))
    return Section("While training", blocks, empty=EMPTY)


def spread(steps: list[int], most: int) -> list[int]:
    """At most so many steps, evenly spread, with the first and the last."""
    if len(steps) <= most:
        return steps
    return [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as found:
        return found.convert("RGB")
