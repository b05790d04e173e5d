"""The state of a training run: everything that changes while training; a checkpoint is this, written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.checkpoints import Kept
from pipelines.errors import PalimpsestError
from pipelines.posthoc import Tracked
from pipelines.rows import placed
from pipelines.spikes import Norms
from tokenizer.quantize import Moved

PARTS = {  # what a checkpoint holds of each network and of averages, in words
    "network": "a network",
    "average": "averaged weights (training.ema)",
    "rival": "a second player (the table adversarial)",
    "tracked": "averages of other lengths (training.posthoc)",
}


@dataclass
class State:
    """Networks, optimisers and counts. The plain values of it stand in a checkpoint's JSON, the tensors in files.

    skipped: steps that were left out; in_a_row: of them, those since the last one that was taken.
    """

    network: nn.Module
    average: nn.Module | None
    optimizers: list[torch.optim.Optimizer]
    rival: nn.Module | None = None
    tracked: Tracked | None = None
    step: int = 0
    cursor: int = 0
    seconds: float = 0.0
    skipped: int = 0
    in_a_row: int = 0
    best: tuple[int, float] | None = None  # the step that validated best, and its figure
    norms: Norms = field(default_factory=Norms)

    @torch.no_grad()
    def follow(self, moved: Sequence[Moved]) -> None:
        """Take rows that were moved by hand over into the average, and forget the optimisers' moments of them."""
        average = self.network if self.average is None else self.average
        averages: dict[Tensor, Tensor] = dict(zip(self.network.parameters(), average.parameters(), strict=True))
        for codebook, rows in moved:
            if codebook in averages:  # buffers are copied with every step
                averages[codebook][rows] = codebook[rows].to(averages[codebook].dtype)
            for optimizer in self.optimizers:
                for moment in optimizer.state.get(codebook, {}).values():
                    if isinstance(moment, Tensor) and moment.shape == codebook.shape:
                        moment[rows] = 0

    def facts(self) -> dict[str, Any]:
        """Return the plain values."""
        names = ("step", "cursor", "seconds", "skipped", "in_a_row", "best")
        return {**{name: getattr(self, name) for name in names}, "norms": self.norms.values()}

    def tensors(self) -> dict[str, Any]:
        """Return the tensors, as they lie in memory."""
        parts = {name: getattr(self, name) for name in PARTS}
        return {
            **{name: None if part is None else part.state_dict() for name, part in parts.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, kept: Kept, folder: Path) -> None:
        """Take over a checkpoint. Raises PalimpsestError for one of other players, averages or optimisers."""
        try:
            self._take_over(kept.tensors)
        except (RuntimeError, ValueError) as error:  # torch's words for shapes and numbers that differ
            raise PalimpsestError(
                f"{kept.path} does not fit what the stage trains now: {error}. Go on with the recipe and the "
                f"version that began it, or delete {folder} to begin the stage anew."
            ) from error
        facts = kept.facts
        self.step, self.cursor, self.seconds = facts["step"], facts["cursor"], facts["seconds"]
        self.skipped, self.in_a_row = facts["skipped"], facts.get("in_a_row", 0)  # the last: not in version 0.1
        self.best = tuple(facts["best"]) if facts.get("best") else None
        self.norms = Norms.of(facts.get("norms", {}))

    def _take_over(self, tensors: dict[str, Any]) -> None:
        for part, name in PARTS.items():
            kept, wanted = tensors.get(part), getattr(self, part)
            if (kept is None) != (wanted is None):
                holds, asks = ("no ", "asks for it") if kept is None else ("", "has none")
                raise ValueError(f"it holds {holds}state of {name}, and the stage {asks}")
            if wanted is not None:
                wanted.load_state_dict(placed(kept, wanted.state_dict()))
        states = tensors["optimizers"]
        if len(states) != len(self.optimizers):
            raise ValueError(f"it holds state of {len(states)} optimisers, and the stage has {len(self.optimizers)}")
        for optimizer, kept in zip(self.optimizers, states, strict=True):
            moved = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            moments = {number: dict.fromkeys(part, moved[number]) for number, part in kept["state"].items()}
            optimizer.load_state_dict(placed(kept, {"state": moments}))
