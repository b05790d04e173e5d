"""Which stages can be sharded (`training.shard`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.recipe import Recipe

SHARDED = ("latent", "upscale", "mdlm", "ar", "text_model")  # kinds of one network, made of blocks, and nothing beside


def check_shard(recipe: Recipe, name: str) -> None:
    """Raise ValueError where a stage that is not sharded is to be: what it trains with, or by, lies whole anywhere."""
    stage = recipe.stage[name]
    wanted = getattr(getattr(stage, "training", None), "shard", None)
    if wanted is not None and stage.kind not in SHARDED:
        raise ValueError(
            f"stage.{name}.training.shard is {wanted!r}, but stages of kind {stage.kind!r} are not sharded, only "
            f"{', '.join(SHARDED)}: leave it out"
        )
