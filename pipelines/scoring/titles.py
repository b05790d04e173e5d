"""What sets from the command line are called in a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import PalimpsestError

TAKEN = {
    "reference",
    "real",
    "shuffled",
    "chance",
    "train",
    "hash",
    "split",
}  # names that figures have for other things


def titles_of(option: str, paths: Sequence[str]) -> dict[str, str]:
    """Titles of paths: their last parts, as many as tell them apart. Raises PalimpsestError.

    option: the one that names them, for the message.
    """
    titles = [_title(path, paths) for path in paths]
    if len(set(titles)) < len(titles):
        raise PalimpsestError(f"{option} names a set twice ({', '.join(titles)}): name each once.")
    if taken := sorted(TAKEN & set(titles)):
        raise PalimpsestError(
            f"A set of {option} is called {taken[0]!r}, as something else in the report is: rename it."
        )
    return dict(zip(paths, titles, strict=True))


def _title(path: str, among: Sequence[str]) -> str:
    parts = Path(path).parts
    for count in range(1, len(parts)):
        if sum(Path(other).parts[-count:] == parts[-count:] for other in among) == 1:
            return "/".join(parts[-count:])
    return path
