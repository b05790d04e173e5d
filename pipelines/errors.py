"""Errors that a user can mend: the command prints their sentence, never a traceback."""

import difflib
from collections.abc import Iterable


class PalimpsestError(Exception):
    """Something the user can mend: the message says what, what was expected and the remedy."""


class DataError(PalimpsestError):
    """Data that cannot be read, or not safely: the message names the file or the folder."""


class Interrupted(PalimpsestError):
    """A run that was asked to stop has saved its state: the same command goes on."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean X?' for the closest of the known words, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
