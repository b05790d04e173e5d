"""Errors that a user can mend: the command prints their sentence, never a traceback."""


class PalimpsestError(Exception):
    """Something the user can mend: the message says what, what was expected and the remedy."""


class DataError(PalimpsestError):
    """Data that cannot be read, or not safely: the message names the file or the folder."""
