"""Checkpoints that several processes write together: each its part of the state, the main one the facts, last.

Each process copies its part, and a thread of its own writes and hashes it. The processes meet where training passes by
and all threads have ended: only then are there facts, and a checkpoint.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from pipelines import training_files
from pipelines.artefact import ArtefactError
from pipelines.checkpoints import Checkpoints
from pipelines.hardware import from_main
from pipelines.sharding import Sharding
from pipelines.task import Training
from pipelines.training_files import Copy, Files, Part


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a process has written, or why it could not. full: the disk was, or did not take it."""

    files: Files = field(default_factory=dict)
    beside: Files = field(default_factory=dict)
    fault: str = ""
    full: bool = False


@dataclass(kw_only=True)
class SharedCheckpoints(Checkpoints):
    """The checkpoints beside one stage. All processes make this, and call `begin` and `settle`, at the same steps.

    part: what this process writes; None where another one holds the same.
    """

    part: Part | None
    main: bool
    _facts: dict[str, Any] | None = None  # of the checkpoint that is being written
    _own: Future[Written] | None = None
    _pruning: Future[None] | None = None

    def __post_init__(self) -> None:
        """Agree on a name for what is half written, which processes of an earlier run that still end do not share."""
        self._token = from_main(str(os.getpid()))

    def begin(self, facts: dict[str, Any], tensors: Any) -> None:
        """Copy this process' part and let a thread write it, unless the checkpoint stands. Call `settle` before."""
        if from_main(self.at(facts).exists()):
            return
        if self._pruning is not None:
            self._pruning.result()
        self._facts = facts
        if self.part is not None:
            copy, part = training_files.copied(tensors), self.part
            self._own = self._pool.submit(_tried, lambda: self._write_part(facts, copy, part))

    def settle(self, *, wait: bool = True) -> None:
        """Where all parts are written, make a checkpoint of them. Raises ArtefactError where a disk fails it."""
        facts = self._facts
        if facts is None or not (wait or all(gather_object([self._own is None or self._own.done()]))):
            return
        parts = gather_object([Written() if self._own is None else self._own.result()])
        self._facts = self._own = None
        failed = sorted((part for part in parts if part.fault), key=lambda part: not part.full)
        ended = failed[0] if failed else Written()
        if self.main:
            ended = ended if ended.fault else _tried(lambda: self._complete(facts, parts))
            if ended.fault:
                shutil.rmtree(self.half(facts, self._token), ignore_errors=True)
            else:
                self._pruning = self._pool.submit(self.tidy, facts["step"])
        if (ended := from_main(ended)).fault:
            raise ArtefactError(ended.fault) if ended.full else RuntimeError(ended.fault)

    def _write_part(self, facts: dict[str, Any], copy: Copy, part: Part) -> Written:
        with self.whole_or_none(facts, self._token, shared=True) as temporary:  # the main process removes it
            files = training_files.write(temporary, copy, part)
            return Written(files=files, beside=self.beside(facts) if self.main else {})

    def _complete(self, facts: dict[str, Any], parts: list[Written]) -> Written:
        files = {name: made for part in parts for name, made in part.files.items()}
        beside = {name: made for part in parts for name, made in part.beside.items()}
        with self.whole_or_none(facts, self._token) as temporary:
            self.complete(facts, temporary, files, beside)
        return Written()


def checkpoints_of(folder: Path, training: Training, sharding: Sharding | None, *, main: bool) -> Checkpoints:
    """Return where checkpoints go: written by the main process, or by all that hold a part of the state."""
    options = {"folder": folder, "keep": training.keep_checkpoints, "every": training.keep_every}
    return Checkpoints(**options) if sharding is None else SharedCheckpoints(**options, part=sharding.part, main=main)


def _tried(write: Callable[[], Written]) -> Written:
    """Write, and return a fault in words: raised by one process alone, it would leave the others waiting."""
    try:
        return write()
    except ArtefactError as error:
        return Written(fault=str(error), full=True)
    except Exception as error:  # named and raised by all of them
        return Written(fault=f"{type(error).__name__}: {error}")
