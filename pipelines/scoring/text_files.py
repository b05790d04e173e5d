"""Texts from anywhere: a line, an entry of a list or a file each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.human.errors import named
from pipelines.errors import DataError
from pipelines.text.corpus import read_text

KINDS = ".txt (a text a line), .jsonl or .json (texts, or objects with a text), or a folder of .txt files"


@dataclass(frozen=True)
class TextSet:
    """Texts under a title. sha256: of all of them, also of those that were not taken."""

    title: str
    texts: tuple[str, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.texts)

    def some(self, count: int, seed: int) -> TextSet:
        """So many of them, drawn by the seed; all in their order where there are no more."""
        return self.halves(count, seed)[0]

    def halves(self, count: int, seed: int) -> tuple[TextSet, TextSet | None]:
        """So many of them, and as many others where there are."""
        if count >= len(self):
            return self, None
        order = np.random.default_rng(seed).permutation(len(self))
        first, second = (
            replace(self, texts=tuple(self.texts[i] for i in sorted(order[at : at + count].tolist())))
            for at in (0, count)
        )
        return first, second if len(second) == count else None

    def cut(self, words: int | None) -> TextSet:
        """The same, each text to its first words; what separates them becomes one space where a text is cut."""
        if words is None:
            return self
        split = [text.split() for text in self.texts]
        pairs = zip(self.texts, split, strict=True)
        return replace(self, texts=tuple(" ".join(row[:words]) if len(row) > words else text for text, row in pairs))


def open_texts(path: Path, title: str, *, gaps: bool = False) -> TextSet:
    """Read texts; with `gaps` empty ones are left out. Raises DataError for what is no text, and names empty ones."""
    found = [(name, text) for name, text in _reader(path)(path) if text.strip() or not gaps]
    if empty := [name for name, text in found if not text.strip()]:
        raise DataError(
            f"{len(empty)} of {len(found)} texts in {path} are empty: {named(empty)}. A figure over the rest would "
            "hide them: take them out, or write them again."
        )
    if len(found) < 2:
        raise DataError(f"{path} holds {len(found)} texts, expected at least 2.")
    texts = tuple(text for _, text in found)
    hashed = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    return TextSet(title, texts, hashed)


def _reader(path: Path) -> Callable[[Path], Iterator[tuple[str, str]]]:
    if path.is_dir():
        return _of_folder
    readers = {".txt": _of_lines, ".jsonl": _of_json_lines, ".json": _of_json}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path} is no file of texts: expected {KINDS}.")
    return readers[path.suffix.lower()]


def _of_folder(path: Path) -> Iterator[tuple[str, str]]:
    files = sorted(path.glob("*.txt"))
    if not files:
        raise DataError(f"{path} holds no .txt: expected {KINDS}.")
    return (
        (file.name, file.read_text(encoding="utf-8") if not file.stat().st_size else read_text(file)) for file in files
    )


def _of_lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
        yield f"line {number}", line


def _of_json_lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
        yield f"line {number}", _text(_parsed(path, line, f"line {number}"), path, f"line {number}")


def _of_json(path: Path) -> Iterator[tuple[str, str]]:
    found = _parsed(path, read_text(path), "all of it")
    if not isinstance(found, list):
        raise DataError(f"{path} holds {type(found).__name__}, expected a list of texts.")
    for number, entry in enumerate(found, 1):
        yield f"entry {number}", _text(entry, path, f"entry {number}")


def _parsed(path: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, {where}, is no JSON ({error}): expected {KINDS}.") from error


def _text(entry: Any, path: Path, where: str) -> str:
    found = entry.get("text") if isinstance(entry, dict) else entry
    if not isinstance(found, str):
        raise DataError(f'{path}, {where}, is no text: expected "..." or {{"text": "..."}}.')
    return found
