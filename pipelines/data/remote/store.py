"""The shards that are kept on this machine: within a limit, and none that somebody is using goes.

A shard is written as `.NAME.BYTES.part` under a lock on that file, and renamed when it is whole: what has its name is
whole. Who reads one holds a shared lock on it. Locks are the system's: they go with the process.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipelines.data.index import Stamp
from pipelines.errors import DataError

FOLDER, GIGABYTES = "PALIMPSEST_CACHE", "PALIMPSEST_CACHE_GB"
USUAL_FOLDER, USUAL_GIGABYTES = "~/.cache/palimpsest/shards", 50.0
RESERVE = 1 << 30  # bytes of the disk that are left to others, whatever the limit
log = logging.getLogger("palimpsest")


class Kept(NamedTuple):
    """A file that counts."""

    used_ns: int  # when it was last opened, or written
    bytes: int  # of a part those of the whole shard
    on_disk: int
    path: Path


@dataclass(frozen=True)
class Store:
    """Shards of any sets in folders below `root`, of `limit` bytes together."""

    root: Path
    limit: int

    @classmethod
    def usual(cls) -> Store:
        """The store that the environment names. Raises DataError for a limit that is none."""
        given = os.environ.get(GIGABYTES, "").strip() or str(USUAL_GIGABYTES)
        try:
            gigabytes = float(given)
        except ValueError:
            gigabytes = -1.0
        if not 0 < gigabytes < 1e9:
            raise DataError(f"{GIGABYTES} is {given!r}, expected a number of gigabytes above 0, such as 50.")
        return cls(Path(os.environ.get(FOLDER) or USUAL_FOLDER).expanduser().absolute(), int(gigabytes * 1e9))

    def claim(self, path: Path, size: int) -> BinaryIO | None:
        """The part of a shard, locked, what is there of it included; None while another process has it.

        Raises DataError where the folder cannot be written.
        """
        with self.written():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{size}.part").open("a+b")
        if _locked(part.fileno(), fcntl.LOCK_EX) and _same(part.name, part.fileno()):
            return part
        part.close()
        return None

    def settle(self, part: BinaryIO, path: Path, mtime_ns: int) -> None:
        """Give a whole part its name, and the time of change that its shard has in the index."""
        with self.written():
            part.flush()
            os.utime(part.name, ns=(time.time_ns(), mtime_ns))
            os.replace(part.name, path)
        if (there := Stamp.of(path).mtime_ns) != mtime_ns:
            path.unlink()
            raise DataError(
                f"The disk of {self.root} does not keep times of change to the nanosecond ({there} for {mtime_ns}): "
                f"name a folder on another one by {FOLDER}."
            )

    def open(self, path: Path, stamp: Stamp) -> int | None:
        """A descriptor of a shard that is there as stamped, which does not go before it is closed; None without one."""
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(handle, fcntl.LOCK_SH)  # whoever holds the other lock is about to unlink
        about = os.fstat(handle)
        if not about.st_nlink or Stamp(about.st_size, about.st_mtime_ns) != stamp:
            os.close(handle)
            return None
        with suppress(OSError):  # of another user, who counts by himself
            os.utime(path, ns=(time.time_ns(), about.st_mtime_ns))
        return handle

    def make_room(self, keep: Collection[Path] = ()) -> bool:
        """Drop what rested longest, neither in use nor to be kept, until all fits; returns whether it does."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as alone:
            fcntl.flock(alone, fcntl.LOCK_EX)
            files = list(self._files())
            total, on_disk = sum(file.bytes for file in files), sum(file.on_disk for file in files)
            limit = min(self.limit, on_disk + shutil.disk_usage(self.root).free - RESERVE)
            for file in sorted(files):
                if total <= limit:
                    break
                if file.path not in keep and _dropped(file.path):
                    total -= file.bytes
            return total <= limit

    @contextmanager
    def written(self) -> Iterator[None]:
        """Turn errors of the disk into a sentence."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"Cannot keep shards in {self.root} ({error.strerror}): free some space, lower {GIGABYTES}, or name "
                f"another folder by {FOLDER}."
            ) from error

    def _files(self) -> Iterator[Kept]:
        for path in self.root.glob("*/*"):
            size = path.name.split(".")[-2] if path.name.endswith(".part") else ""
            if not path.name.endswith(".tar") and not size.isdigit():
                continue
            with suppress(FileNotFoundError):  # it has just been renamed
                about = path.stat()
                whole = max(int(size), about.st_size) if size else about.st_size
                used = about.st_mtime_ns if size else about.st_atime_ns
                yield Kept(used, whole, about.st_blocks * 512, path)


def _locked(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(name: str, handle: int) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.stat(name), os.fstat(handle))
    except FileNotFoundError:
        return False


def _dropped(path: Path) -> bool:
    """Remove a file that nobody uses."""
    try:
        with path.open("rb+") as file:
            if not _locked(file.fileno(), fcntl.LOCK_EX):
                return False
            path.unlink()
    except OSError:
        return False
    return True
