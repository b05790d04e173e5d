"""The page of one rater: a single file with its pictures inside, that loads nothing and sends nothing."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.human.criteria import CRITERIA
from eval.human.key import SCHEMA
from eval.human.pictures import secret_name
from eval.human.study import Study
from eval.page import as_uri, asset, environment, render

Row = Mapping[str, Any]  # an item as raters see it: id, prompt, left, right (None where one picture is graded)


def page(study: Study, identity: str, block: int, rows: Sequence[Row], pictures: Path, code: str) -> str:
    """The HTML of one block. rows: its items in order; pictures: the folder of the files that they name."""
    names = sorted({row[side] for row in rows for side in ("left", "right") if row[side]})
    uris = {name: as_uri(f"image/{study.encoder}", (pictures / name).read_bytes()) for name in names}
    pairwise = study.mode == "pairwise"
    data = {
        "schema": SCHEMA,
        "study": identity,
        "block": block,
        "mode": study.mode,
        "title": study.title,
        "choices": list(study.choices),
        "tags": list(study.tags) if "defects" in study.criteria else [],
        "criteria": [_asked(name, pairwise) for name in study.criteria],
        "items": list(rows),
        "images": uris,
        "code": code,
        "page": page_mark(),
    }
    style = asset("page.css") + asset("study.css")
    return render(environment(), "study.html", style, asset("study.js"), data=data)


def page_mark() -> str:
    """The fingerprint of the page's own script, which every vote carries."""
    return hashlib.sha256(asset("study.js").encode()).hexdigest()[:16]


def completion_code(secret: str, block: int) -> str:
    """What a rater is shown at the end, to be paid."""
    return secret_name(secret, "completion", block)[:8].upper()


def _asked(name: str, pairwise: bool) -> dict[str, Any]:
    one = CRITERIA[name]
    return {
        "name": name,
        "question": one.pair if pairwise else one.grade,
        "about": one.about,
        "anchors": [] if pairwise else list(one.anchors),
    }
