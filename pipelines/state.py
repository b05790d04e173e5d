"""The state of a training run, and its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.artefact import load_state, save_state
from pipelines.errors import PalimpsestError
from tokenizer.quantize import Moved

PARTS = {  # networks of a state that a checkpoint holds, in words
    "network": "a network",
    "average": "averaged weights (training.ema)",
    "rival": "a second player (the table adversarial)",
}
BEST = ".best-{}.safetensors"  # the weights that validated best so far, by their step


@dataclass
class State:
    """Everything that changes while training; a checkpoint is this, written down."""

    network: nn.Module
    average: nn.Module | None
    optimizers: list[torch.optim.Optimizer]
    rival: nn.Module | None = None
    step: int = 0
    cursor: int = 0
    seconds: float = 0.0
    skipped: int = 0
    best: tuple[int, float] | None = None  # the step that validated best, and its figure
    last_save: float = field(default_factory=time.monotonic)

    @torch.no_grad()
    def follow(self, moved: Sequence[Moved]) -> None:
        """Take rows that were moved by hand over into the average, and forget the optimisers' moments of them."""
        average = self.network if self.average is None else self.average
        averages: dict[Tensor, Tensor] = dict(zip(self.network.parameters(), average.parameters(), strict=True))
        for codebook, rows in moved:
            if codebook in averages:  # buffers are copied with every step
                averages[codebook][rows] = codebook[rows]
            for optimizer in self.optimizers:
                for moment in optimizer.state.get(codebook, {}).values():
                    if isinstance(moment, Tensor) and moment.shape == codebook.shape:
                        moment[rows] = 0

    def save(self, folder: Path) -> None:
        """Write a checkpoint and keep the one before it, in case the disk tears."""
        path = folder / "checkpoint.pt"
        values = {
            "step": self.step,
            "cursor": self.cursor,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "best": self.best,
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "rival": None if self.rival is None else self.rival.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        if path.exists():
            path.replace(folder / "checkpoint.previous.pt")
        save_state(path, values)
        bests = sorted(folder.glob(BEST.format("*")), key=lambda best: best.stat().st_mtime_ns)
        for best in bests[:-2]:  # neither this checkpoint nor the one before needs it
            best.unlink()
        self.last_save = time.monotonic()

    def load(self, folder: Path) -> bool:
        """Go on from the newest checkpoint that reads; False when there is none.

        Raises PalimpsestError for a checkpoint of other players, averages or optimisers than those of this run.
        """
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            values = load_state(folder / name)
            if values is None:
                continue
            try:
                self._restore(values)
            except (RuntimeError, ValueError) as error:  # torch's words for shapes and numbers that differ
                raise PalimpsestError(
                    f"{folder / name} does not fit what the stage trains now: {error}. Go on with the recipe and the "
                    f"version that began it, or delete {folder} to begin the stage anew."
                ) from error
            return True
        if any(folder.glob("checkpoint*.pt")):
            raise PalimpsestError(
                f"No checkpoint in {folder} can be read. Look at the disk; to begin the stage anew, delete that folder."
            )
        return False

    def _restore(self, values: dict[str, Any]) -> None:
        """Take over a checkpoint. Raises ValueError or RuntimeError where it is one of something else."""
        for part, name in PARTS.items():
            kept, wanted = values.get(part), getattr(self, part)
            if (kept is None) != (wanted is None):
                holds, asks = ("no ", "asks for it") if kept is None else ("", "has none")
                raise ValueError(f"it holds {holds}state of {name}, and the stage {asks}")
            if wanted is not None:
                wanted.load_state_dict(kept)
        states = values["optimizers"] if "optimizers" in values else [values["optimizer"]]  # of older checkpoints
        if len(states) != len(self.optimizers):
            raise ValueError(f"it holds state of {len(states)} optimisers, and the stage has {len(self.optimizers)}")
        for optimizer, kept in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(kept)
        self.step, self.cursor = values["step"], values["cursor"]
        self.seconds, self.skipped, self.best = values["seconds"], values["skipped"], values.get("best")


def drop_checkpoints(folder: Path) -> None:
    """Remove training state once the artefact stands."""
    for path in (*folder.glob("checkpoint*.pt"), *folder.glob(BEST.format("*"))):
        path.unlink()
