"""How many steps a stage takes: given, or made of a budget in minutes and kept, so that a resumed run keeps to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.artefact import read_json, write_json

REVISE_AT = (0.12, 0.4)  # shares of a budget, or of the steps, after which the plan is held against the clock
RESERVE = 0.97  # share of a budget that is planned; the rest is for saving and starting


@dataclass
class Plan:
    """The number of steps as it was first set, and how it was revised: (at step, new number). All of it is on disk.

    A rehearsal cannot know what its neighbours will do to a step's time, so a budget is held against the clock twice.
    The learning rate at a step depends on the plan at that step alone: a resumed run repeats it exactly.
    """

    path: Path
    first: int
    budget: float | None = None  # seconds for the steps; none where the steps were given
    revisions: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan."""
        made: dict[str, Any] = read_json(path)
        return cls(path, made["steps"], made["budget"], [(at, steps) for at, steps in made["revisions"]])

    def save(self) -> None:
        """Write the plan, atomically."""
        write_json(self.path, {"steps": self.first, "budget": self.budget, "revisions": self.revisions})

    def at(self, step: int) -> int:
        """Return the number of steps as planned at a step."""
        return next((steps for start, steps in reversed(self.revisions) if start <= step), self.first)

    def hold_against(self, step: int, seconds: float) -> None:
        """Revise once the next share of the budget is used up by `seconds` of training, or that of the steps by `step`.

        So neither a slow nor a busy start decides how long a stage trains.
        """
        done = len(self.revisions)
        if self.budget is None or done == len(REVISE_AT):
            return
        if seconds < REVISE_AT[done] * self.budget and step < REVISE_AT[done] * self.at(step):
            return
        self.revisions.append((step, max(step + 1, round(step * self.budget / seconds))))
        self.save()
