"""Errors that a user can mend: the command prints their sentence, never a traceback."""

import difflib
from collections.abc import Iterable

from safetensors import SafetensorError


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


def said(error: Exception) -> str:
    """What an error says; of one that the system raised about a file, the file first and what to do."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        if isinstance(error, FileExistsError | NotADirectoryError):
            return f"{error.filename} is a file where a folder is expected: give another path, or move the file away."
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, PalimpsestError | ValueError | OSError | SafetensorError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"
