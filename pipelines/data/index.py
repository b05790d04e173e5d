"""The index of one shard: where each member of each sample lies, so that any sample is one read away.

It is built from the tar headers alone and cached in `.index/` beside the shards; a folder that cannot be written to is
indexed in memory. A damaged tar keeps its readable samples, and says what is missing.
"""

import json
import logging
import os
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path

from webdataset.tariterators import base_plus_ext

VERSION = 1
CACHE = ".index"
log = logging.getLogger("palimpsest")
Span = tuple[int, int]  # byte offset and size of a member's data


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Samples of one shard in the order of the file."""

    path: Path
    keys: tuple[str, ...]
    members: tuple[dict[str, Span], ...]  # for each sample: extension -> where its bytes lie
    damage: tuple[str, ...]  # sentences; empty for a sound tar


def index_shard(path: Path) -> ShardIndex:
    """Index of a tar, from the cache where the file has kept its size and time of change."""
    status = path.stat()
    stamp = {"version": VERSION, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    cache = path.parent / CACHE / f"{path.name}.json"
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        if content["stamp"] == stamp:
            members = tuple({ext: (span[0], span[1]) for ext, span in sample.items()} for sample in content["members"])
            return ShardIndex(path=path, keys=tuple(content["keys"]), members=members, damage=tuple(content["damage"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        pass  # no cache, or not ours: the shard itself is the truth
    index = scan(path)
    _save(cache, {"stamp": stamp, **{k: v for k, v in asdict(index).items() if k != "path"}})
    return index


def _save(cache: Path, content: dict[str, object]) -> None:
    if not cache.parent.parent.stat().st_mode & 0o222:
        return  # root could write even here, but somebody has asked that nobody does
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(exist_ok=True)
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(cache)
    except OSError as error:
        log.debug("No index cached beside %s: %s", cache.parent.parent, error)
        temporary.unlink(missing_ok=True)


def scan(path: Path) -> ShardIndex:
    """Read every header of a tar; members `a/b.latent.npy` belong to the sample `a/b` under `latent.npy`."""
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
    return ShardIndex(path=path, keys=tuple(samples), members=tuple(samples.values()), damage=tuple(damage))


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
