"""How many steps a stage takes: given, or made of a budget in minutes and kept, so that a resumed run keeps to it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.artefact import read_json, write_json

if TYPE_CHECKING:
    from pipelines.runs import Run

LOOKS = (0.12, 0.4)  # shares of a budget after which the plan is held against the clock
RESERVE = 0.97  # share of a budget that is planned; the rest is for saving and starting
log = logging.getLogger("palimpsest")


@dataclass
class Plan:
    """The number of steps as it was first set, and how it was revised: (at step, new number). All of it is on disk.

    A rehearsal cannot know what its neighbours will do to a step's time, so a budget is held against the clock at two
    looks, and before the last of them whenever the steps run ahead: a busy start does not end a training early.
    The learning rate at a step depends on the plan at that step alone: a resumed run repeats it exactly.
    """

    path: Path
    first: int
    budget: float | None = None  # seconds for the steps; none where the steps were given
    revisions: list[tuple[int, int]] = field(default_factory=list)
    looks: int = 0  # how many of LOOKS were taken; after the last one the number of steps stands

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan."""
        made: dict[str, Any] = read_json(path)
        revisions = [(at, steps) for at, steps in made["revisions"]]
        return cls(path, made["steps"], made["budget"], revisions, made.get("looks", len(revisions)))

    def save(self) -> None:
        """Write the plan, atomically."""
        made = {"steps": self.first, "budget": self.budget, "revisions": self.revisions, "looks": self.looks}
        write_json(self.path, made)

    def at(self, step: int) -> int:
        """Return the number of steps as planned at a step."""
        return next((steps for start, steps in reversed(self.revisions) if start <= step), self.first)

    def hold_against(self, step: int, seconds: float) -> None:
        """Revise where `seconds` of training call for a look, or `step` runs ahead of what is left of the budget."""
        if self.budget is None or self.looks == len(LOOKS):
            return
        due = sum(seconds >= share * self.budget for share in LOOKS)
        if due > self.looks or step >= LOOKS[-1] * self.at(step):
            self.looks = due
            self.revisions.append((step, max(step + 1, round(step * self.budget / seconds))))
            self.save()


def keep_plans(run: Run, before: Mapping[str, Any]) -> Run:
    """Give stages whose number of steps is planned the minutes that it was planned from, and say so.

    before: the stages as the folder of the run has them.
    """
    stages = dict(run.recipe.stage)
    for name in run.planned():
        was, now = before.get(name, {}).get("training"), getattr(run.recipe.stage[name], "training", None)
        if was is None or now is None or None in (was["minutes"], now.minutes) or was["minutes"] == now.minutes:
            continue
        log.warning(
            "%s keeps its plan of %g minutes, not %g: delete %s to train it anew.",
            name, was["minutes"], now.minutes, run.stage_folder(name),
        )  # fmt: skip
        kept = dataclasses.replace(now, minutes=was["minutes"], steps=was["steps"])
        stages[name] = dataclasses.replace(run.recipe.stage[name], training=kept)  # type: ignore[call-arg]
    return dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, stage=stages))
