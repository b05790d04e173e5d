"""Where a set of shards lies: in a folder of this machine, or at an address from which its shards are fetched."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from pipelines.data.index import ShardIndex, Stamp, index_shard
from pipelines.data.order import BLOCK
from pipelines.data.shard_writer import read_manifest
from pipelines.data.summary import Summary, read_summary, summarise, write_summary
from pipelines.errors import DataError

SPLITS = ("train", "test", "unseen")
GROUPS = 2  # of shards that are shuffled together, whose indices are held


class Place(Protocol):
    """What a split, a run and the check ask of a set of shards. Picklable; as text it is its name, fit to be shown.

    folder: of this machine, with indices and with the shards as far as they are here.
    """

    folder: Path

    @property
    def given(self) -> str:
        """What names the place to another process, credentials included: never to be shown or kept."""
        ...

    def missing(self) -> str:
        """Say what is wrong and what to do where there is nothing at all; empty where there is something."""
        ...

    def names(self) -> list[str]:
        """The tars of the set, sorted."""
        ...

    def sizes(self, names: Sequence[str]) -> list[int]:
        """Bytes of some shards."""
        ...

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of the set, None where it has none."""
        ...

    def rows(self, names: Sequence[str]) -> tuple[Summary, Mapping[int, ShardIndex]]:
        """Rows of the named shards, and by number the indices that could not be kept. Raises OSError, DataError."""
        ...

    def shown(self, name: str) -> str:
        """Where a shard lies, for messages."""
        ...

    def open(self, name: str) -> int:
        """A descriptor of a shard, to be closed. Raises OSError where it is gone, DataError where it cannot be had."""
        ...

    def index(self, name: str, stamp: Stamp) -> ShardIndex:
        """The index of a shard. Raises like `open`."""
        ...

    def open_files(self, at_once: int) -> int:
        """How many files are worth holding open for a reader of so many shards at once (0: nobody knows)."""
        ...

    def ahead(self, names: Sequence[str]) -> None:
        """Say which shards will be read next, in their order, so that they may be fetched meanwhile."""
        ...

    def known(self) -> Summary:
        """Rows of an earlier check, where there was one."""
        ...

    def whole(self, name: str) -> AbstractContextManager[Path]:
        """A shard as it lies there now, for a check of its bytes."""
        ...

    def keep(self, rows: Summary) -> str:
        """Keep the rows that a check has made; returns what is left to do by hand, or nothing."""
        ...


class Here:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def given(self) -> str:
        """Its path."""
        return str(self.folder)

    def missing(self) -> str:
        """No folder."""
        make = f"make one with `palimpsest data scenes {self.folder}` or give --data"
        return "" if self.folder.is_dir() else f"No data folder {self.folder}: {make}."

    def names(self) -> list[str]:
        """The tars of the folder; none where it is gone."""
        return sorted(name for name in os.listdir(self.folder) if name.endswith(".tar")) if not self.missing() else []

    def sizes(self, names: Sequence[str]) -> list[int]:
        """As they are now."""
        return [(self.folder / name).stat().st_size for name in names]

    def manifest(self) -> dict[str, Any] | None:
        """That of the folder."""
        return read_manifest(self.folder)

    def rows(self, names: Sequence[str]) -> tuple[Summary, Mapping[int, ShardIndex]]:
        """From the summary, as far as the shards have stayed as they were."""
        return summarise(self.folder, names)

    def shown(self, name: str) -> str:
        """Its path."""
        return str(self.folder / name)

    def open(self, name: str) -> int:
        """As it is."""
        return os.open(self.folder / name, os.O_RDONLY)

    def index(self, name: str, stamp: Stamp) -> ShardIndex:
        """Kept beside the shard, or made."""
        return index_shard(self.folder / name, stamp)

    def open_files(self, at_once: int) -> int:
        """Those of two groups: a reader that looks ahead over the end of one comes back."""
        return GROUPS * max(at_once, BLOCK)

    def ahead(self, names: Sequence[str]) -> None:
        """Nothing has to be fetched."""

    def known(self) -> Summary:
        """The summary of the folder."""
        return read_summary(self.folder)

    @contextmanager
    def whole(self, name: str) -> Iterator[Path]:
        """The shard itself."""
        yield self.folder / name

    def keep(self, rows: Summary) -> str:
        """Beside the shards, where that is possible."""
        write_summary(rows)
        return ""


def place_of(where: Path | str | Place, *, hurried: bool = False) -> Place:
    """The place that a path or an address names. Raises DataError for an address that is none.

    hurried: one that is out of reach is missing at once; else it is tried for, and then an error.
    """
    from pipelines.data.remote.address import Address, is_address  # what follows is slow to import

    if not isinstance(where, Path | str):
        return where
    if not is_address(str(where)):
        return Here(Path(where))
    from pipelines.data.remote.folder import Remote

    return Remote(Address.parse(str(where)), hurried=hurried)


def of_split(names: Sequence[str], split: str) -> list[str]:
    """Shards whose name holds the split as a word: `test-000000.tar`, `cifar10-test-000000.tar`; never `latest.tar`."""
    word = re.compile(rf"(?<![a-z]){re.escape(split)}(?![a-z])")
    return [name for name in names if word.search(name[: -len(".tar")].lower())]


def check_there(place: Place) -> None:
    """Raise DataError where there is nothing at all."""
    if words := place.missing():
        raise DataError(words)
