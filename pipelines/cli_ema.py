"""The verb about averaged weights: `palimpsest ema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from pipelines.cli_sample import Words


def ema(
    run: Annotated[Path, tyro.conf.Positional], stage: Words, length: tuple[float, ...] = (), by: str | None = None
) -> None:
    """Average the weights of a finished stage over another relative length, from its snapshots (training.posthoc).

    Stages that were built on its other weights are refused afterwards until they are made anew.

    Args:
        run: folder of a finished run, such as runs/scenes.
        stage: one that trained with training.posthoc.
        length: widths of the average as shares of the steps, such as 0.15. Of several, the one that validates best is
            kept; none brings back what training left.
        by: the figure of validation that is to be lowest, where several lengths are given.
    """
    from pipelines.averages import change_length
    from pipelines.runs import reopen_run, stage_of

    opened = reopen_run(run)
    stage_of(opened, stage)
    print(change_length(opened, stage, length, by))
