"""How each kind of model is usually sampled: what recipes and commands leave open.

Figures behind the choice for latent models: docs/diffusion.md, "Which sampler".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from pipelines.sampling_options import AUTOREGRESSIVE
from pipelines.stage_config import AnyStage, ArStage, DistillStage, LatentStage, MdlmStage, UpscaleStage


@dataclass(frozen=True, kw_only=True)
class Usual:
    """The part of sampling that depends on the kind of model."""

    sampler: str
    steps: int
    guidance: float
    temperature: float = 1.0


def usual(stage: AnyStage) -> Usual:
    """Return how a model is usually sampled, if it has an unconditional branch. Raises ValueError for other stages."""
    match stage:
        case DistillStage():
            return usual_of_student(stage, stage.steps if stage.method != "consistency" else 2)
        case UpscaleStage():
            return Usual(sampler="dpmpp_2m", steps=8, guidance=1.5)
        case LatentStage():
            return Usual(sampler="ancestral_large", steps=12, guidance=3.0)
        case MdlmStage():
            return Usual(sampler="masked_ancestral", steps=12, guidance=2.5, temperature=0.7)
        case ArStage():  # each code is a step, however many are asked for
            return Usual(sampler=AUTOREGRESSIVE, steps=1, guidance=2.0)
        case _:
            raise ValueError(f"a stage of kind {stage.kind!r} draws no pictures")


def usual_of_student(student: DistillStage, steps: int) -> Usual:
    """Return how a student takes a number of steps; its guidance is inside it."""
    match student.method:
        case "progressive":
            return Usual(sampler="ddim", steps=steps, guidance=1.0)
        case "reflow":
            return Usual(sampler="euler", steps=steps, guidance=1.0)
        case "consistency":
            return Usual(sampler="consistency", steps=steps, guidance=1.0)
        case _:
            assert_never(student.method)
