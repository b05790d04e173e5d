"""The next batches, made in a thread while the current one is used, by a reader that may have to wait for its data."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Generic, Self, TypeVar

from pipelines.data.patience import POLL, waiting_until

Item = TypeVar("Item")
AGREE = 0.5  # seconds between two agreements of all ranks while one of them waits: a longer one would time out
LEAVING = 5.0  # seconds for what the thread is at when it is asked to end


class Supply(Generic[Item]):
    """Items of an endless iterator, `depth` of them ahead; a context, behind which nobody waits for one any more."""

    def __init__(self, items: Iterator[Item], depth: int = 2) -> None:
        self._items, self._closed = items, threading.Event()
        self._made: Queue[Item | Exception] = Queue(depth)
        self._next: Item | Exception | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._begun, self._over, self._waited = 0.0, math.inf, 0.0

    def __enter__(self) -> Self:
        self._begun = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = time.monotonic()
        self._closed.set()
        self._thread.join(LEAVING)

    def wait(self, seconds: float) -> bool:
        """Whether the next item, or an error in its place, is there within so many seconds."""
        began = time.monotonic()
        with suppress(Empty):
            if self._next is None:
                self._next = self._made.get(timeout=seconds)
        self._waited += time.monotonic() - began
        return self._next is not None

    @property
    def waiting(self) -> float:
        """Share of the time, from the beginning of the context to its end, that was spent in `wait`."""
        return self._waited / max(min(time.monotonic(), self._over) - self._begun, 1e-9)

    @property
    def error(self) -> Exception | None:
        """What stands in the place of the next item, where that could not be made."""
        return self._next if isinstance(self._next, Exception) else None

    def take(self) -> Item:
        """The next item, once `wait` has seen it. Raises what making it raised."""
        found, self._next = self._next, None
        if isinstance(found, Exception):
            raise found
        assert found is not None
        return found

    def _work(self) -> None:
        with waiting_until(self._closed.is_set):
            try:
                for item in self._items:
                    if not self._put(item):
                        return
            except Exception as error:
                self._put(error)
            finally:
                if isinstance(self._items, Generator):  # it may have processes
                    self._items.close()

    def _put(self, item: Item | Exception) -> bool:
        """Hand over an item, unless nobody wants it any more."""
        while not self._closed.is_set():
            try:
                self._made.put(item, timeout=POLL)
                return True
            except Full:
                continue
        return False
