"""How the tensors of a training state lie in files. Nothing else knows: who shards a state over processes changes this.

A state is a tree of dictionaries, lists, plain values and tensors. It is written as one file that torch unpickles with
`weights_only`, and hashed on its way to the disk, so that it need not be read again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pipelines.artefact import fingerprint

WHOLE = "state.pt"  # the state of all processes, which are alike
Files = dict[str, dict[str, Any]]  # by their names: bytes and sha256


def copied(tree: Any) -> Any:
    """Return a copy of a state in main memory, which the next step does not touch."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(copied(value) for value in tree)
    return tree


def write(folder: Path, tree: Any) -> Files:
    """Write a state into a folder, down to the disk; returns what was written."""
    with (folder / WHOLE).open("wb") as handle:
        hashing = _Hashing(handle)
        torch.save(tree, hashing)  # type: ignore[arg-type]
        handle.flush()
        os.fsync(handle.fileno())
    return {WHOLE: hashing.facts()}


def read(folder: Path) -> Any:
    """Read a state into main memory. Raises RuntimeError where it is none."""
    return read_file(folder / WHOLE)


def read_file(path: Path) -> Any:
    """Read one file that torch saved, without running what it holds. Raises RuntimeError where that cannot be."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
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
