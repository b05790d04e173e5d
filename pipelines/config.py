"""Recipes: one TOML file describes an experiment as a graph of named stages.

Every table is a frozen dataclass beside its owner; this module composes them, checks them with pydantic (unknown keys
are refused with the nearest right one) and answers questions about the graph.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic_core import ErrorDetails

from pipelines.errors import PalimpsestError
from pipelines.stage_config import (
    FORERUNNERS,
    LATENT_SAMPLERS,
    MASKED_SAMPLERS,
    AnyStage,
    GenerateStage,
    ScenesData,
    ShardData,
)

RESERVED = ("cache", "data")  # folders of a run that are no stage


class RecipeError(PalimpsestError):
    """A recipe that cannot be run as it stands."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment."""

    name: str
    seed: int = 0
    data: Annotated[ScenesData | ShardData, Field(discriminator="kind")]
    stage: dict[str, Annotated[AnyStage, Field(discriminator="kind")]]

    def __post_init__(self) -> None:
        """Check the graph: every need exists, nothing turns back, no forerunner is missing."""
        for name, stage in self.stage.items():
            for need in stage.needs:
                if need not in self.stage:
                    raise ValueError(
                        f"stage.{name} needs {need!r}, which is no stage of the recipe{nearest(need, self.stage)}"
                    )
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in RESERVED:
                raise ValueError(
                    f"stage name {name!r}: use letters, digits, - and _, and none of {', '.join(RESERVED)}"
                )
            if isinstance(stage, GenerateStage):
                self._check_sampler(name, stage)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ValueError(f"recipe name {self.name!r}: use letters, digits, - and _; it names a folder")
        self.order()
        for name, stage in self.stage.items():
            for kind in FORERUNNERS.get(stage.kind, ()):
                if not self.of_kind(name, kind):
                    raise ValueError(
                        f"stage.{name} ({stage.kind}) needs a stage of kind {kind!r}: add its name to `needs`"
                    )

    def _check_sampler(self, name: str, stage: GenerateStage) -> None:
        """Refuse a generate stage without a model, or with a sampler of the other kind of model."""
        kinds = {self.stage[need].kind for need in stage.needs if need in self.stage}
        fitting = MASKED_SAMPLERS if "mdlm" in kinds else LATENT_SAMPLERS
        if not kinds & {"latent", "mdlm"}:
            raise ValueError(f"stage.{name} draws with a model: name a stage of kind latent or mdlm in its `needs`")
        if stage.sampler not in fitting:
            known = ", ".join(fitting)
            raise ValueError(
                f"stage.{name}.sampler is {stage.sampler!r}, which its model cannot use; it can use {known}"
            )

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


def nearest(word: str, known: Iterator[str] | Mapping[str, Any] | Sequence[str]) -> str:
    """Return '; did you mean X?' for the closest of the known words, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


Config = TypeVar("Config")


def checked(kind: type[Config], plain: Any) -> Config:
    """Build a configuration from plain values; unknown keys are refused at every level. Raises ValidationError."""
    model = create_model("Checked", __config__=ConfigDict(extra="forbid"), value=(kind, ...))
    return model.model_validate({"value": plain}).value  # type: ignore[attr-defined]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as `stage.vae.training.minutes=5` (values as in TOML).

    Raises RecipeError with the place, the value and what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text)["recipe"] if path.suffix == ".json" else tomllib.loads(text)  # .json: that of a run
    except FileNotFoundError as error:
        raise RecipeError(f"There is no recipe at {path}. The built-in ones are in recipes/.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise RecipeError(f"{path} is no recipe.json of a run ({error!r}): give a .toml recipe instead") from error
    raw.setdefault("name", path.stem)
    for override in overrides:
        _apply(raw, override)
    return parse_recipe(raw, str(path))


def parse_recipe(raw: Any, origin: str) -> Recipe:
    """Check plain values against the recipe's types."""
    try:
        return checked(Recipe, raw)
    except ValidationError as error:
        problems = [_explain(detail) for detail in error.errors()]
        raise RecipeError(f"{origin} cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems)) from error


def read_config(kind: type[Config], plain: dict[str, Any], origin: str) -> Config:
    """Return a configuration dataclass from the plain values that a manifest carries."""
    try:
        return checked(kind, plain)
    except ValidationError as error:
        problems = "; ".join(_explain(detail) for detail in error.errors())
        raise RecipeError(f"{origin} was made by another version: {problems}. Train the stage again.") from error


def dump_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe as plain JSON values."""
    return TypeAdapter(Recipe).dump_python(recipe, mode="json")


def _apply(raw: dict[str, Any], override: str) -> None:
    """Write one `dotted.key=value` into a raw recipe."""
    key, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override} lacks a value: write --set stage.vae.training.minutes=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *path, last = key.strip().split(".")
    table = raw
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {override}: {part!r} holds a value, not a table")
    table[last] = value
    table.pop({"steps": "minutes", "minutes": "steps"}.get(last, ""), None)  # one replaces the other


def _explain(detail: ErrorDetails) -> str:
    """Put one validation error into words."""
    tags = {
        "scenes",
        "shards",
        "flow",
        "vp",
        "cosine",
        "linear",
        *(k for s in typing.get_args(AnyStage) for k in _kinds(s)),
    }
    location = [str(part) for part in detail["loc"][1:]]
    place = [part for i, part in enumerate(location) if not (part in tags and i > 0 and location[i - 1] != "stage")]
    where = ".".join(place)
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {where}{nearest(location[-1], sorted(_field_names(Recipe, set())))}"
    value = "" if isinstance(detail["input"], dict) else f" (given {detail['input']!r})"
    return f"{where or 'recipe'}: {detail['msg'].removeprefix('Value error, ')}{value}"


def _kinds(stage: type) -> tuple[str, ...]:
    return typing.get_args(typing.get_type_hints(stage)["kind"])


def _field_names(kind: Any, seen: set[Any]) -> set[str]:
    """Return the names of all fields of a dataclass and of those inside it."""
    if kind in seen:
        return set()
    seen.add(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return set(hints).union(*(_field_names(hint, seen) for hint in hints.values()))
    if typing.get_origin(kind) in (typing.Union, types.UnionType, dict, tuple, Annotated):
        return set().union(*(_field_names(part, seen) for part in typing.get_args(kind)))
    return set()
