"""How the tensors of a training state lie in files. Nothing else knows.

A state is a tree of dictionaries, lists, plain values and tensors. It is one file where all processes hold the same,
and one for each part where tensors are sharded over processes: the rows of a part, and in the first one all that is not
sharded. Files are what torch unpickles with `weights_only`, and are hashed on their way to the disk.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard

import torch
from torch import Tensor

from pipelines.artefact import fingerprint

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Files = dict[str, dict[str, Any]]  # by their names: bytes and sha256


@dataclass(frozen=True)
class Part:
    """Which of `count` parts of a state a file holds."""

    number: int
    count: int

    @property
    def file(self) -> str:
        """Its name."""
        return f"state-{self.number:05d}-of-{self.count:05d}.pt"


WHOLE = "state.pt"  # the state of all processes, which are alike


@dataclass(frozen=True)
class Copy:
    """A copy of a state in main memory: `rest` has None where tensors are sharded, whose own rows are `rows`."""

    rest: Any
    rows: dict[str, Tensor]


@dataclass(frozen=True)
class Cut:
    """A tensor whose rows lie in several files, one behind the other; a slice of rows reads only those."""

    pieces: list[Tensor]

    @property
    def shape(self) -> torch.Size:
        """That of the whole."""
        first = self.pieces[0].shape
        return torch.Size([sum(len(piece) for piece in self.pieces), *first[1:]])

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self.shape[0])
        parts, begins = [], 0
        for piece in self.pieces:
            parts.append(piece[max(0, start - begins) : max(0, stop - begins)])
            begins += len(piece)
        return torch.cat(parts)


def is_sharded(value: Any) -> TypeGuard[DTensor]:
    """Whether a value is a tensor whose rows lie on several processes."""
    from torch.distributed.tensor import DTensor  # slow to import, and a recipe is read without it

    return isinstance(value, DTensor)


def copied(tree: Any) -> Copy:
    """Return a copy of a state, or of what this process holds of it, which the next step does not touch."""
    rows: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if is_sharded(value):
            rows[path] = _copy(value.to_local())
            return None
        if isinstance(value, Tensor):
            return _copy(value)
        if isinstance(value, dict):
            return {key: walk(part, f"{path}/{key}") for key, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(walk(part, f"{path}/{number}") for number, part in enumerate(value))
        return value

    return Copy(walk(tree, ""), rows)


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True)


def write(folder: Path, copy: Copy, part: Part | None = None) -> Files:
    """Write a state, or a part of it, into a folder, down to the disk; returns what was written."""
    held = copy.rest if part is None else {"rest": None if part.number else copy.rest, "rows": copy.rows}
    name = WHOLE if part is None else part.file
    with (folder / name).open("wb") as handle:
        hashing = _Hashing(handle)
        torch.save(held, hashing)  # type: ignore[arg-type]
        handle.flush()
        os.fsync(handle.fileno())
    return {name: hashing.facts()}


def read(folder: Path) -> Any:
    """Open a state: tensors are read where they are touched, those that lie in parts are `Cut`.

    Raises RuntimeError where there is none.
    """
    names = sorted(path.name for path in folder.glob("state-*.pt"))
    if not names:
        return read_file(folder / WHOLE, lazily=True)
    count = int(re.fullmatch(r"state-\d+-of-(\d+)\.pt", names[0])[1])  # type: ignore[index]
    parts = [read_file(folder / Part(number, count).file, lazily=True) for number in range(count)]
    return _joined(parts[0]["rest"], "", [part["rows"] for part in parts])


def _joined(value: Any, path: str, rows: list[dict[str, Tensor]]) -> Any:
    """Put the rows of all parts in their places."""
    if value is None and path in rows[0]:
        return Cut([part[path] for part in rows])
    if isinstance(value, dict):
        return {key: _joined(part, f"{path}/{key}", rows) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_joined(part, f"{path}/{number}", rows) for number, part in enumerate(value))
    return value


def read_file(path: Path, *, lazily: bool = False) -> Any:
    """Read one file that torch saved, without running what it holds. Raises RuntimeError where that cannot be."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except (OSError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        raise RuntimeError(f"{path} cannot be read: {error}") from error


def problem(folder: Path, files: Files) -> str | None:
    """Say what is wrong with the files of a folder, none where all are as they were written."""
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not the {facts['bytes']} that were written"
        if fingerprint(path) != facts:
            return f"{name} is not what was written (its sha256 differs)"
    return None


class _Hashing:
    """A file that is written once from its start to its end, and hashed on the way."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle, self.sha, self.count = handle, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        """Take the next bytes."""
        self.sha.update(data)
        written = self.handle.write(data)
        self.count += written
        return written

    def flush(self) -> None:
        """Hand on what is buffered."""
        self.handle.flush()

    def facts(self) -> dict[str, Any]:
        """Return the size and the hash of what was written."""
        return {"bytes": self.count, "sha256": self.sha.hexdigest()}
