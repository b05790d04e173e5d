"""`palimpsest run RECIPE --dry`: what a recipe would train, without data, memory or training.

Every network is built on torch's meta device, which knows shapes and no values, so that sizes that do not fit are
refused here as they would be hours later. What only the data or another stage's result can tell is taken from the
recipe, or said to be unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.errors import PalimpsestError
from pipelines.hardware import size_of
from pipelines.judged_config import EvalStage
from pipelines.lpips_measure import weights_in
from pipelines.optimizer import matrices_of
from pipelines.recipe import Recipe
from pipelines.scoring.kinds import missing_weights
from pipelines.sketch import Part, sketch
from pipelines.task import Training

HEADS = ("stage", "kind", "parameters", "training", "batch", "shape", "memory", "needs")
_UNITS = (("PB", 1e15), ("TB", 1e12), ("GB", 1e9))
NOTE = (
    "Memory: weights, optimiser and averaged weights, as they are kept on each device. Gradients (4 bytes a "
    "parameter), activations and frozen networks beside them come on top."
)


def dry_run(recipe: Recipe) -> str:
    """Return the table of a recipe's stages. Raises PalimpsestError, which names the stage, where one cannot be."""
    rows: list[tuple[str, ...]] = [HEADS]
    for name in recipe.order():
        stage = recipe.stage[name]
        try:
            check_files(stage)
            with torch.device("meta"):
                found = sketch(recipe, name)
            numbers = [(*_numbers(part), found.shape, _memory(part)) for part in found.parts]
        except (ValueError, OSError) as error:
            raise PalimpsestError(f"stage.{name} cannot be built: {error}") from error
        needs = ", ".join(stage.needs)
        if not found.parts:
            rows.append((name, stage.kind, "", "", "", found.shape, "", needs))
        for part, cells in zip(found.parts, numbers, strict=True):
            rows.append((f"{name} {part.label}".strip(), stage.kind, *cells, needs))
    return "\n".join([*aligned(rows), "", NOTE])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def check_files(stage: Any) -> None:
    """Raise ValueError where a stage names a local file that is not there."""
    perceptual = getattr(stage, "perceptual", None)
    for path in (perceptual.trunk, perceptual.heads) if perceptual else ():
        if path and not Path(path).is_file():
            raise ValueError(f"perceptual names the file {path!r}, which is not there: give its path with --set")
    for asked in stage.embedders if isinstance(stage, EvalStage) else ():
        if problem := missing_weights(asked):
            raise ValueError(problem)
    if isinstance(stage, EvalStage) and stage.lpips:
        try:
            weights_in(Path(stage.lpips))
        except PalimpsestError as error:
            raise ValueError(str(error)) from error


def _numbers(part: Part) -> tuple[str, str, str]:
    """Return parameters, length of the training, and batch of a part, in words."""
    count = "unknown" if part.network is None else f"{sum(p.numel() for p in part.network.parameters()):,}"
    if (training := part.training) is None:
        return count, "none", ""
    length = f"{training.steps:,} steps" if training.steps else f"{training.minutes:g} minutes"
    batch = f"{training.batch}" if training.accumulate == 1 else f"{training.batch} in {training.accumulate} parts"
    return count, length, batch


def memory(network: nn.Module, training: Training | None) -> int:
    """Return the bytes of weights, moments of the optimiser and averaged weights of a network."""
    weights = size_of((*network.parameters(), *network.buffers()))
    if training is None:
        return weights
    matrices = sum(matrix.numel() for matrix in matrices_of(network, training))  # one moment each, all others two
    learned = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    averages = 0 if training.posthoc is None else 2 * 4 * learned
    return weights * (1 if training.ema is None else 2) + averages + 4 * (2 * learned - matrices)


def _memory(part: Part) -> str:
    if part.network is None:
        return "unknown"
    return in_bytes(memory(part.network, part.training))


def in_bytes(amount: float) -> str:
    """Return a number of bytes in words."""
    return next((f"{amount / unit:.2f} {name}" for name, unit in _UNITS if amount >= unit), f"{amount / 1e6:.1f} MB")
