"""What sets from the command line are called in a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import PalimpsestError

TAKEN = {"reference", "real", "shuffled", "chance"}  # names that figures have for other things


def titles_of(option: str, paths: Sequence[str]) -> dict[str, str]:
    """Titles of paths: the last part, or all of it where two have the same. Raises PalimpsestError.

    option: the one that names them, for the message.
    """
    names = [Path(path).name or path for path in paths]
    titles = [path if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
    if len(set(titles)) < len(titles):
        raise PalimpsestError(f"{option} names a set twice ({', '.join(titles)}): name each once.")
    if taken := sorted(TAKEN & set(titles)):
        raise PalimpsestError(
            f"A set of {option} is called {taken[0]!r}, as something else in the report is: rename it."
        )
    return dict(zip(paths, titles, strict=True))
