"""Answers as they come from pages and platforms, in terms of sides: one reader for each form, told by the file itself.

.json with "votes"      the study page                  .json list   Label Studio's export
.csv with Answer.*      Mechanical Turk's results       .tsv         Toloka's assignments
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from eval.human.criteria import TAGGED
from eval.human.errors import VotesError, named
from eval.human.key import Key
from eval.human.votes import whole_milliseconds

CHOICES = {"A": "left", "B": "right", "both bad": "both_bad"}
TIMES = ("%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S", "%a %b %d %H:%M:%S %Y", "%Y-%m-%d %H:%M:%S")
TOOK = {"Submitted": True, "Approved": True, "ACCEPTED": True, "APPROVED": True, "SUBMITTED": True}


@dataclass(frozen=True)
class Answer:
    """One answer: choice is left, right, tie, both_bad, a grade, or tags separated by | of the picture on `side`."""

    file: Path
    item: object
    rater: object
    criterion: object
    choice: object
    rt_ms: int | None = None
    ts: str = ""
    client_sha: str = ""
    side: str = ""


@dataclass
class Answers:
    """All answers of some files, and what was left out of them with the reason."""

    found: list[Answer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_answers(path: Path, key: Key) -> Answers:
    """Read one file of any known form. Raises VotesError for another study and for what is no file of votes."""
    text = _text(path)
    if path.suffix.lower() in (".tsv", ".csv"):
        rows = list(csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
        names = set(rows[0]) if rows else set()
        if any(str(name).startswith("Answer.") for name in names):
            return _table(path, rows, key, _MTURK)
        if any(str(name).startswith("OUTPUT:") for name in names):
            return _table(path, rows, key, _TOLOKA)
        raise VotesError(f"{path} is no table of answers: expected columns Answer.* (MTurk) or OUTPUT:* (Toloka)")
    try:
        data = json.loads(text)
    except ValueError as error:
        raise VotesError(f"{path} cannot be read as JSON ({error}); give the file as it was saved") from error
    if isinstance(data, list):
        return _label_studio(path, data, key)
    if isinstance(data, dict) and isinstance(data.get("votes"), list):
        return _page(path, data, key)
    raise VotesError(f"{path} holds no votes: give the votes.json of a study page or the export of Label Studio")


def _page(path: Path, data: dict[str, Any], key: Key) -> Answers:
    """The votes.json of a study page."""
    _same_study(path, data.get("study"), key)
    made, sha = Answers(), _mark(path, data.get("page"))
    for raw in _dicts(path, data["votes"]):
        time = _time(path, raw.get("item"), raw.get("rt_ms"))
        ts = moment(path, raw.get("item"), raw.get("at"))
        made.found.append(Answer(path, raw.get("item"), data.get("rater"), raw.get("criterion"), raw.get("choice"),
                                 time, ts, sha))  # fmt: skip
    for raw in _dicts(path, data.get("tags") or []):
        tags = raw.get("tags")
        joined = "|".join(map(str, tags)) if isinstance(tags, list) else tags
        made.found.append(Answer(path, raw.get("item"), data.get("rater"), TAGGED, joined, None, "", sha,
                                 str(raw.get("side"))))  # fmt: skip
    return made


def _label_studio(path: Path, tasks: list[Any], key: Key) -> Answers:
    """Label Studio's JSON export: annotations per task."""
    made, left = Answers(), []
    for task in _dicts(path, tasks):
        data, annotations = task.get("data"), task.get("annotations")
        if not isinstance(data, dict) or not isinstance(annotations, list):
            raise VotesError(f"{path} is no JSON export of Label Studio: a task lacks data or annotations; export JSON")
        _same_study(path, data.get("study"), key)
        for annotation in _dicts(path, annotations):
            if annotation.get("was_cancelled"):
                left.append(data.get("item"))
            else:
                made.found += _annotated(path, data.get("item"), annotation)
    if left:
        made.notes.append(f"{path}: {len(left)} annotations were skipped by the rater (items {named(left)})")
    return made


def _annotated(path: Path, item: object, annotation: dict[str, Any]) -> list[Answer]:
    """The answers of one annotation; its lead time is shared by the questions."""
    by = annotation.get("completed_by")
    rater = by.get("email") or by.get("id") if isinstance(by, dict) else by
    results = _dicts(path, annotation.get("result") or [])
    asked = sum(1 for one in results if not str(one.get("from_name")).startswith("tags_"))
    time = _time(path, item, _shared(path, item, annotation.get("lead_time"), asked))
    ts = moment(path, item, annotation.get("created_at"))
    found = []
    for one in results:
        name, value = str(one.get("from_name")), one.get("value")
        value = value if isinstance(value, dict) else {}
        chosen = value.get("choices") or [value.get("rating")]
        who = None if rater is None else str(rater)
        if name.startswith("tags_"):
            tags = "|".join(map(str, chosen))
            found.append(Answer(path, item, who, TAGGED, tags, None, ts, "", name.removeprefix("tags_")))
        else:
            found.append(Answer(path, item, who, name, chosen[0] if len(chosen) == 1 else chosen, time, ts))
    return found


