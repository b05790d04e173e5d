"""The rows of a sweep about what training left: averages of other lengths, and weights of earlier steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from pipelines.judged_config import LENGTHS, MaskedSweepStage, SweepStage
from pipelines.kept_weights import Weights, has_snapshots, over_training
from pipelines.runs import Run
from pipelines.sampling_options import Settings
from pipelines.sweep_judged import STEPS, USUAL
from pipelines.sweep_rows import Setting

LENGTH = "ema"  # the group of averages of other lengths
IN_USE = "weights in use"


def settings_of_training(run: Run, stage: SweepStage | MaskedSweepStage, model: str) -> Iterator[Setting]:
    """Yield the rows of a model as it is usually sampled: of many pictures, over averages, and over its training."""
    recipe, folder = run.recipe, run.stage_folder(model)
    usual = Settings(**dataclasses.asdict(recipe.usual(model)))
    if stage.line:
        yield Setting(USUAL, model, "as it is usually sampled", usual)
    lengths = stage.ema_lengths
    if lengths is None:
        lengths = LENGTHS if has_snapshots(folder) else ()
    if lengths and recipe.tracks(model):
        yield Setting(LENGTH, model, IN_USE, usual)
        yield from (Setting(LENGTH, model, "averages", usual, weights=Weights(length)) for length in sorted(lengths))
    for weights in over_training(folder, stage.checkpoints):
        yield Setting(STEPS, model, "over the training", usual, weights=weights)
