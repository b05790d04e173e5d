"""Other weights of a trained stage than those that it is used with: other averages, and those of earlier steps.

They come from what training leaves: snapshots (`training.posthoc`), else checkpoints that stay (`training.keep_every`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from pipelines.artefact import ArtefactError
from pipelines.checkpoints import fault_of, kept_for_good, load
from pipelines.posthoc import INDEX, SNAPSHOTS, read_index, steps_of, synthesise
from pipelines.training_files import Cut


class Weights(NamedTuple):
    """Which weights of a stage; without either, those that it is used with.

    length: relative length of the average, from snapshots; step: at which training would have ended.
    """

    length: float | None = None
    step: int | None = None


USED = Weights()


def has_snapshots(folder: Path) -> bool:
    """Whether averages of any length can be made of a stage."""
    return (folder / SNAPSHOTS / INDEX).exists()


def over_training(folder: Path, most: int) -> list[Weights]:
    """Return the weights of at most so many steps, evenly spread over those that were kept, the last one included.

    Of snapshots they are averages of the longer tracked length, which each step has exactly.
    """
    if most < 1:
        return []
    if has_snapshots(folder):
        index = _index(folder)
        return [Weights(max(index["lengths"]), step) for step in _spread(steps_of(index), most)]
    return [Weights(None, step) for step in _spread(list(kept_for_good(folder)), most)]


def put(network: nn.Module, folder: Path, weights: Weights) -> float:
    """Put weights of a stage into its network; returns how far an average is from its length (a share, 0 is exact).

    Raises ArtefactError where they are not there, or damaged.
    """
    if weights.length is not None:
        state, error = synthesise(folder, _index(folder), weights.length, weights.step)
    else:
        state, error = _of_checkpoint(folder, weights.step), 0.0
    network.load_state_dict(state)
    return error


def _index(folder: Path) -> dict[str, Any]:
    """The index of the snapshots of a stage, whose files are hashed once while it stays as it is."""
    path = folder / SNAPSHOTS / INDEX
    return _read(folder, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=8)
def _read(folder: Path, changed: int) -> dict[str, Any]:
    del changed
    return read_index(folder)


def _of_checkpoint(folder: Path, step: int | None) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, else the plain ones."""
    path = kept_for_good(folder).get(step or 0)
    fault = "no checkpoint of it is kept" if path is None else fault_of(path)
    if path is None or fault:
        raise ArtefactError(f"The weights of step {step} cannot be had from {folder}: {fault}. Train the stage anew.")
    tensors: dict[str, Any] = load(path).tensors
    state = tensors["average"] or tensors["network"]
    return {name: value[:] if isinstance(value, Cut) else value for name, value in state.items()}


def _spread(steps: Sequence[int], most: int) -> list[int]:
    places = np.linspace(len(steps) - 1, 0, min(most, len(steps))).round().astype(int)
    return sorted(steps[place] for place in places)
