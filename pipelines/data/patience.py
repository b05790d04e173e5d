"""How long somebody who waits for data goes on waiting.

A thread that reads ahead for a training may have to end before its shard is there. It cannot be told by whoever made
the split that it reads, so it is asked for in its context: where shards are waited for, `check_asked` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pipelines.errors import PalimpsestError

POLL = 0.1  # seconds between two looks at whether to go on
_asked: ContextVar[Callable[[], bool]] = ContextVar("asked", default=lambda: False)


class GaveUp(PalimpsestError):
    """A thread was asked to end while it waited for data."""


@contextmanager
def waiting_until(asked: Callable[[], bool]) -> Iterator[None]:
    """Let the thread or the context of the caller wait for data only until `asked` says so."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def check_asked() -> None:
    """Raise GaveUp where the caller has been asked to end."""
    if _asked.get()():
        raise GaveUp("Asked to end while waiting for data.")
