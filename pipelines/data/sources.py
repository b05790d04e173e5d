"""Where imported pictures come from: a folder with .txt captions, a captions .csv or .jsonl, or tar shards.

Captions are text and nothing else: no name is ever made from one. A file named in a list must lie inside the list's
folder. What cannot be used is yielded as Dropped, never raised, so that the import can count it.
"""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.data.decode import BrokenSample, EmptyCaption, Sample, caption, label, picture_bytes
from pipelines.data.index import index_shard
from pipelines.data.picture import EXTENSIONS
from pipelines.data.shards import Split, shard_paths
from pipelines.errors import DataError

FILE_COLUMNS = ("file", "image", "file_name", "filename", "path")
CAPTION_COLUMNS = ("caption", "text")
SPLITS = ("train", "test", "unseen")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A picture with its caption; `split` where the source has decided it, `label` what its KEY.json said."""

    source: str
    picture: bytes
    caption: str
    label: dict[str, Any] = field(default_factory=dict)
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Something that cannot become a sample: what, and one of a few reasons that can be counted."""

    source: str
    reason: str


Candidates = Iterator[Found | Dropped]


def find(src: Path) -> Candidates:
    """Candidates of a source in a fixed order; raises DataError when there is nothing of a known kind."""
    if src.is_file() and src.suffix.lower() in (".csv", ".jsonl"):
        return from_list(src)
    if src.is_file() and src.suffix.lower() == ".tar":
        return from_shards([src])
    if not src.is_dir():
        raise DataError(f"No data at {src}: expected a folder of pictures or shards, a .csv, a .jsonl or a .tar file.")
    if shards := sorted(src.glob("*.tar")):
        return from_shards(shards)
    lists = sorted(path for path in src.iterdir() if path.suffix.lower() in (".csv", ".jsonl"))
    if len(lists) > 1:
        names = ", ".join(path.name for path in lists)
        raise DataError(f"{src} has several lists of captions ({names}): give the one to import as SRC.")
    return from_list(lists[0]) if lists else from_folder(src)


def from_folder(folder: Path) -> Candidates:
    """Pictures at any depth, the caption of a.png in a.txt beside it."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in EXTENSIONS)
    if not paths:
        raise DataError(f"No pictures in {folder}: expected files such as a.png with their captions in a.txt.")
    for path in paths:
        source = path.relative_to(folder).as_posix()
        picture = inside(folder, source)
        text = inside(folder, path.with_suffix(".txt").relative_to(folder).as_posix())
        if picture is None or text is None:
            yield Dropped(source=source, reason="outside the folder")
        elif not text.is_file():
            yield Dropped(source=source, reason="no caption")
        else:
            yield _from_files(source, picture, text)


def _from_files(source: str, path: Path, text: Path) -> Found | Dropped:
    try:
        words = caption(Sample(key=source, members={"txt": text.read_bytes()}))
        return Found(source=source, picture=path.read_bytes(), caption=words)
    except EmptyCaption:
        return Dropped(source=source, reason="empty caption")
    except BrokenSample:
        return Dropped(source=source, reason="caption is not UTF-8")
    except OSError:
        return Dropped(source=source, reason="unreadable file")


def from_list(path: Path) -> Candidates:
    """Rows (file, caption) of a .csv with a header or of a .jsonl; files are relative to the folder of the list."""
    for number, name, words in rows_of(path):
        source = f"{path.name}:{number}"
        if not name:
            yield Dropped(source=source, reason="no file named")
        elif not words.strip():
            yield Dropped(source=source, reason="empty caption" if words else "no caption")
        else:
            yield _from_row(path.parent, name, words)


def rows_of(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, file and caption of each row of a .csv or .jsonl, empty where the row has none. Raises DataError."""
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    return ((number, _column(row, FILE_COLUMNS), _column(row, CAPTION_COLUMNS)) for number, row in rows)


def _from_row(folder: Path, name: str, words: str) -> Found | Dropped:
    path = inside(folder, name)
    if path is None:
        return Dropped(source=name, reason="outside the folder")
    try:
        return Found(source=name, picture=path.read_bytes(), caption=" ".join(words.split()))
    except FileNotFoundError:
        return Dropped(source=name, reason="file not found")
    except OSError:
        return Dropped(source=name, reason="unreadable file")


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # captions may be long
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            _check_columns(path, reader.fieldnames or [])
            yield from ((reader.line_num, row) for row in reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Cannot read {path} ({error}): expected a UTF-8 .csv with a header.") from error


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _json_row(line)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path} ({error}): expected UTF-8 with a JSON object on each line.") from error


def _json_row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _check_columns(path: Path, columns: Iterable[str]) -> None:
    lower = {str(column).strip().lower() for column in columns}
    for wanted in (FILE_COLUMNS, CAPTION_COLUMNS):
        if not lower & set(wanted):
            found = ", ".join(map(str, columns)) or "none"
            raise DataError(f"{path} has the columns {found}: expected one of {', '.join(wanted)} in its header.")


def _column(row: dict[str, Any], names: tuple[str, ...]) -> str:
    values = {str(name).strip().lower(): value for name, value in row.items() if isinstance(value, str)}
    return next((values[name] for name in names if name in values), "")


def inside(folder: Path, name: str) -> Path | None:
    """The file of that name inside the folder, None when its path or a link leads out of it."""
    try:
        path = (folder / name).resolve()
        return path if path.is_relative_to(folder.resolve()) else None
    except (OSError, ValueError):  # names that no file can have
        return None


def from_shards(paths: list[Path]) -> Candidates:
    """Samples of tar shards with their KEY.json; a shard named after a split keeps it where there is a test split."""
    tested = any(path in shard_paths(path.parent, "test") for path in paths)
    for path in paths:
        shard = index_shard(path)
        for sentence in shard.damage:
            yield Dropped(source=f"{path.name}: {sentence}", reason="damage in a shard")
        named = next((name for name in SPLITS if path in shard_paths(path.parent, name)), None) if tested else None
        split = Split.alone(path.name, shard)
        for number in range(len(split)):
            yield _from_sample(split, number, named)


def _from_sample(split: Split, number: int, named: str | None) -> Found | Dropped:
    source = split.name_of(number)
    try:
        sample = split[number]
        data = picture_bytes(sample)
        return Found(source=source, picture=data, caption=caption(sample), label=label(sample), split=named)
    except EmptyCaption:
        return Dropped(source=source, reason="empty caption")
    except BrokenSample as error:
        return Dropped(source=source, reason=error.kind)
