"""The checkpoints of one training run: a folder each, whole or not there at all.

    checkpoints/000123/state*.pt          tensors, in one file or in parts (pipelines.training_files)
    checkpoints/000123/checkpoint.json    step, cursor, ..., the hashes of the files, and one of all this; written last

A checkpoint is written under a temporary name, flushed and renamed, by a thread that lets training go on: only the copy
of the tensors holds it up. One that is not whole is never resumed from, and never deleted: it is set aside.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from pipelines import training_files
from pipelines.artefact import ArtefactError, digest, fingerprint, is_full, read_json, sync_folder, write_json
from pipelines.errors import PalimpsestError, said
from pipelines.training_files import Copy

CHECKPOINTS = "checkpoints"  # in the folder of a stage
FACTS = "checkpoint.json"
SCHEMA = 1
OLD = ("checkpoint.pt", "checkpoint.previous.pt")  # of version 0.1, without hashes
ASKED = ".ema.json"  # averages of another length that were asked for (pipelines.averages)
BEST = ".best-{}.safetensors"  # beside the checkpoints: the weights that validated best so far, by their step
DAMAGED = "damaged-"

log = logging.getLogger("palimpsest")


class Kept(NamedTuple):
    """What a checkpoint holds: plain values and a tree of tensors."""

    path: Path
    facts: dict[str, Any]
    tensors: Any


@dataclass(kw_only=True)
class Checkpoints:
    """The checkpoints beside one stage.

    keep: how many of the last ones stay; every: of the steps that it divides, they stay for good.
    """

    folder: Path  # of the stage
    keep: int = 2
    every: int | None = None
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1), repr=False)
    _writing: Future[None] | None = None

    @property
    def root(self) -> Path:
        """Where they lie."""
        return self.folder / CHECKPOINTS

    def due(self, step: int) -> bool:
        """Whether the checkpoint of a step is one of those that stay for good."""
        return self.every is not None and step % self.every == 0

    def begin(self, facts: dict[str, Any], tensors: Any) -> None:
        """Copy the state and let a thread write it. Call `settle` before."""
        self._writing = self._pool.submit(self._write, facts, training_files.copied(tensors))

    def settle(self, *, wait: bool = True) -> None:
        """Meet the end of the checkpoint that is being written. Raises ArtefactError where the disk fails it."""
        writing = self._writing
        if writing is not None and (wait or writing.done()):
            self._writing = None
            writing.result()

    def close(self) -> None:
        """Wait for the thread."""
        self._pool.shutdown()

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint, none where training has not begun; set aside those that are damaged.

        Raises PalimpsestError where there are only damaged ones: to begin anew is not for a program to decide.
        """
        for left in self.root.glob(".*.tmp"):  # what a killed process left half written
            shutil.rmtree(left)
        for path in sorted(self._all(), reverse=True):
            if (fault := fault_of(path)) is None:
                return path
            aside = _free(self.root / f"{DAMAGED}{path.name}")
            path.rename(aside)
            log.warning("%s: the checkpoint of step %d is not resumed from, %s; it is set aside as %s.",
                        self.folder.name, int(path.name), fault, aside)  # fmt: skip
        old = next((self.folder / name for name in OLD if _reads(self.folder / name)), None)
        begun = any(self.root.glob(f"{DAMAGED}*")) or any((self.folder / name).exists() for name in OLD)
        if old is None and begun:
            raise PalimpsestError(
                f"No checkpoint in {self.folder} can be resumed from. Look at the disk; to begin the stage anew, "
                "delete that folder."
            )
        return old

    def _all(self) -> list[Path]:
        return [path for path in self.root.glob("*") if path.name.isdigit()]

    def _write(self, facts: dict[str, Any], copy: Copy) -> None:
        if self.at(facts).exists():  # resumed from and whole, or just written
            return
        with self.whole_or_none(facts, str(os.getpid())) as temporary:
            files = training_files.write(temporary, copy)
            self.complete(facts, temporary, files, self.beside(facts))
        self.tidy(facts["step"])

    def tidy(self, step: int) -> None:
        """Prune; what a disk does not let go of stays, and is no reason to end a training."""
        try:
            self.prune(step)
        except OSError as error:
            log.warning("%s: an older checkpoint cannot be deleted: %s", self.folder.name, said(error))

    def at(self, facts: dict[str, Any]) -> Path:
        """Where the checkpoint of a state lies once it is whole."""
        return self.root / f"{facts['step']:06d}"

    def half(self, facts: dict[str, Any], token: str) -> Path:
        """Where it lies before, by a token of the process or the processes that make it."""
        return self.root / f".{self.at(facts).name}.{token}.tmp"

    @contextmanager
    def whole_or_none(self, facts: dict[str, Any], token: str, *, shared: bool = False) -> Iterator[Path]:
        """Give the folder in which a checkpoint is made; where that fails, it goes, unless others write there as well.

        Raises ArtefactError where the disk is full, or does not take it.
        """
        final, temporary = self.at(facts), self.half(facts, token)
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            yield temporary
        except Exception as error:
            if not shared:
                shutil.rmtree(temporary, ignore_errors=True)
            fault = _of_the_disk(error)
            if isinstance(error, ArtefactError) or is_full(fault, self.folder):
                raise ArtefactError(
                    f"No space left while writing {final}; what was saved before is intact. Free some space."
                ) from error
            if isinstance(fault, OSError):
                words = f"Cannot write {final} ({said(fault)}); what was saved before is intact."
                raise ArtefactError(words) from error
            raise

    def beside(self, facts: dict[str, Any]) -> training_files.Files:
        """Return size and hash of the weights that validated best, which a checkpoint names."""
        best = BEST.format(facts["best"][0]) if facts["best"] else None
        return {best: fingerprint(self.folder / best)} if best else {}

    def complete(
        self, facts: dict[str, Any], temporary: Path, files: training_files.Files, beside: training_files.Files
    ) -> None:
        """Write the facts, and give a checkpoint its name."""
        made = {"schema": SCHEMA, **facts, "for_good": self.due(facts["step"]), "files": files, "beside": beside}
        write_json(temporary / FACTS, {**made, "hash": digest(made)})
        sync_folder(temporary)
        temporary.rename(self.at(facts))
        sync_folder(self.root)

    def prune(self, step: int) -> None:
        """Delete all but the last ones, those that stay for good, and the best weights that they name."""
        whole = {path: facts for path in sorted(self._all()) if (facts := _facts(path)) is not None}
        passing = [path for path, facts in whole.items() if not facts["for_good"]]
        for path in passing[: max(0, len(passing) - self.keep)]:
            whole.pop(path)
            _remove(path)
        named = {name for facts in whole.values() for name in facts["beside"]}
        for best in self.folder.glob(BEST.format("*")):
            if best.name not in named and int(best.name.split("-")[1].split(".")[0]) <= step:
                best.unlink(missing_ok=True)


