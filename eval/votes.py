"""Votes of a blinded study: the sealed key, and the import that joins both into one long table."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Choice = Literal["a", "b", "tie"]
Side = Literal["left", "right"]
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
RATER = re.compile(r"\w[\w.@-]{0,63}")  # a name that a spreadsheet does not take for a formula


class VotesError(ValueError):
    """Votes or a key that cannot be used: the message names the file, the value and the remedy."""


@dataclass(frozen=True)
class Item:
    """One pair as shown. `pictures` are in the order of the models; `first_left` says where the first model stood."""

    id: str
    prompt_id: str
    prompt: str
    pictures: tuple[str, str]
    first_left: bool
    repeat_of: str | None


@dataclass(frozen=True)
class Key:
    """The sealed key of a study: what the page must not say."""

    study: str
    models: tuple[str, str]
    criteria: tuple[str, ...]
    items: Mapping[str, Item]

    def to_json(self) -> dict[str, Any]:
        """The content of key.sealed.json."""
        items = {item.id: {**vars(item)} for item in self.items.values()}
        return {"schema": 1, "study": self.study, "models": self.models, "criteria": self.criteria, "items": items}


@dataclass(frozen=True)
class Vote:
    """One answer in terms of models: `choice` a is model_a, whatever side it stood on (`side` is model_a's)."""

    study_id: str
    item_id: str
    prompt_id: str
    rater_id: str
    criterion: str
    model_a: str
    model_b: str
    side: Side
    choice: Choice
    rt_ms: int | None
    is_repeat: bool
    repeat_of: str
    at: str


def read_key(path: Path) -> Key:
    """Read key.sealed.json. Raises VotesError when it is missing or is no key."""
    data = _json(path, "the sealed key")
    try:
        items = {name: Item(**{**item, "pictures": tuple(item["pictures"])}) for name, item in data["items"].items()}
        first, second = data["models"]
        return Key(data["study"], (first, second), tuple(data["criteria"]), items)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VotesError(f"{path} is no sealed key ({error!r}); give the key.sealed.json of the export") from error


def import_votes(files: Iterable[Path], key: Path | Key) -> list[Vote]:
    """One long table from the raters' files.

    Raises VotesError for votes of another study, unknown items, criteria or choices, a nameless rater, and an answer
    given twice, in one file or over several.
    """
    known = key if isinstance(key, Key) else read_key(key)
    votes: list[Vote] = []
    seen: dict[tuple[str, str, str], Path] = {}
    for path in files:
        for vote in _file_votes(path, known):
            mark = (vote.rater_id, vote.item_id, vote.criterion)
            if mark in seen:
                raise VotesError(
                    f"{path}: rater {vote.rater_id!r} answers {vote.criterion!r} of item {vote.item_id} a second time "
                    f"(first in {seen[mark]}); keep one of the two, or give two people two names"
                )
            seen[mark] = path
            votes.append(vote)
    if not votes:
        raise VotesError("the files hold no votes: give at least one votes.json in which a pair was answered")
    return votes


def _file_votes(path: Path, key: Key) -> list[Vote]:
    data = _json(path, "a votes file")
    if not isinstance(data, dict) or data.get("schema") != 1 or not isinstance(data.get("votes"), list):
        raise VotesError(f"{path} is no votes file of a study page; give the votes.json that the page saves")
    if data.get("study") != key.study:
        raise VotesError(
            f"{path} holds votes of study {data.get('study')!r}, the key is of study {key.study!r}; "
            "give the key of the page on which these votes were given"
        )
    rater = data.get("rater")
    if not isinstance(rater, str) or not RATER.fullmatch(rater):
        raise VotesError(f"{path}: rater {rater!r} is no name of 1 to 64 letters, digits, . @ _ -; mend it in the file")
    return [_vote(path, raw, rater, key) for raw in data["votes"]]


def _vote(path: Path, raw: Any, rater: str, key: Key) -> Vote:
    raw = raw if isinstance(raw, dict) else {}
    item = key.items[_known(path, "item", raw.get("item"), key.items)]
    criterion = _known(path, "criterion", raw.get("criterion"), key.criteria)
    chosen = _known(path, "choice", raw.get("choice"), ("left", "right", "tie"))
    time = raw.get("rt_ms")
    return Vote(
        study_id=key.study,
        item_id=item.id,
        prompt_id=item.prompt_id,
        rater_id=rater,
        criterion=criterion,
        model_a=key.models[0],
        model_b=key.models[1],
        side="left" if item.first_left else "right",
        choice=unblind(chosen, item.first_left),
        rt_ms=int(time) if isinstance(time, int | float) and 0 <= time < 1e12 else None,
        is_repeat=item.repeat_of is not None,
        repeat_of=item.repeat_of or "",
        at=_moment(raw.get("at")),
    )


def _moment(value: object) -> str:
    """A time as the page writes it, nothing else: the text goes into a table that people open."""
    return value if isinstance(value, str) and MOMENT.fullmatch(value) else ""


def unblind(chosen: str, first_left: bool) -> Choice:
    """The model that was chosen, from the side that was chosen."""
    if chosen == "tie":
        return "tie"
    return "a" if (chosen == "left") == first_left else "b"


def _known(path: Path, what: str, value: object, allowed: Iterable[str]) -> str:
    names = list(allowed)
    if not isinstance(value, str) or value not in names:
        few = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise VotesError(
            f"{path}: {what} {value!r} is not of this study (it has {few}); ask the rater for the file again"
        )
    return value


def _json(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise VotesError(f"{path} does not exist; give the path of {what}") from error
    except (OSError, ValueError) as error:
        raise VotesError(f"{path} cannot be read as JSON ({error}); give {what} as it was saved") from error
