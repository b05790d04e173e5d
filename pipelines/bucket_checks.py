"""What must hold between a stage of a recipe with `data.buckets` and the shapes of its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.data.config import Sets
from pipelines.data.ratios import Shape
from pipelines.judged_config import GenerateStage, SweepStage
from pipelines.stage_config import ClassifierStage, DistillStage, EncodeStage, LatentStage, VAEStage, VQVAEStage
from tokenizer.exchange import vae_config

if TYPE_CHECKING:
    from pipelines.recipe import Recipe


def check_read(recipe: Recipe) -> None:
    """Raise ValueError where a recipe has buckets and no stage that reads pictures in them."""
    if not isinstance(recipe.data, Sets) or recipe.data.buckets is None:
        return
    stages = recipe.stage.values()
    draws = [name for name, one in recipe.stage.items() if isinstance(one, GenerateStage | SweepStage)]
    if draws and Shape(recipe.size, recipe.size) not in recipe.buckets:
        raise ValueError(
            f"data.buckets has no {recipe.size}x{recipe.size}, which stage.{draws[0]} draws and judges: add the "
            "square of data.size to the sizes"
        )
    trained = (isinstance(one, VAEStage | VQVAEStage) and one.training for one in stages)
    if not any(isinstance(one, EncodeStage) for one in stages) and not any(trained):
        raise ValueError(
            "data.buckets is for stages of kind vae and vqvae that train, and of kind encode, and there is none: leave "
            "it out"
        )


def check_buckets(recipe: Recipe, name: str) -> None:
    """Raise ValueError where a stage, which has the forerunners that it needs, cannot read what the buckets make."""
    stage = recipe.stage[name]
    if not recipe.buckets:
        return
    match stage:
        case EncodeStage():
            if codes := recipe.of_kind(name, "vqvae"):
                raise ValueError(
                    f"stage.{name} needs {codes[0]}, but codes are of squares and data.buckets makes other shapes as "
                    f"well: take {codes[0]} out of its needs (stages of kind mdlm and ar then have to leave the "
                    "recipe), or leave data.buckets out"
                )
            _check_sides(recipe, name, 1)
        case LatentStage():
            _check_sides(recipe, name, stage.model.factor)
        case ClassifierStage():
            _check_sides(recipe, name, stage.model.patch)
        case DistillStage(method="reflow"):
            raise ValueError(
                f"stage.{name}.method is 'reflow', whose pairs are squares, but its teacher learns the shapes of "
                "data.buckets: take 'progressive' or 'consistency', or leave data.buckets out"
            )


def _check_sides(recipe: Recipe, name: str, own: int) -> None:
    """Refuse shapes whose latents a stage cannot read; own: what must divide the sides of its latents."""
    vae = recipe.of_kind(name, "vae")[0]
    stage = recipe.stage[vae]
    assert isinstance(stage, VAEStage)
    if stage.pretrained and not Path(stage.pretrained).is_dir():
        return  # a run can be sampled without it
    config = vae_config(Path(stage.pretrained), stage.model) if stage.pretrained else stage.model
    multiple = config.network.factor * own
    what = f"{config.network.factor} of stage.{vae}" + (f" times {own} of its own" if own > 1 else "")
    shapes = [("data.size", Shape(recipe.size, recipe.size)), *(("data.buckets", one) for one in recipe.buckets)]
    for where, shape in shapes:
        if not shape.fits(multiple):
            raise ValueError(
                f"{where} has {shape}, but stage.{name} reads sides that are multiples of {multiple} ({what}): write "
                f"such sizes, or multiple = {multiple} in data.buckets"
            )
