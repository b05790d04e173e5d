"""A set of shards at an address: shards come to this machine when they are read, and the next ones meanwhile.

On this machine the set has a folder laid out like a local one, with the shards that are kept and the indices that were
needed. A shard there has the size and the time of change that its row gives it, whole and compared with its sha256
where that is known.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.artefact import file_hash
from pipelines.data.arrays import put
from pipelines.data.index import CACHE, ShardIndex, Stamp, cache_of, cached_index, make_index
from pipelines.data.patience import POLL
from pipelines.data.remote.address import Address
from pipelines.data.remote.catalogue import Catalogue
from pipelines.data.remote.fetches import AT_ONCE, Fetches
from pipelines.data.remote.protocols import Files
from pipelines.data.remote.store import GIGABYTES, Store
from pipelines.data.remote.transfer import Patience, Transfer
from pipelines.data.summary import UNKNOWN, Summary, read_summary, row, stack, write_summary
from pipelines.errors import DataError

AHEAD = 2  # tries of what nobody waits for
log = logging.getLogger("palimpsest")


class Expected(NamedTuple):
    """What a shard must be."""

    stamp: Stamp
    sha256: str | None


class Remote:
    """A set at an address. hurried: it is asked once, since whoever asks can do without."""

    def __init__(
        self, address: Address, *, patience: Patience | None = None, store: Store | None = None, hurried: bool = False
    ) -> None:
        self.address, self.hurried = address, hurried
        self.patience, self.store = patience or Patience.usual(), store or Store.usual()
        self.files = Files(address, self.patience.timeouts)
        self.folder: Path = self.store.root / address.key
        self.catalogue = Catalogue(self.files, self.folder, self.patience, hurried=hurried)
        self._expected: dict[str, Expected] = {}
        self._announced: deque[tuple[str, ...]] = deque(maxlen=2)  # two readers of a split may take turns
        self._warned = False
        self._fetches: Fetches | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fetches": None}

    def __str__(self) -> str:
        return self.address.shown

    @property
    def given(self) -> str:
        """The address as it was given."""
        return self.address.given

    def missing(self) -> str:
        """Whoever is in a hurry does without a set that cannot be reached; others try for it."""
        return self._out_of_reach if self.hurried else ""

    @cached_property
    def _out_of_reach(self) -> str:
        try:
            self.manifest()
            self.sizes(self.names())
        except DataError as error:
            return str(error)
        return ""

    def shown(self, name: str) -> str:
        """Its address."""
        return self.address.of(name)

    def names(self) -> list[str]:
        """Those of the address, or of a list of the folder, its summary or its manifest."""
        return self.catalogue.names()

    def sizes(self, names: Sequence[str]) -> list[int]:
        """From the list, the summary, or the server."""
        return [stamp.bytes for stamp in self.catalogue.stamps(names)]

    def manifest(self) -> dict[str, Any] | None:
        """That beside the shards."""
        return self.catalogue.manifest

    def rows(self, names: Sequence[str]) -> tuple[Summary, dict[int, ShardIndex]]:
        """From the summary beside the shards, from what is known of them here, or from the shards themselves."""
        known = stack([self.catalogue.summary, read_summary(self.folder)])
        place = {(name, known.stamp(n)): n for n, name in reversed(list(enumerate(known.names)))}
        stamps = self.catalogue.stamps(names)
        new = [n for n, key in enumerate(zip(names, stamps, strict=True)) if key not in place]
        if new:
            log.warning(
                "%s: %d of %d shards are not in a summary beside them, and are fetched to be indexed: put there what "
                "`palimpsest data check` makes.", self, len(new), len(names),
            )  # fmt: skip
            for n in new:
                self._expect(names[n], stamps[n])
        made = []
        for i, n in enumerate(new):
            self.ahead([names[later] for later in new[i : i + AT_ONCE]])
            made.append(self._indexed(names[n], stamps[n]))
        if made:
            write_summary(stack(made), elsewhere=True)
        numbers = {n: len(known) + i for i, n in enumerate(new)}
        chosen = [numbers[n] if n in numbers else place[key] for n, key in enumerate(zip(names, stamps, strict=True))]
        found = stack([known, *made]).take(chosen)
        for n, name in enumerate(names):
            self._expect(name, stamps[n], found.file_hash(n))
        return found, {}

    def open(self, name: str) -> int:
        """From what is kept here, else fetched. Raises DataError; GaveUp where the caller is asked to end meanwhile."""
        path, stamp = self.folder / name, self._expected[name].stamp
        while True:
            with self.store.written():
                handle = self.store.open(path, stamp)
            if handle is not None:
                return handle
            self._downloads.get(name)

    def index(self, name: str, stamp: Stamp) -> ShardIndex:
        """From what is kept here, else that beside the shard, else made of the shard."""
        path = self.folder / name
        if (found := cached_index(path, stamp)) is not None:
            return found
        if name in self.catalogue.summary.names:
            with suppress(DataError):  # it can be made
                with self.store.written():
                    self.folder.mkdir(parents=True, exist_ok=True)
                data = self.catalogue.optional(f"{CACHE}/{cache_of(path).name}")
                if data is not None and put(cache_of(path), data) and (found := cached_index(path, stamp)) is not None:
                    return found
        handle = self.open(name)
        try:
            return make_index(path)
        finally:
            os.close(handle)

    def open_files(self, at_once: int) -> int:
        """No more than are read: an open file is in use, and takes room."""
        return max(at_once, 1)

    def ahead(self, names: Sequence[str]) -> None:
        """Fetch those that are not here, as far as there is room for them."""
        if not names or (announced := tuple(names)) in self._announced:
            return
        self._announced.append(announced)
        self._downloads.queue(name for name in announced if not self._has(name))

    def known(self) -> Summary:
        """The summary beside the shards, else that of an earlier check from here."""
        beside = self.catalogue.summary
        return beside if len(beside) else read_summary(self.folder)

    @contextmanager
    def whole(self, name: str) -> Iterator[Path]:
        """Fetched anew: what is kept here may be older than what lies there."""
        about, known = self.catalogue.stamp(name, anew=True), self.known()
        before = known.stamp(known.names.index(name)) if name in known.names else None
        stamp = before if before is not None and before.bytes == about.bytes else about
        path, self._expected[name] = self.folder / name, Expected(stamp, None)
        path.unlink(missing_ok=True)
        handle = self.open(name)
        try:
            yield path
        finally:
            os.close(handle)

    def keep(self, rows: Summary) -> str:
        """In the folder on this machine; whoever can write beside the shards is told what to put there."""
        write_summary(rows, elsewhere=True)
        if rows.same_as(self.catalogue.summary):
            return ""
        source, target = self.folder / CACHE, self.address.of(CACHE)
        how = {
            "s3": f"aws s3 cp --recursive {source} {target}",
            "gs": f"gcloud storage cp --recursive {source} {self.address.folder}",
        }.get(self.address.protocol, f"copy the folder {source} beside the shards, so that it is {target}")
        return f"runs begin without reading all shards once their summary lies beside them: {how}"

    def _expect(self, name: str, stamp: Stamp, known: bytes = UNKNOWN) -> None:
        sha256 = self.catalogue.sha256(name) if known == UNKNOWN else known.hex()
        self._expected[name] = Expected(stamp, sha256)

    def _indexed(self, name: str, stamp: Stamp) -> Summary:
        """The row of a shard that no summary knows, with the hash of its bytes: from now on it must stay the same."""
        handle = self.open(name)
        try:
            path = self.folder / name
            return row(cached_index(path, stamp) or make_index(path), bytes.fromhex(file_hash(path)))
        finally:
            os.close(handle)

    def _has(self, name: str) -> bool:
        try:
            return Stamp.of(self.folder / name) == self._expected[name].stamp
        except FileNotFoundError:
            return False

    @property
    def _downloads(self) -> Fetches:
        if self._fetches is None or self._fetches.pid != os.getpid():  # threads do not survive a fork
            self._fetches = Fetches(self._fetch, lambda name: self._fetch(name, ahead=True))
        return self._fetches

    def _fetch(self, name: str, *, ahead: bool = False) -> bool:
        """Get a shard, once among all processes of the machine; returns whether there was room.

        ahead: nobody is waited for, and no shard goes that is wanted sooner.
        """
        path, (stamp, sha256) = self.folder / name, self._expected[name]
        while not self._has(name):
            part = self.store.claim(path, stamp.bytes)
            if part is None and ahead:
                break
            if part is None:
                time.sleep(POLL)
                continue
            with part:
                if self._has(name):  # another process has just brought it
                    os.unlink(part.name)
                    break
                if not self._room(ahead):
                    return False
                patience = replace(self.patience, tries=min(AHEAD, self.patience.tries)) if ahead else self.patience
                Transfer(self.files, name, part, self.store).run(patience, stamp.bytes, sha256)
                self.store.settle(part, path, stamp.mtime_ns)
        return True

    def _room(self, ahead: bool) -> bool:
        """Make room for what has been claimed; what is wanted now is fetched even where there is none, and said."""
        keep = {self.folder / name for names in tuple(self._announced) for name in names}
        if self.store.make_room(keep) or (not ahead and self.store.make_room()):
            return True
        if not ahead and not self._warned:
            self._warned = True
            log.warning(
                "The shards that are read at the same time need more than the %.3g GB that may be kept in %s: "
                "raise %s, or lower data.block.", self.store.limit / 1e9, self.store.root, GIGABYTES,
            )  # fmt: skip
        return not ahead