def fault_of(path: Path) -> str | None:
    """Say why a checkpoint cannot be resumed from, none where it can."""
    facts = _facts(path)
    if facts is None:
        return f"its {FACTS} is missing or damaged"
    return training_files.problem(path, facts["files"]) or training_files.problem(path.parent.parent, facts["beside"])


def load(path: Path) -> Kept:
    """Read a checkpoint that is whole."""
    if path.name in OLD:
        values: dict[str, Any] = training_files.read_file(path)
        tensors = {name: values.pop(name, None) for name in ("network", "average", "rival")}
        tensors["optimizers"] = values.pop("optimizers") if "optimizers" in values else [values.pop("optimizer")]
        return Kept(path, values, tensors)
    return Kept(path, read_json(path / FACTS), training_files.read(path))


def kept_for_good(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of a stage that stay for good, by their steps, rising."""
    found = sorted(path for path in (folder / CHECKPOINTS).glob("*") if path.name.isdigit())
    return {int(path.name): path for path in found if (_facts(path) or {}).get("for_good")}


def drop(folder: Path) -> None:
    """Remove training state once the artefact stands, but for what was to stay for good and what is damaged."""
    for path in (*(folder / name for name in (*OLD, ASKED)), *folder.glob(BEST.format("*"))):
        path.unlink(missing_ok=True)
    root = folder / CHECKPOINTS
    for path in root.glob("*"):
        if path.name.isdigit() and not (_facts(path) or {}).get("for_good"):
            _remove(path)
    with contextlib.suppress(OSError):  # not empty, or not there
        root.rmdir()


def _facts(path: Path) -> dict[str, Any] | None:
    """Return the plain values of a checkpoint, none where they are not whole."""
    try:
        made = read_json(path / FACTS)
        return made if made.pop("hash") == digest(made) else None
    except (ArtefactError, OSError, KeyError, TypeError, AttributeError):
        return None


def _free(path: Path) -> Path:
    """Return the path, with a number behind it where it is taken."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(found for found in chain([path], numbered) if not found.exists())


def _of_the_disk(error: Exception) -> Exception:
    """Return what a file said, which torch replaces by words of its own."""
    cause = error.__context__
    return cause if isinstance(error, RuntimeError) and isinstance(cause, OSError) else error


def _reads(path: Path) -> bool:
    """Whether a checkpoint of version 0.1 can be read."""
    try:
        return path.exists() and training_files.read_file(path) is not None
    except RuntimeError:
        return False


def _remove(path: Path) -> None:
    """Delete a checkpoint so that no moment shows half of it."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.rename(hidden)
    shutil.rmtree(hidden)
