"""Getting files over a line that fails: tries with growing pauses, on from where a transfer broke off."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pipelines.artefact import file_hash
from pipelines.data.remote.protocols import CHUNK, Files, Timeouts, reason_of
from pipelines.data.remote.store import Store
from pipelines.errors import DataError

TRIES, TIMEOUT = "PALIMPSEST_TRIES", "PALIMPSEST_TIMEOUT"
USUAL_TRIES, USUAL_TIMEOUT = 8, 30.0
FIRST, LONGEST = 1.0, 60.0  # seconds of the first pause and of all later ones, at most

Result = TypeVar("Result")
log = logging.getLogger("palimpsest")


class Unreachable(DataError):
    """Something at an address could not be had: the message names it, why, and the tries."""


class Failed(Exception):
    """A try that brought something wrong; final: another one would bring the same."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True)
class Patience:
    """How long a file is tried for: `tries` in a row that bring it no further, pauses that double, with jitter."""

    tries: int = USUAL_TRIES
    stall: float = USUAL_TIMEOUT  # seconds without a byte
    first: float = FIRST

    @classmethod
    def usual(cls) -> Patience:
        """What the environment says. Raises DataError for numbers that are none."""
        return cls(int(_number(TRIES, USUAL_TRIES, 1)), _number(TIMEOUT, USUAL_TIMEOUT, 0.1))

    @property
    def timeouts(self) -> Timeouts:
        """Of a connection and of a transfer."""
        return Timeouts(connect=min(self.stall, 10.0), stall=self.stall)

    def pause(self, failed: int) -> float:
        """Seconds to wait after so many tries: between half and one and a half of a doubling time."""
        return min(self.first * 2 ** (failed - 1), LONGEST) * random.SystemRandom().uniform(0.5, 1.5)

    def until_it_works(self, shown: str, once: Callable[[], Result], reached: Callable[[], int] = int) -> Result:
        """Return what `once` gives; raises Unreachable after too many tries in a row without more being `reached`."""
        failed, most = 0, 0
        while True:
            try:
                return once()
            except DataError:
                raise  # of this machine's disk
            except Exception as error:
                reason = str(error) if isinstance(error, Failed) else reason_of(error, self.timeouts)
                final = isinstance(error, Failed) and error.final
            failed = 1 if reached() > most else failed + 1
            most = max(most, reached())
            if final or failed >= self.tries:
                tries = f"{failed} {'try' if failed == 1 else 'tries'}"
                raise Unreachable(f"Cannot read {shown} after {tries}: {reason}.") from None
            pause = self.pause(failed)
            log.info("%s: %s; try %d of %d in %.0f s", shown, reason, failed + 1, self.tries, pause)
            time.sleep(pause)


def _number(name: str, usual: float, least: float) -> float:
    given = os.environ.get(name, "").strip() or str(usual)
    try:
        if least <= (value := float(given)) < 1e6:
            return value
    except ValueError:
        pass
    raise DataError(f"{name} is {given!r}, expected a number from {least:g} on, such as {usual:g}.")


class Transfer:
    """One shard on its way into its part."""

    def __init__(self, files: Files, name: str, part: BinaryIO, store: Store) -> None:
        self.files, self.name, self.part, self.store = files, name, part, store
        self.ranges = True  # until the server answers one with something else
        self._wrong = ""  # sha256 of what came instead

    def run(self, patience: Patience, size: int | None, sha256: str | None) -> None:
        """Fetch what is missing. Raises Unreachable, or DataError where this machine's disk refuses.

        What an earlier process left is only gone on from where the hash will tell whether the halves belong together.
        """
        if sha256 is None:
            self._begin_anew()
        shown = self.files.address.of(self.name)
        patience.until_it_works(shown, lambda: self._once(size, sha256), self._there)

    def _once(self, size: int | None, sha256: str | None) -> None:
        if not self.ranges or (size is not None and self._there() > size):
            self._begin_anew()
        try:
            with self.files.open(self.name, ranges=self.ranges) as remote:
                self._copy(remote, size)
        except ValueError:  # fsspec's, where the server gives the whole file for a part of it
            if not self.ranges:
                raise
            self.ranges = False
            return self._once(size, sha256)
        if sha256 is not None:
            self._check(sha256)

    def _copy(self, remote: Any, size: int | None) -> None:
        found = remote.size  # None where it comes in one go, or the server does not say
        if size is not None and found is not None and found != size:
            raise Failed(f"it has {found} bytes, expected {size}: is the index beside it older than it is?")
        size = found if size is None else size
        if there := self._there():
            remote.seek(there)
        while size is None or self._there() < size:
            chunk = remote.read(CHUNK)
            if not chunk:
                break
            with self.store.written():
                self.part.write(chunk)
                self.part.flush()
        if size is not None and self._there() != size:
            raise Failed(f"{self._there()} bytes came, expected {size}")

    def _check(self, sha256: str) -> None:
        found = file_hash(Path(self.part.name))
        if found == sha256:
            return
        self._begin_anew()
        final, self._wrong = found == self._wrong, found
        raise Failed(
            f"its sha256 is {found[:16]}..., expected {sha256[:16]}...: is the index beside it older than it is?"
            if final else "bytes were changed on the way: its sha256 differs",
            final=final,
        )  # fmt: skip

    def _there(self) -> int:
        return os.fstat(self.part.fileno()).st_size

    def _begin_anew(self) -> None:
        with self.store.written():
            self.part.truncate(0)
