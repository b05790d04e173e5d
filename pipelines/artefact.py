"""Artefacts: folders that one stage writes and a later stage can trust.

An artefact is `model.safetensors`, `ema.safetensors` (where the stage keeps an average) and `manifest.json`, which
carries all that a later stage could get wrong. Everything is written to a temporary name and renamed, the manifest
last: a folder without a manifest is an unfinished stage. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.errors import PalimpsestError

MANIFEST = "manifest.json"
PLAN = "plan.json"  # beside it: how many steps a stage's minutes have become
UNHASHED = (MANIFEST, PLAN, "report.json")  # what holds times, or stands at the end of the line


class ArtefactError(PalimpsestError):
    """An artefact is missing, damaged or made for something else."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it over `path`.

    Raises ArtefactError when the disk is full; what was there before stays intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except Exception as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if is_full(error, path.parent):
            raise ArtefactError(
                f"No space left while writing {path}; what was saved before is intact. "
                "Free some space and run the same command again: it goes on from the last checkpoint."
            ) from error
        raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk, without which a rename may not outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_full(error: Exception, folder: Path) -> bool:
    """Whether a failed write means a full disk; torch and safetensors say so in words only."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error).lower()
    if "no space left" in text or "os error 28" in text:
        return True
    short = isinstance(error, RuntimeError) and ("unexpected pos" in text or "failed writing" in text)  # torch's words
    return short or (isinstance(error, RuntimeError | SafetensorError) and shutil.disk_usage(folder).free < 1 << 20)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused."""
    text = json.dumps(value, indent=1, allow_nan=False, default=_plain)  # ASCII: a lone surrogate of a caption fits too
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def _plain(value: Any) -> Any:
    """Turn the values that stand in configurations and manifests into JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Tensor):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not belong into JSON: {value!r}")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or damaged one is an ArtefactError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is missing.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path} is damaged ({error}). Delete its folder and run the stage again.") from error


def digest(value: Any) -> str:
    """Return the sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(path: Path) -> dict[str, Any]:
    """Return size in bytes and sha256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Save tensors as safetensors, atomically."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))


def load_weights(module: nn.Module, path: Path) -> None:
    """Load safetensors into a module; every name and shape must fit."""
    try:
        state = load_file(path)
        module.load_state_dict(state, strict=True)
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is missing: train its stage first (`palimpsest run RECIPE`).") from error
    except SafetensorError as error:
        raise ArtefactError(f"{path} is damaged ({error}). Delete its folder and run the stage again.") from error
    except RuntimeError as error:
        raise ArtefactError(f"{path} does not fit {type(module).__name__}: {error}") from error


def finish_artefact(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest, with the hash of every weight or tokenizer file, as the last act of a stage."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json") and p.name not in UNHASHED)
    complete = {**manifest, "files": {path.name: file_hash(path) for path in files if not path.name.startswith(".")}}
    complete["hash"] = digest([manifest.get("identity"), complete["files"]])
    write_json(folder / MANIFEST, complete)
    return complete


def read_manifest(folder: Path, *, kind: str | None = None, remedy: str = "") -> dict[str, Any]:
    """Read an artefact's manifest and check that its files are whole.

    Raises ArtefactError if the stage has not finished, is of another kind, or a file does not match its hash.
    """
    if not (folder / MANIFEST).exists():
        raise ArtefactError(f"{folder} holds no finished stage. {remedy or 'Train it first: `palimpsest run RECIPE`.'}")
    manifest = read_json(folder / MANIFEST)
    if kind is not None and manifest.get("kind") != kind:
        raise ArtefactError(
            f"{folder} is of kind {manifest.get('kind')!r}, expected {kind!r}: check `needs` in the recipe."
        )
    for name, expected in manifest.get("files", {}).items():
        path = folder / name
        if not path.exists() or file_hash(path) != expected:
            state = "missing" if not path.exists() else "not the file that was trained (its hash differs)"
            raise ArtefactError(f"{path} is {state}. Delete {folder} and run the stage again.")
    return manifest