@dataclass(frozen=True)
class _Form:
    """Which columns of a platform's table say what."""

    given: str
    answer: str
    rater: str
    status: str
    at: str
    seconds: str = ""
    began: str = ""


_MTURK = _Form("Input.", "Answer.", "WorkerId", "AssignmentStatus", "SubmitTime", seconds="WorkTimeInSeconds")
_TOLOKA = _Form("INPUT:", "OUTPUT:", "ASSIGNMENT:worker_id", "ASSIGNMENT:status", "ASSIGNMENT:submitted",
                began="ASSIGNMENT:started")  # fmt: skip


def _table(path: Path, rows: list[dict[str, Any]], key: Key, form: _Form) -> Answers:
    """A platform's table: one line per item and rater; lines that the requester rejected are left out and named."""
    made, left = Answers(), []
    for row in rows:
        item = row.get(form.given + "item")
        status = row.get(form.status) or "Submitted"
        if status not in TOOK:
            left.append(f"{item} ({status})")
            continue
        _same_study(path, row.get(form.given + "study"), key)
        given = _given(row, form.answer, key)
        if not given:
            raise VotesError(f"{path}: the line of item {item} answers none of {', '.join(key.criteria)}")
        ts = moment(path, item, row.get(form.at))
        time = _time(path, item, _seconds(path, item, row, form, ts, len(given)))
        for criterion, choice in given.items():
            made.found.append(Answer(path, item, row.get(form.rater), criterion, choice, time, ts))
    if left:
        made.notes.append(f"{path}: {len(left)} lines were rejected on the platform (items {named(left)})")
    return made


def _given(row: Mapping[str, Any], prefix: str, key: Key) -> dict[str, str]:
    """The answers of a line: `Answer.relevance` = left, or `Answer.relevance.left` = true."""
    found = {}
    for criterion in key.criteria:
        if value := row.get(prefix + criterion):
            found[criterion] = value
            continue
        ticked = [c for c in key.choices if str(row.get(f"{prefix}{criterion}.{c}", "")).lower() in ("true", "on", "1")]
        if ticked:
            found[criterion] = ticked[0] if len(ticked) == 1 else "|".join(ticked)
    return found


def _seconds(path: Path, item: object, row: Mapping[str, Any], form: _Form, ts: str, asked: int) -> float | None:
    """Milliseconds for one question: the time of the whole line, shared."""
    if form.seconds:
        return _shared(path, item, row.get(form.seconds), asked)
    began = moment(path, item, row.get(form.began))
    if not (began and ts):
        return None
    return (datetime.fromisoformat(ts) - datetime.fromisoformat(began)).total_seconds() * 1000 / asked


def _shared(path: Path, item: object, seconds: Any, asked: int) -> float | None:
    """Milliseconds for one of the questions that together took so many seconds."""
    try:
        return None if seconds in (None, "") else float(seconds) * 1000 / max(asked, 1)
    except (TypeError, ValueError) as error:
        raise VotesError(f"{path}, item {item}: it took {seconds!r} seconds, expected a number") from error


def moment(path: Path, item: object, value: object) -> str:
    """A time as ISO 8601, or "" where none is given. Raises VotesError for what is no time."""
    if value in (None, ""):
        return ""
    words = str(value).strip().removesuffix("Z").split()
    plain = " ".join(words[:4] + words[5:]) if len(words) == 6 else " ".join(words)  # "... 11:41:13 PST 2026"
    for form in TIMES:
        try:
            return datetime.strptime(plain, form).isoformat(timespec="milliseconds")
        except ValueError:
            continue
    raise VotesError(f"{path}, item {item}: the time {value!r} cannot be read; give the file as it was saved")


def plain_choice(value: object) -> object:
    """A choice by its own name, where a platform gives the word on its button."""
    if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
        return str(int(value))
    return CHOICES.get(value, value) if isinstance(value, str) else value


def _same_study(path: Path, study: object, key: Key) -> None:
    if study != key.study:
        raise VotesError(
            f"{path} holds votes of study {study!r}, the key is of study {key.study!r}; give the key of the study on "
            "which these votes were given"
        )


def _time(path: Path, item: object, value: object) -> int | None:
    try:
        return whole_milliseconds(value)
    except ValueError as error:
        raise VotesError(f"{path}, item {item}: {error}") from error


def _mark(path: Path, value: object) -> str:
    if not isinstance(value, str) or not (len(value) == 16 and set(value) <= set("0123456789abcdef")):
        raise VotesError(f"{path}: page is {value!r}, expected the 16 digits that a study page writes")
    return value


def _dicts(path: Path, values: Iterable[Any]) -> Iterator[dict[str, Any]] | list[dict[str, Any]]:
    found = list(values)
    wrong = [at for at, value in enumerate(found) if not isinstance(value, dict)]
    if wrong:
        raise VotesError(f"{path}: entries {named(wrong)} are no objects; give the file as it was saved")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise VotesError(f"{path} does not exist; give the path of a file of votes") from error
    except (OSError, UnicodeDecodeError) as error:
        raise VotesError(f"{path} cannot be read as text ({error}); give the file as it was saved") from error
