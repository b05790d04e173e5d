"""Recipes from files: one TOML file describes an experiment as a graph of named stages (`pipelines.recipe`).

Every table is a frozen dataclass beside its owner; this module composes them and checks them with pydantic: unknown
keys are refused with the nearest right one.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import json
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeGuard, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic_core import ErrorDetails

from pipelines.errors import PalimpsestError, nearest
from pipelines.recipe import Recipe


class RecipeError(PalimpsestError):
    """A recipe that cannot be run as it stands."""


Config = TypeVar("Config")
Place = tuple[str, ...]  # keys from the outermost table to a value


def checked(kind: type[Config], plain: Any, root: type[Any] = Recipe) -> Config:
    """Build a configuration from plain values; unknown keys are refused at every level.

    In a union of tables with a `kind`, that alone says which of them a table is held to. Without one it is that of the
    field's default, unless the union is marked with pydantic's discriminator, which asks for it. root: what the whole
    file is, from whose keys a misspelt one is guessed. Raises _Refused.
    """
    reading = _Reading(root)
    value = reading.build(kind, plain, ()) if _is_config(kind) else reading.prepare(kind, plain, ())
    if reading.problems:
        raise _Refused(reading.problems)
    return value


class _Refused(Exception):
    """Values that make no configuration, each said in a sentence."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _Reading:
    """One way through plain values along their types, and what is wrong on it."""

    def __init__(self, root: type[Any]) -> None:
        self.root = root
        self.problems: list[str] = []
        self.failed: list[Place] = []  # tables of unions with a problem, which is said where it lies and not again

    def build(self, kind: type[Any], plain: Any, place: Place) -> Any:
        """Return a configuration of one kind; where it cannot be, note why and return the values as they were."""
        inner = self.prepare(kind, plain, place)
        try:
            return _model(kind).model_validate({"value": inner}).value  # type: ignore[attr-defined]
        except ValidationError as error:
            for detail in error.errors():
                at = (*place, *(str(part) for part in detail["loc"][1:]))
                if not any(at[: len(other)] == other for other in self.failed):
                    held = inner.get("kind") if at[:-1] == place and isinstance(inner, dict) else None
                    self.problems.append(_explain(detail, at, held, self.root))
        return plain

    def prepare(self, kind: Any, plain: Any, place: Place, usual: Any = None) -> Any:
        """Return values in which each table of a union is a configuration; usual: the default of the field."""
        asked = typing.get_origin(kind) is Annotated
        kind = typing.get_args(kind)[0] if asked else kind
        origin, parts = typing.get_origin(kind), typing.get_args(kind)
        if _is_config(kind) and isinstance(plain, dict):
            hints, usuals = typing.get_type_hints(kind, include_extras=True), _defaults(kind)
            return {
                key: self.prepare(hints.get(key), value, (*place, key), usuals.get(key)) for key, value in plain.items()
            }
        if origin is dict and isinstance(plain, dict):
            return {key: self.prepare(parts[1], value, (*place, key)) for key, value in plain.items()}
        if (origin is list or (origin is tuple and parts[1:] == (...,))) and isinstance(plain, list | tuple):
            return [self.prepare(parts[0], value, (*place, str(i))) for i, value in enumerate(plain)]
        if origin in (typing.Union, types.UnionType):
            real = [part for part in parts if part is not types.NoneType]
            tagged = {name: part for part in real for name in (_kinds(part) if _is_config(part) else ())}
            if len(real) == 1:
                return self.prepare(real[0], plain, place)
            if set(real) == set(tagged.values()) and not (plain is None and types.NoneType in parts):
                return self._choose(tagged, plain, place, None if asked else getattr(usual, "kind", None))
        return plain

    def _choose(self, tagged: dict[str, Any], plain: Any, place: Place, usual: str | None) -> Any:
        """Build the member of a union that the table's `kind`, or the usual one, names."""
        where, known, before = ".".join(place) or "recipe", ", ".join(tagged), len(self.problems)
        kind = plain.get("kind", usual) if isinstance(plain, dict) else None
        if not isinstance(plain, dict):
            self.problems.append(f"{where}: expected a table with a kind, of {known} (given {plain!r})")
        elif kind is None:
            self.problems.append(f'{where}: add kind = "...", one of {known}')
        elif not isinstance(kind, str) or kind not in tagged:
            hint = nearest(str(kind), tagged) or "."
            self.problems.append(f"{where}.kind is {kind!r}{hint} There are {known}")
        else:
            plain = self.build(tagged[kind], {**plain, "kind": kind}, place)
        if len(self.problems) > before:
            self.failed.append(place)
        return plain


@functools.cache
def _model(kind: type[Any]) -> type[BaseModel]:
    """Return what validates a configuration."""
    return create_model("Checked", __config__=ConfigDict(extra="forbid"), value=(kind, ...))


def _defaults(config: Any) -> dict[str, Any]:
    """Return the default of each field of a configuration, where it has one."""
    none = dataclasses.MISSING
    return {
        field.name: field.default if field.default_factory is none else field.default_factory()
        for field in dataclasses.fields(config)
    }


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
    return parse(Recipe, raw, origin)


def parse(kind: type[Config], raw: Any, origin: str) -> Config:
    """Check the plain values of a whole file against the types of what it describes."""
    try:
        return checked(kind, raw, kind)
    except _Refused as error:
        raise RecipeError(f"{origin} cannot be used:\n" + "\n".join(f"  {one}" for one in error.problems)) from error


def read_config(kind: type[Config], plain: dict[str, Any], origin: str) -> Config:
    """Return a configuration dataclass from the plain values that a manifest carries."""
    try:
        return checked(kind, plain)
    except _Refused as error:
        problems = str(error).removesuffix(".")
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
        table = _entry(table, part) if isinstance(table, list) else table.setdefault(part, {})
        if not isinstance(table, dict | list):
            raise RecipeError(f"--set {override}: {part!r} holds a value, not a table")
    if not isinstance(table, dict):
        raise RecipeError(f"--set {override}: {path[-1]!r} is a list of tables: name one by its place, such as 0")
    table[last] = value
    table.pop({"steps": "minutes", "minutes": "steps"}.get(last, ""), None)  # one replaces the other


def _entry(tables: list[Any], place: str) -> Any:
    """Return one of a list of tables by its place; nothing that could be written to where there is none."""
    return tables[int(place)] if place.isdecimal() and int(place) < len(tables) else None


def _explain(detail: ErrorDetails, place: Place, kind: str | None, root: type[Any]) -> str:
    """Put one validation error into words; kind: that of the table around it, where it has one."""
    where = ".".join(place)
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        names = _field_names(root)
        hint = "" if place[-1] in names else nearest(place[-1], sorted(names))  # it belongs to another table
        return f"unknown key {where}{f' in a table of kind {kind!r}' if kind else ''}{hint}"
    value = "" if isinstance(detail["input"], dict) else f" (given {detail['input']!r})"
    return f"{where or root.__name__.lower()}: {detail['msg'].removeprefix('Value error, ')}{value}"


def _is_config(kind: Any) -> TypeGuard[type[Any]]:
    """Whether a type is that of a configuration."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _kinds(config: type) -> tuple[str, ...]:
    """Return the values of a configuration's `kind`."""
    return typing.get_args(typing.get_type_hints(config).get("kind"))


def _field_names(root: type[Any]) -> set[str]:
    """Return the names of all keys that a file can hold."""
    return {field.name for config in _configs(root, set()) for field in dataclasses.fields(config)}


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
