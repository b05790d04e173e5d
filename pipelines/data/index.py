"""The index of one shard: where each member of each sample lies, so that any sample is one read away.

It is built from the tar headers alone and cached in `.index/` beside the shards; a folder that cannot be written to is
indexed in memory. A damaged tar keeps its readable samples, and says what is missing.
"""

import hashlib
import json
import os
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from webdataset.tariterators import base_plus_ext

from pipelines.data.arrays import blob, compact, read_arrays, texts_of, write_arrays

VERSION = 2
CACHE = ".index"
Span = tuple[int, int]  # byte offset and size of a member's data
COLUMNS = ("keys", "key_ends", "member_ends", "kinds", "offsets", "sizes")


class Stamp(NamedTuple):
    """By what a file is taken to be as it was."""

    bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path | str) -> "Stamp":
        """The stamp of a file as it is now. Raises OSError where there is none."""
        status = os.stat(path)
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """Samples of one shard in the order of the file, as columns: about 50 bytes for a sample of three members."""

    path: Path
    stamp: Stamp  # of the file when it was read
    keys: np.ndarray  # (K,) uint8: all keys, one after another
    key_ends: np.ndarray  # (n,): where the key of each sample ends
    member_ends: np.ndarray  # (n,): members of each sample and all before it
    kinds: np.ndarray  # (m,): which of the extensions each member has
    offsets: np.ndarray  # (m,): where its data begins
    sizes: np.ndarray  # (m,): and how many bytes it has
    extensions: tuple[str, ...]
    damage: tuple[str, ...]  # sentences; empty for a sound tar
    shapes: np.ndarray | None = None  # (n, 2): height and width of the pictures, once somebody has asked for them
    saved: bool = False  # whether it can be read from the cache again

    def __len__(self) -> int:
        return len(self.key_ends)

    def key(self, i: int) -> str:
        """Key of sample i."""
        start = int(self.key_ends[i - 1]) if i else 0
        return self.keys[start : int(self.key_ends[i])].tobytes().decode("utf-8", "surrogateescape")

    def all_keys(self) -> list[str]:
        """Keys of all samples."""
        return texts_of(self.keys, self.key_ends)

    def members(self, i: int) -> dict[str, Span]:
        """Extension -> where its bytes lie, for sample i."""
        own = slice(int(self.member_ends[i - 1]) if i else 0, int(self.member_ends[i]))
        kinds, offsets, sizes = (column[own].tolist() for column in (self.kinds, self.offsets, self.sizes))
        spans = zip(offsets, sizes, strict=True)
        return {self.extensions[kind]: span for kind, span in zip(kinds, spans, strict=True)}

    def digest(self) -> bytes:
        """sha256 of keys, extensions, offsets and sizes."""
        digest = hashlib.sha256(json.dumps(self.extensions).encode())
        for name in COLUMNS:
            column = getattr(self, name)
            digest.update(f"{name} {column.dtype.str} {len(column)} ".encode() + column.tobytes())
        return digest.digest()


def index_shard(path: Path, stamp: Stamp | None = None) -> ShardIndex:
    """Index of a tar as it is now, or of `stamp`, from the cache where that knows the same size and time of change."""
    stamp = stamp or Stamp.of(path)
    return cached_index(path, stamp) or make_index(path)


def make_index(path: Path) -> ShardIndex:
    """Index of a tar from its bytes, which replaces the one in the cache; `saved` says whether it could."""
    return _kept(scan(path))


def keep_shapes(index: ShardIndex, shapes: np.ndarray) -> ShardIndex:
    """An index with the heights and widths of its pictures, (n, 2), which replaces the one in the cache."""
    return _kept(replace(index, shapes=compact(shapes)))


def _kept(index: ShardIndex) -> ShardIndex:
    words = {"extensions": index.extensions, "damage": index.damage}
    arrays = {name: getattr(index, name) for name in COLUMNS}
    arrays["stamp"] = np.array([VERSION, *index.stamp], np.int64)
    arrays["words"] = np.frombuffer(json.dumps(words).encode(), np.uint8)
    arrays |= {} if index.shapes is None else {"shapes": index.shapes}
    return replace(index, saved=write_arrays(cache_of(index.path), arrays))


def cache_of(path: Path) -> Path:
    """Where the index of a shard is kept."""
    return path.parent / CACHE / f"{path.name}.index"


def cached_index(path: Path, stamp: Stamp) -> ShardIndex | None:
    """Index of a tar of `stamp` from the cache; None where that does not know it."""
    found = read_arrays(cache_of(path))
    if found is None or tuple(found.get("stamp", ())) != (VERSION, *stamp):
        return None  # no cache, or of another file: the shard itself is the truth
    words = json.loads(found["words"].tobytes())
    columns = {name: found[name] for name in COLUMNS}
    extensions, damage = tuple(words["extensions"]), tuple(words["damage"])
    index = ShardIndex(path=path, stamp=stamp, saved=True, extensions=extensions, damage=damage, **columns)
    return replace(index, shapes=found.get("shapes"))


def scan(path: Path) -> ShardIndex:
    """Read every header of a tar; members `a/b.latent.npy` belong to the sample `a/b` under `latent.npy`."""
    stamp = Stamp.of(path)  # first: a file that is being written must not look read
    samples: dict[str, dict[str, Span]] = {}
    damage: list[str] = []
    members, end = _headers(path, damage)
    for name, offset, size in members:
        key, extension = base_plus_ext(name)
        if not key or not extension or Path(name).name.startswith(("__", "._")):
            continue  # folders' own files, not samples
        if offset + size > end:
            damage.append(f"{name} is cut off: {max(0, end - offset)} of {size} bytes are there")
            continue
        sample = samples.setdefault(key, {})
        if extension.lower() in sample:
            damage.append(f"{name} occurs twice: the first one is used")
        else:
            sample[extension.lower()] = (offset, size)
    return _columns(path, stamp, samples, damage)


def _columns(path: Path, stamp: Stamp, samples: dict[str, dict[str, Span]], damage: list[str]) -> ShardIndex:
    keys, key_ends = blob(list(samples))
    kinds: dict[str, int] = {}
    found = [(kinds.setdefault(e, len(kinds)), *span) for sample in samples.values() for e, span in sample.items()]
    table = np.array(found, np.uint64).reshape(-1, 3)  # (m, 3)
    return ShardIndex(
        path=path,
        stamp=stamp,
        keys=keys,
        key_ends=key_ends,
        member_ends=compact(np.cumsum([len(sample) for sample in samples.values()], dtype=np.int64)),
        kinds=compact(table[:, 0]),
        offsets=compact(table[:, 1]),
        sizes=compact(table[:, 2]),
        extensions=tuple(kinds),
        damage=tuple(damage),
    )


def _headers(path: Path, damage: list[str]) -> tuple[list[tuple[str, int, int]], int]:
    """(name, offset, size) of the regular files of a tar and the length of the file; notes what is damaged."""
    found: list[tuple[str, int, int]] = []
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        if not end:
            damage.append("the file is empty")
            return found, end
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if member.isreg():
                        found.append((member.name, member.offset_data, member.size))
                after = archive.offset
        except (tarfile.TarError, ValueError, OverflowError) as error:
            damage.append(f"not a readable tar to its end ({error})")
            return found, end
        file.seek(after)  # tarfile takes rubbish between members for the end: only a block of zeros is
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            damage.append(f"no end mark at byte {after} of {end}: the tar is truncated or damaged there")
    return found, end
