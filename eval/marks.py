"""Which networks a report judges by, read from the names of its figures, and whether others publish figures by them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

KEY = re.compile(r"\[(?P<name>[\w.-]+):(?P<sha>[0-9a-f]{8})(?:\|resize=(?P<resize>[^|\]]+))?")
OWN = ("judge", "indomain")  # how judges are called that were trained by a run of this project
RANDOM, FITTED = "random-conv", "pixels-pca"


@dataclass(frozen=True)
class Mark:
    """What a report must say of its embedders before any figure. published: whether some figure compares elsewhere."""

    published: bool
    text: str


def mark(names: Iterable[str]) -> Mark | None:
    """What the figures of these names compare with; None where no embedder made any."""
    found = {(key["name"], key["sha"], key["resize"] or "") for name in names if (key := KEY.search(name))}
    famous = sorted(one for one in found if _published(*one))
    others = sorted({one[:2] for one in found if one not in famous})
    if famous:
        rest = (
            f" Figures by any other embedder compare with none that was published: {_listed(others)}." if others else ""
        )
        which = ", ".join(f"{name}:{sha} at {resize}" for name, sha, resize in famous)
        return Mark(True, f"FID here is by the published network, {which}.{rest}")
    if not found:
        return None
    trained = [name for name, _ in others if name.startswith(OWN)]
    why = (
        "The embedders are judges that runs of this project trained"
        if len(trained) == len(others)
        else "No embedder is a published one"
    )
    who = ", ".join(f"{name}:{sha}" for name, sha in others) if len(trained) == len(others) else _listed(others)
    return Mark(False, f"{why}: no figure compares with a published FID or CLIP score. Judged by {who}.")


def _published(name: str, sha: str, resize: str) -> bool:
    if not name.startswith("inception"):
        return False
    from eval.towers import is_fid  # torch comes with it

    return is_fid(name, sha, resize)


def _listed(found: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name}:{sha} ({_about(name)})" for name, sha in found)


def _about(name: str) -> str:
    if name.startswith(OWN):
        return "a judge, trained on the data of its own run"
    if name == RANDOM:
        return "random weights"
    if name == FITTED:
        return "fitted to the reference"
    return "weights that no list of published ones holds"
