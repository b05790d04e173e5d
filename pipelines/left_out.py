"""Steps that were left out: when a run has too many of them to go on."""

from __future__ import annotations

from pipelines.state import State
from pipelines.task import Training

BAD_STEPS = 10  # steps in a row that are left out before a run gives up; fewer than that in all are never too many


def too_many(state: State, training: Training, steps: int, reason: str) -> str | None:
    """Say why a run gives up at a step that was left out for a reason, none where it goes on."""
    if state.in_a_row >= BAD_STEPS:
        return f"{state.in_a_row} steps in a row were left out (up to step {state.step}), of the last {reason}"
    if state.skipped > max(BAD_STEPS, training.max_skipped * steps):
        share = f"{training.max_skipped:.1%} of {steps} (training.max_skipped)"
        return f"{state.skipped} of {state.step + 1} steps were left out, more than {share}; of the last {reason}"
    return None


def remedy(name: str, training: Training) -> str:
    """Return what else may help."""
    spike = "" if training.spike is None else ", or raise training.spike"
    return f"lower stage.{name}.training.learning_rate, or set bf16 = false{spike}"
