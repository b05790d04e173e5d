"""Recipes from files: one TOML file describes an experiment as a graph of named stages (`pipelines.recipe`).

Every table is a frozen dataclass beside its owner; this module composes them and checks them with pydantic: unknown
keys are refused with the nearest right one.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic_core import ErrorDetails

from pipelines.errors import PalimpsestError, nearest
from pipelines.recipe import Recipe


class RecipeError(PalimpsestError):
    """A recipe that cannot be run as it stands."""


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
    tags = {kind for owner in _configs(Recipe, set()) for kind in _kinds(owner)}
    location = [str(part) for part in detail["loc"][1:]]
    place: list[str] = []
    tagged = False  # whether the part before was the kind of a union: no two of these stand side by side
    for i, part in enumerate(location):
        tagged = not tagged and part in tags and i > 0 and location[i - 1] != "stage"
        place += [] if tagged else [part]
    where = ".".join(place)
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {where}{nearest(location[-1], sorted(_field_names()))}"
    if detail["type"] == "union_tag_not_found":
        return f'{where}: add kind = "..."; a wrong one lists all that there are'
    value = "" if isinstance(detail["input"], dict) else f" (given {detail['input']!r})"
    return f"{where or 'recipe'}: {detail['msg'].removeprefix('Value error, ')}{value}"


def _kinds(config: type) -> tuple[str, ...]:
    """Return the values of a configuration's `kind`."""
    return typing.get_args(typing.get_type_hints(config).get("kind"))


def _field_names() -> set[str]:
    """Return the names of all keys that a recipe can hold."""
    return {field.name for config in _configs(Recipe, set()) for field in dataclasses.fields(config)}


def _configs(kind: Any, seen: set[Any]) -> set[type[Any]]:
    """Return all dataclasses that a type is made of, itself included."""
    if not isinstance(kind, collections.abc.Hashable) or kind in seen:
        return set()
    seen.add(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {kind}.union(*(_configs(hint, seen) for hint in hints.values()))  # type: ignore[arg-type]
    if typing.get_origin(kind) in (typing.Union, types.UnionType, dict, tuple, Annotated):
        return set().union(*(_configs(part, seen) for part in typing.get_args(kind)))
    return set()
