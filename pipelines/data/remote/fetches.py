"""The downloads of one process: what is asked for at once, and meanwhile what will be, a few at a time.

They run in daemon threads, so that no download keeps a process that has to end: what is half there stays for the next.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait

from pipelines.data.patience import POLL, check_asked
from pipelines.errors import DataError

AT_ONCE = 4  # downloads ahead
log = logging.getLogger("palimpsest")


class Fetches:
    """Downloads by the names of files.

    fetch: gets one, raising DataError; ahead: gets one if that is possible without waiting for anybody, and returns
    whether more may follow.
    """

    def __init__(self, fetch: Callable[[str], object], ahead: Callable[[str], bool]) -> None:
        self.pid = os.getpid()
        self._fetch, self._ahead = fetch, ahead
        self._lock = threading.Lock()
        self._running: dict[str, Future[None]] = {}
        self._queue: dict[str, None] = {}  # in order
        self._threads = 0

    def get(self, name: str) -> None:
        """Wait for a file that is wanted now, or for whoever is fetching it ahead.

        Raises DataError where it cannot be had, GaveUp where the caller is asked to end meanwhile.
        """
        with self._lock:
            self._queue.pop(name, None)
            if (running := self._running.get(name)) is None:
                running = self._running[name] = Future()
                threading.Thread(target=self._run, args=(name, running, self._fetch), daemon=True).start()
        while not wait([running], POLL).done:
            check_asked()
        running.result()

    def queue(self, names: Iterable[str]) -> None:
        """Fetch files that will be wanted, in their order, behind those that are waiting already."""
        with self._lock:
            self._queue |= dict.fromkeys(name for name in names if name not in self._running)
            missing = min(AT_ONCE - self._threads, len(self._queue))
            self._threads += missing
        for _ in range(missing):
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                name = next((one for one in self._queue if one not in self._running), None)
                if name is None:
                    self._threads -= 1
                    return
                del self._queue[name]
                running = self._running[name] = Future()
            self._run(name, running, self._ahead_quietly)

    def _ahead_quietly(self, name: str) -> None:
        """Whatever fails here is tried again, and said, when the file is wanted."""
        try:
            more = self._ahead(name)
        except DataError as error:
            log.info("Not fetched ahead: %s", error)
            more = True
        if not more:
            with self._lock:
                self._queue.clear()

    def _run(self, name: str, running: Future[None], fetch: Callable[[str], object]) -> None:
        error: BaseException | None = None
        try:
            fetch(name)
        except BaseException as raised:
            error = raised
        with self._lock:
            del self._running[name]
        if error is None:
            running.set_result(None)
        else:
            running.set_exception(error)
