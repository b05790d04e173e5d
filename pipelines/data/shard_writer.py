"""Writing shards: tar files whose bytes depend on the samples alone, in a folder that appears whole or not at all."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from webdataset.writer import ShardWriter, TarWriter

from pipelines.artefact import fingerprint, write_atomically
from pipelines.errors import DataError

MANIFEST = "manifest.json"
PER_SHARD = 5000
Record = Mapping[str, str | bytes]  # one entry for each extension


class SplitWriter:
    """Writes SPLIT-000000.tar, SPLIT-000001.tar, ... of several splits side by side, keys numbered within a split."""

    def __init__(self, folder: Path, per_shard: int = PER_SHARD) -> None:
        self.folder = folder
        self.per_shard = per_shard
        self.counts: Counter[str] = Counter()
        self._writers: dict[str, ShardWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def add(self, split: str, record: Record) -> None:
        """Append a sample under the next key of its split."""
        if split not in self._writers:
            pattern = str(self.folder.resolve()).replace("%", "%%") + f"/{split}-%06d.tar"
            # mtime fixed: the same samples give the same bytes
            self._writers[split] = ShardWriter(pattern, maxcount=self.per_shard, verbose=0, encoder=False, mtime=0)
        self._writers[split].write(_sample(f"{split}-{self.counts[split]:08d}", record))
        self.counts[split] += 1

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return {file name: {split, samples, bytes, sha256}} of the finished shards, for a manifest."""
        found: dict[str, dict[str, Any]] = {}
        for split, count in self.counts.items():
            for shard in range(-(-count // self.per_shard)):
                name = f"{split}-{shard:06d}.tar"
                samples = min(self.per_shard, count - shard * self.per_shard)
                found[name] = {"split": split, "samples": samples, **fingerprint(self.folder / name)}
        return found


def write_shard(path: Path, samples: Iterable[tuple[str, Record]]) -> None:
    """Write one shard of samples by key, whole or not at all."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle, TarWriter(handle, encoder=False, mtime=0) as tar:
            for key, record in samples:
                tar.write(_sample(key, record))

    write_atomically(path, write)


def _sample(key: str, record: Record) -> dict[str, str | bytes]:
    members = {name: value.encode() if isinstance(value, str) else value for name, value in record.items()}
    return {"__key__": key, **members}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json, the same bytes for the same content."""
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Manifest of a folder of shards, None where there is none; raises DataError when it is not a JSON object."""
    path = folder / MANIFEST
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"Cannot read {path} ({error}): expected JSON; write the shards again.") from error


def parse_manifest(data: bytes, path: str) -> dict[str, Any]:
    """Manifest of the bytes of its file; raises DataError when they are not a JSON object."""
    try:
        manifest = json.loads(data.decode())
    except ValueError as error:
        raise DataError(f"Cannot read {path} ({error}): expected JSON; write the shards again.") from error
    if not isinstance(manifest, dict):
        raise DataError(f"{path} holds a {type(manifest).__name__}, expected a JSON object; write the shards again.")
    return manifest


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out` that takes its name when the block ends well and vanishes otherwise.

    Raises DataError when `out` already holds something or the disk refuses.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} already exists and is not an empty folder: choose another name or remove it first.")
    building = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        building.mkdir(parents=True)
        yield building
        if out.exists():
            out.rmdir()
        building.rename(out)
    except OSError as error:
        reason = error.strerror or error
        named = f" ({error.filename})" if error.filename else ""
        raise DataError(f"Cannot write {out}: {reason}{named}. Free space, or name another folder.") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
