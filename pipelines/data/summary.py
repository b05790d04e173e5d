"""What a folder's shards hold, in one file: opening thousands of them is one read, and a look at the size of each.

A row is believed while its shard has kept its size and time of change; others are read again, from the shard's own
index or from the shard.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.data.arrays import HASH, blob, read_arrays, texts_of, write_arrays
from pipelines.data.index import CACHE, VERSION, ShardIndex, Stamp, index_shard

FOLDER = "folder"  # name of the file
_NONE, _NO_HASH = np.zeros((0, 2), np.int64), np.zeros((0, 2, HASH), np.uint8)
UNKNOWN = bytes(HASH)  # the hash of a shard that nobody has read through yet


@dataclass(frozen=True, kw_only=True, eq=False)
class Summary:
    """Rows of shards, by number: 150 bytes each, whatever they hold."""

    folder: Path
    names: tuple[str, ...]
    stamps: np.ndarray  # (S, 2) int64: bytes and mtime_ns
    samples: np.ndarray  # (S,) int64
    hashes: np.ndarray  # (S, 2, HASH) uint8: of the index, and of the file's bytes where `data check` has read them
    damage: Mapping[str, tuple[str, ...]]  # by name; sound shards are not in it

    def __len__(self) -> int:
        return len(self.names)

    def path(self, number: int) -> Path:
        """Where a shard lies."""
        return self.folder / self.names[number]

    def stamp(self, number: int) -> Stamp:
        """The stamp of a shard when its row was made."""
        return Stamp(*self.stamps[number].tolist())

    def index_hash(self, number: int) -> bytes:
        """Hash of a shard's index."""
        return self.hashes[number, 0].tobytes()

    def file_hash(self, number: int) -> bytes:
        """sha256 of a shard's bytes, or UNKNOWN."""
        return self.hashes[number, 1].tobytes()

    def same_as(self, other: "Summary") -> bool:
        """Whether another summary says the same of the same shards, in whatever order."""
        return self._by_name() == other._by_name()

    def _by_name(self) -> dict[str, tuple[Stamp, bytes]]:
        return {name: (self.stamp(n), self.hashes[n].tobytes()) for n, name in enumerate(self.names)}

    def take(self, numbers: Sequence[int]) -> "Summary":
        """Some of the rows, in the given order."""
        chosen = np.asarray(numbers, np.int64)
        return Summary(
            folder=self.folder,
            names=tuple(self.names[number] for number in numbers),
            stamps=self.stamps[chosen],
            samples=self.samples[chosen],
            hashes=self.hashes[chosen],
            damage=self.damage,
        )


def stack(parts: Sequence[Summary]) -> Summary:
    """The rows of several summaries of a folder, one after another; at least one."""
    return Summary(
        folder=parts[0].folder,
        names=tuple(name for part in parts for name in part.names),
        stamps=np.concatenate([part.stamps for part in parts]),
        samples=np.concatenate([part.samples for part in parts]),
        hashes=np.concatenate([part.hashes for part in parts]),
        damage={name: sentences for part in parts for name, sentences in part.damage.items()},
    )


def row(shard: ShardIndex, file_hash: bytes = UNKNOWN) -> Summary:
    """The one row of an indexed shard."""
    return Summary(
        folder=shard.path.parent,
        names=(shard.path.name,),
        stamps=np.array([shard.stamp], np.int64),
        samples=np.array([len(shard)], np.int64),
        hashes=np.frombuffer(shard.digest() + file_hash, np.uint8).reshape(1, 2, HASH),
        damage={shard.path.name: shard.damage} if shard.damage else {},
    )


def summarise(folder: Path, names: Sequence[str]) -> tuple[Summary, dict[int, ShardIndex]]:
    """Rows of the named shards, and by number the indices that could not be cached.

    Raises OSError where a shard cannot be read.
    """
    known = read_summary(folder)
    place = {name: number for number, name in enumerate(known.names)}
    before, chosen = known.stamps.tolist(), []
    new: list[Summary] = []
    unsaved: dict[int, ShardIndex] = {}
    for number, name in enumerate(names):
        stamp = Stamp.of(f"{folder}/{name}")
        if (old := place.get(name)) is not None and before[old] == list(stamp):
            chosen.append(old)
            continue
        shard = index_shard(folder / name, stamp)
        chosen.append(len(known) + len(new))
        new.append(row(shard))
        if not shard.saved:
            unsaved[number] = shard
    found = stack([known, *new]).take(chosen)
    if len(unsaved) < len(new):
        write_summary(found)
    return found, unsaved


def read_summary(folder: Path) -> Summary:
    """The summary of a folder; without rows where there is none that can be read."""
    return parse_summary(read_arrays(_file(folder)), folder)


def parse_summary(found: Mapping[str, np.ndarray] | None, folder: Path) -> Summary:
    """The summary of the arrays of its file; without rows where they are none, or of another version."""
    if found is None or found.get("version", np.zeros(1)).tolist() != [VERSION]:
        return Summary(folder=folder, names=(), stamps=_NONE, samples=_NONE[:, 0], hashes=_NO_HASH, damage={})
    damage = json.loads(found["damage"].tobytes())
    return Summary(
        folder=folder,
        names=tuple(texts_of(found["names"], found["name_ends"])),
        stamps=found["stamps"],
        samples=found["samples"],
        hashes=found["hashes"],
        damage={name: tuple(sentences) for name, sentences in damage.items()},
    )


def write_summary(summary: Summary, *, elsewhere: bool = False) -> None:
    """Keep rows beside their shards, where that is possible, and leave those of other shards as they are.

    elsewhere: whether shards come and go in this folder, so that one that is not there has not vanished.
    """
    known, own = read_summary(summary.folder), set(summary.names)
    there = (elsewhere or (summary.folder / name).exists() for name in known.names)
    others = [n for n, (name, kept) in enumerate(zip(known.names, there, strict=True)) if name not in own and kept]
    summary = stack([summary, known.take(others)])
    names, ends = blob(summary.names)
    damage = {name: summary.damage[name] for name in summary.names if name in summary.damage}
    arrays = {"names": names, "name_ends": ends, "stamps": summary.stamps, "samples": summary.samples}
    arrays |= {"hashes": summary.hashes, "damage": np.frombuffer(json.dumps(damage).encode(), np.uint8)}
    write_arrays(_file(summary.folder), {**arrays, "version": np.array([VERSION], np.int64)})


def _file(folder: Path) -> Path:
    return folder / CACHE / FOLDER
