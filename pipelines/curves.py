"""The curves of a training run: TensorBoard, and log.jsonl, from which the report draws. A full disk costs points."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from pipelines.artefact import is_full, write_atomically

LOG = "log.jsonl"  # curves and steps left out, a line each

log = logging.getLogger("palimpsest")


class Curves:
    """Points behind step `begun` are dropped: those steps are taken again."""

    def __init__(self, folder: Path, begun: int) -> None:
        self.folder, self.path, self.full = folder, folder / LOG, False
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            text = "".join(line + "\n" for line in lines if _step_of(line) <= begun)
            write_atomically(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        self.board: SummaryWriter | None = SummaryWriter(str(folder / "tensorboard"), purge_step=begun)

    def plot(self, split: str, step: int, seconds: float, scalars: Mapping[str, float]) -> None:
        """Add a point to each curve; what is not finite goes to TensorBoard alone."""
        try:
            if self.board is not None:
                for name, value in scalars.items():
                    self.board.add_scalar(f"{name}/{split}", value, step)
        except OSError as error:  # of its thread, which does not come back
            self._fails(error)
            self.board = None
        finite = {key: value for key, value in scalars.items() if math.isfinite(value)}
        self.note({"step": step, "seconds": round(seconds, 1), "split": split, **finite})

    def note(self, line: Mapping[str, Any]) -> None:
        """Append a line to log.jsonl, or nothing."""
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        before = os.fstat(handle).st_size
        try:
            text = (json.dumps(line) + "\n").encode()
            if os.write(handle, text) < len(text):
                raise OSError(28, "No space left on device", str(self.path))
        except OSError as error:
            os.ftruncate(handle, before)  # half a line would spoil the next one
            self._fails(error)
        finally:
            os.close(handle)

    def close(self) -> None:
        """Flush and close."""
        try:
            if self.board is not None:
                self.board.close()
        except OSError as error:
            self._fails(error)

    def _fails(self, error: OSError) -> None:
        """Say once that the disk is full; raise what is something else."""
        if not is_full(error, self.folder):
            raise error
        if not self.full:
            log.warning("No space left for the curves in %s: points are missing until there is some.", self.folder)
        self.full = True


def _step_of(line: str) -> int:
    """Return the step of a log line; a torn last line counts as one to drop."""
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return 1 << 62
