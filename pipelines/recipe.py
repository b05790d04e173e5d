"""A recipe: named stages that stand on one another, and what can be asked of that graph."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from pipelines.bucket_checks import check_buckets, check_read
from pipelines.data.config import MoreShards, ScenesData, Sets, ShardData
from pipelines.data.grammar import for_size
from pipelines.data.ratios import Shape
from pipelines.errors import nearest
from pipelines.judged_config import GenerateStage, MaskedSweepStage, SweepStage
from pipelines.recipe_checks import check_fit, check_needs, check_sets
from pipelines.sampling_options import Settings
from pipelines.shard_checks import check_shard
from pipelines.stage_config import (
    PICTURE_MODELS,
    AnyStage,
    ArStage,
    ClassifierStage,
    DistillStage,
    LatentStage,
    UpscaleStage,
)
from pipelines.text.config import TextData
from pipelines.usual import Usual, usual

RESERVED = ("cache", "data")  # folders of a run that are no stage
NAME = r"[A-Za-z0-9_-]+"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment."""

    name: str
    seed: int = 0
    data: Annotated[ScenesData | ShardData | TextData, Field(discriminator="kind")]
    stage: dict[str, Annotated[AnyStage, Field(discriminator="kind")]]

    def __post_init__(self) -> None:
        """Check the names, the graph, and every stage against those that it stands on."""
        if not re.fullmatch(NAME, self.name):
            raise ValueError(f"recipe name {self.name!r}: use letters, digits, - and _; it names a folder")
        for name, stage in self.stage.items():
            if not re.fullmatch(NAME, name) or name in RESERVED:
                raise ValueError(
                    f"stage name {name!r}: use letters, digits, - and _, and none of {', '.join(RESERVED)}"
                )
            for need in stage.needs:
                if need not in self.stage:
                    raise ValueError(
                        f"stage.{name} needs {need!r}, which is no stage of the recipe{nearest(need, self.stage)}"
                    )
        self.order()
        for name, stage in self.stage.items():
            if isinstance(stage, GenerateStage):
                self.stage[name] = self._filled(name, stage)
        check_sets(self)
        check_read(self)
        for check in (check_needs, check_fit, check_shard, check_buckets):
            for name in self.stage:
                check(self, name)

    @property
    def size(self) -> int:
        """The side of the pictures that the stages read. Raises ValueError where the data is text alone."""
        if isinstance(self.data, TextData):
            raise ValueError(f"recipe {self.name} is about text alone: its data has no pictures")
        return self.data.size

    @property
    def block(self) -> int:
        """The shards that are shuffled together; texts are shuffled as one."""
        return 1 if isinstance(self.data, TextData) else self.data.block

    @property
    def workers(self) -> int:
        """The processes that read ahead for a training; texts alone lie in memory."""
        return 0 if isinstance(self.data, TextData) else self.data.workers

    @property
    def grammatical(self) -> bool:
        """Whether all pictures are scenes of the grammar that belongs to their size."""
        sets = (self.data, *self.data.pictures) if isinstance(self.data, ScenesData) else ()
        return bool(sets) and all(
            not isinstance(one, MoreShards) and for_size(one.size) == for_size(self.size) for one in sets
        )

    @property
    def buckets(self) -> tuple[Shape, ...]:
        """The shapes in which autoencoders and caches read pictures; none where they read squares."""
        found = self.data.buckets if isinstance(self.data, Sets) else None
        return () if found is None else found.shapes

    @property
    def largest(self) -> Shape:
        """The shape of most pixels that an autoencoder or a cache reads."""
        return max(self.buckets or (Shape(self.size, self.size),), key=lambda shape: shape.height * shape.width)

    @property
    def smallest(self) -> Shape:
        """The shape of fewest pixels that an autoencoder reads."""
        return min(self.buckets or (Shape(self.size, self.size),), key=lambda shape: shape.height * shape.width)

    def shares(self) -> dict[str, str]:
        """Return what is drawn of each set for each picture, as fractions; nothing where there is one set."""
        shares = self.data.shares() if isinstance(self.data, Sets) else {}
        return {name: str(share) for name, share in shares.items()}

    def misfit(self, guide: str, kind: str, model: str) -> str:
        """Return why the stage `guide` cannot guide `model` in the part of `kind`, or nothing where it can."""
        found = self.stage[guide]
        if found.kind != kind or not isinstance(found, LatentStage | ClassifierStage):
            return f"{guide} is of kind {found.kind!r}, expected {kind!r}"
        path = self.origin(model).schedule
        if found.schedule != path:
            return f"{guide} knows the path {found.schedule}, but {model} is on {path}: give both the same schedule"
        caches = [self.of_kind(name, "encode")[0] for name in (guide, model)]
        if caches[0] != caches[1]:
            return f"{guide} reads the latents of {caches[0]}, but {model} those of {caches[1]}: take one for both"
        return ""

    def base(self, name: str) -> str:
        """Return the model that stage `name` draws with, or enlarges the pictures of: the first one in its needs.

        Raises ValueError where there is none.
        """
        found = [need for need in self.stage[name].needs if self.stage[need].kind in PICTURE_MODELS]
        if not found:
            known = " or ".join(PICTURE_MODELS)
            raise ValueError(f"stage.{name} needs a model that draws: name a stage of kind {known} in its `needs`")
        return found[0]

    def branches(self, model: str) -> bool:
        """Return whether a model can be guided away from its unconditional branch."""
        stage = self.stage[model]
        if isinstance(stage, LatentStage | UpscaleStage | ArStage):
            return stage.caption_dropout > 0
        return not isinstance(stage, DistillStage)  # a student has its guidance inside

    def usual(self, model: str) -> Usual:
        """Return how a model is sampled where nothing is said."""
        found = usual(self.stage[model])
        return found if self.branches(model) else dataclasses.replace(found, guidance=1.0)

    def settings_for(self, model: str) -> Settings:
        """Return how `model` is sampled: as the first stage that generates with it says, or as is usual."""
        for name, stage in self.stage.items():
            if isinstance(stage, GenerateStage) and self.base(name) == model:
                return stage.settings()
        return Settings(**dataclasses.asdict(self.usual(model)))

    def settings_below(self, model: str) -> dict[str, Settings]:
        """Return the settings of the models below `model` in a cascade, the nearest first."""
        if not isinstance(self.stage[model], UpscaleStage):
            return {}
        base = self.base(model)
        return {base: self.settings_for(base), **self.settings_below(base)}

    def _filled(self, name: str, stage: GenerateStage) -> GenerateStage:
        """Return a generate stage with what it leaves open as its model usually has it."""
        model = self.base(name)
        others = stage.latent.weak or stage.latent.negative  # guide in place of an unconditional branch
        found = dataclasses.asdict(usual(self.stage[model]) if others else self.usual(model))
        return dataclasses.replace(stage, **{key: value for key, value in found.items() if getattr(stage, key) is None})

    def teacher(self, name: str) -> str:
        """Return the stage that the student `name` learns from: the first model in its needs.

        Raises ValueError where there is none.
        """
        found = [need for need in self.stage[name].needs if self.stage[need].kind in ("latent", "distill")]
        if not found:
            raise ValueError(f"stage.{name} learns from a model: name a stage of kind latent or distill in its `needs`")
        return found[0]

    def origin(self, name: str) -> LatentStage:
        """Return the latent stage that `name` is, or that the teachers of the student `name` go back to.

        Raises ValueError for a stage of another kind.
        """
        stage = self.stage[name]
        if isinstance(stage, DistillStage):
            return self.origin(self.teacher(name))
        if not isinstance(stage, LatentStage):
            raise ValueError(f"stage {name!r} is of kind {stage.kind!r}, expected latent or distill")
        return stage

    def swept(self, stage: SweepStage) -> list[str]:
        """Return the latent models that a sweep is about."""
        return [need for need in stage.needs if self.stage[need].kind == "latent" and need != stage.weak]

    def swept_codes(self, stage: MaskedSweepStage) -> list[str]:
        """Return the models of codes that a sweep is about."""
        return [need for need in stage.needs if self.stage[need].kind in ("mdlm", "ar")]

    def tracks(self, model: str) -> bool:
        """Return whether averages of other lengths can be made of a model, from snapshots of its training."""
        training = getattr(self.stage[model], "training", None)
        return training is not None and training.posthoc is not None

    def size_of(self, model: str) -> int:
        """Return the side of the pictures that a stage draws."""
        stage = self.stage[model]
        return stage.size if isinstance(stage, UpscaleStage) else self.size

    def order(self) -> list[str]:
        """Return the stage names so that every stage stands behind its needs. Raises ValueError on a circle."""
        done: list[str] = []
        while len(done) < len(self.stage):
            ready = [n for n, s in self.stage.items() if n not in done and all(need in done for need in s.needs)]
            if not ready:
                circle = ", ".join(name for name in self.stage if name not in done)
                raise ValueError(f"the stages {circle} need each other in a circle: take one of their `needs` away")
            done += ready
        return done

    def forerunners(self, name: str) -> list[str]:
        """Return all stages that `name` stands on, directly or not, the nearest first."""
        found: list[str] = []
        waiting = list(self.stage[name].needs)
        while waiting:
            need = waiting.pop(0)
            if need not in found:
                found.append(need)
                waiting += self.stage[need].needs
        return found

    def of_kind(self, name: str, kind: str) -> list[str]:
        """Return the forerunners of `name` that are of `kind`, the nearest first."""
        return [need for need in self.forerunners(name) if self.stage[need].kind == kind]
