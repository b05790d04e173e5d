"""What was asked for: captions of a folder of pictures, from a list or from files beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.human.errors import named as few
from pipelines.data.sources import inside, rows_of
from pipelines.errors import DataError

Captions = Mapping[str, str]  # name of a picture -> caption


def captions_of(folder: Path, names: Sequence[str], prompts: Path | None) -> Captions | None:
    """Captions of pictures by name; None where nobody says any.

    prompts, or else a single .jsonl or .csv in the folder: rows of file and caption. Without a list, of each picture
    KEY.txt, KEY.json with a "prompt", or the layout of GenEval (NUMBER/samples/*.png beside NUMBER/metadata.jsonl).
    Raises DataError that names pictures without a caption, captions without a picture, and rows that come twice.
    """
    if prompts is not None:
        if not prompts.is_file():
            raise DataError(f"There is no list of captions at {prompts}: expected a .csv or .jsonl.")
        return _of_list(prompts, names)
    lists = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".csv", ".jsonl"))
    if len(lists) > 1:
        raise DataError(f"{folder} has several lists ({few([path.name for path in lists])}): say which with --prompts.")
    if lists:
        return _of_list(lists[0], names)
    written = {name: words for name in names if (words := _beside_as_text(folder, name))}
    told = {name: _beside_as_json(folder, name) or _of_geneval(folder, name) for name in names if name not in written}
    found = {**written, **{name: words for name, words in told.items() if words}}
    if not found:
        return None
    _all_there(names, found, str(folder))
    stems = {Path(name).with_suffix(".txt").as_posix() for name in names}
    texts = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.txt")) if written else []
    if lost := [name for name in texts if name not in stems]:
        raise DataError(
            f"{len(lost)} captions of {folder} have no picture: {few(lost)}. Make them, or take the captions away."
        )
    return found


def _of_list(path: Path, names: Sequence[str]) -> Captions:
    found: dict[str, str] = {}
    for number, name, words in rows_of(path):
        if not name or not words.strip():
            raise DataError(f"{path}, line {number}: {'no caption' if name else 'no file'}. Each row needs both.")
        name = Path(name).as_posix()
        if name in found:
            raise DataError(f"{path}, line {number}: {name} comes a second time. A picture has one caption.")
        found[name] = " ".join(words.split())
    if missing := sorted(found.keys() - set(names)):
        raise DataError(
            f"{len(missing)} of {len(found)} pictures that {path} names are missing: {few(missing)}. Make them: a "
            "figure over the rest would hide what failed."
        )
    _all_there(names, found, str(path))
    return found


def _all_there(names: Sequence[str], found: Captions, where: str) -> None:
    if extra := [name for name in names if name not in found]:
        raise DataError(
            f"{len(extra)} of {len(names)} pictures have no caption in {where}: {few(extra)}. Add their captions, or "
            "take them out."
        )


def _beside_as_text(folder: Path, name: str) -> str:
    return _words(folder, Path(name).with_suffix(".txt").as_posix(), lambda text: text)


def _beside_as_json(folder: Path, name: str) -> str:
    return _words(folder, Path(name).with_suffix(".json").as_posix(), _prompt)


def _of_geneval(folder: Path, name: str) -> str:
    parent = Path(name).parent
    return _words(folder, (parent.parent / "metadata.jsonl").as_posix(), _prompt) if parent.name == "samples" else ""


def _words(folder: Path, name: str, read: Callable[[str], str]) -> str:
    path = inside(folder, name)
    if path is None or not path.is_file():
        return ""
    try:
        return " ".join(read(path.read_text(encoding="utf-8-sig")).split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no UTF-8 text ({error}): write it again.") from error


def about(folder: Path, name: str) -> Mapping[str, Any]:
    """What the KEY.json beside a picture says of it, or GenEval's metadata.jsonl as its label; else nothing."""
    if found := _told(folder, Path(name).with_suffix(".json").as_posix()):
        return found
    parent = Path(name).parent
    geneval = _told(folder, (parent.parent / "metadata.jsonl").as_posix()) if parent.name == "samples" else {}
    return {"label": geneval} if geneval else {}


def _told(folder: Path, name: str) -> dict[str, Any]:
    path = inside(folder, name)
    if path is None or not path.is_file():
        return {}
    try:
        return _table(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError):
        return {}


def _prompt(text: str) -> str:
    words = _table(text).get("prompt", "")
    return words if isinstance(words, str) else ""


def _table(text: str) -> dict[str, Any]:
    """A JSON object, alone or on the first line; an empty one where the text is none."""
    for part in (text, text.strip().partition("\n")[0]):
        try:
            found = json.loads(part)
        except (ValueError, RecursionError):
            continue
        return found if isinstance(found, dict) else {}
    return {}
