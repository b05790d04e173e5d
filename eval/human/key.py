"""The sealed key of a study: what raters must not see, and what turns their answers into votes on models."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.human.errors import VotesError
from eval.human.gold import GOLD, GOLD_OTHER
from eval.human.layout import Block
from eval.human.pictures import secret_name
from eval.human.study import Mode, Study, prompt_id

SCHEMA = 2


@dataclass(frozen=True)
class Item:
    """One item as shown. first, second: models, or what a control shows; first_left: where the first stood.

    repeat_of: the item of which this is the repeat, or "".
    """

    id: str
    block: int
    prompt_id: str
    first: str
    second: str
    first_left: bool
    kind: str
    repeat_of: str


@dataclass(frozen=True)
class Key:
    """The key of one study. secret: makes names and hides raters; page: the fingerprint of the page's script."""

    study: str
    secret: str
    mode: Mode
    models: tuple[str, ...]
    criteria: tuple[str, ...]
    choices: tuple[str, ...]
    tags: tuple[str, ...]
    page: str
    items: Mapping[str, Item]

    def to_json(self) -> dict[str, Any]:
        """The content of key.sealed.json."""
        return {"schema": SCHEMA, **vars(self), "items": {name: vars(item) for name, item in self.items.items()}}


def make_key(study: Study, identity: str, secret: str, page: str, items: Sequence[Item]) -> Key:
    """The key of a study with these items, in the order shown."""
    return Key(
        study=identity,
        secret=secret,
        mode=study.mode,
        models=study.models,
        criteria=study.criteria,
        choices=study.choices,
        tags=study.tags,
        page=page,
        items={item.id: item for item in items},
    )


def item_of(study: Study, secret: str, block: Block, at: int, prompt: str) -> Item:
    """The row of the key for a place of a block. prompt: the prompt's words."""
    place = block.places[at]
    models = study.models
    first = models[place.unit.first] if place.gold is None else f"{GOLD}{place.gold}"
    second = "" if place.unit.second is None else models[place.unit.second]
    if place.gold is not None:
        second = GOLD_OTHER.get(place.gold, "")
    again = "" if place.of is None else _item_name(secret, block, place.of)
    name = _item_name(secret, block, at)
    return Item(name, block.number, prompt_id(prompt), first, second, place.first_left, place.kind, again)


def _item_name(secret: str, block: Block, at: int) -> str:
    return secret_name(secret, "item", block.number, at)[:12]


def read_key(path: Path) -> Key:
    """Read key.sealed.json. Raises VotesError when it is missing or is no key."""
    data = read_json(path, "the sealed key")
    try:
        if data["schema"] != SCHEMA:
            raise VotesError(f"{path} has schema {data['schema']}, expected {SCHEMA}: export the study again")
        lists = {name: tuple(data[name]) for name in ("models", "criteria", "choices", "tags")}
        items = {name: Item(**item) for name, item in data["items"].items()}
        return Key(data["study"], data["secret"], data["mode"], page=data["page"], items=items, **lists)
    except (KeyError, TypeError, AttributeError) as error:
        raise VotesError(f"{path} is no sealed key ({error!r}); give the key.sealed.json of the export") from error


def read_json(path: Path, what: str) -> Any:
    """Read JSON. Raises VotesError that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise VotesError(f"{path} does not exist; give the path of {what}") from error
    except (OSError, ValueError) as error:
        raise VotesError(f"{path} cannot be read as JSON ({error}); give {what} as it was saved") from error
