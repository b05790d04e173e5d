"""The long table of a study: one row per answer, in terms of models. It is what is published and what is evaluated."""

import csv
import dataclasses
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.human.criteria import TAGGED
from eval.human.errors import VotesError, named
from eval.human.gold import GOLD
from eval.human.study import Study
from eval.page import write_whole

PAIRWISE = ("a", "b", "tie", "both_bad")
GRADES = ("1", "2", "3", "4", "5")
SCORE = {"a": 1.0, "tie": 0.5, "both_bad": 0.5, "b": 0.0}
TIES = ("tie", "both_bad")


@dataclass(frozen=True)
class Vote:
    """One answer. model_a, model_b: the pair in the order of the study file (model_b is "" for a grade or for tags).

    side: where model_a stood. choice: a, b, tie or both_bad; a grade 1 to 5; or the tags, separated by |. strength: of
    a choice 1, of a tie 0, else the grade, or how many tags. is_repeat: this rater had judged the pair before. ts: ISO
    8601 or "". client_sha: the fingerprint of the page's script, "" from other platforms.
    """

    study_id: str
    item_id: str
    prompt_id: str
    rater_id: str
    criterion: str
    model_a: str
    model_b: str
    side: str
    choice: str
    strength: int
    rt_ms: int | None
    is_gold: bool
    is_repeat: bool
    ts: str
    client_sha: str


FIELDS = [field.name for field in dataclasses.fields(Vote)]


def write_votes(path: Path, votes: Iterable[Vote]) -> None:
    """Write the table as CSV; true and false as 1 and 0."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(FIELDS)
    for vote in votes:
        values = dataclasses.astuple(vote)
        writer.writerow(["" if v is None else int(v) if isinstance(v, bool) else v for v in values])
    write_whole(path, buffer.getvalue())


def read_votes(path: Path, study: Study, identity: str) -> list[Vote]:
    """Read the table of one study. Raises VotesError that names the lines that cannot be used."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise VotesError(f"{path} does not exist: import the votes first, with `palimpsest study import`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise VotesError(f"{path} cannot be read as text ({error}): import the votes again") from error
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or rows[0] != FIELDS:
        raise VotesError(f"{path} is no table of votes: its first line should read {','.join(FIELDS)}")
    problems: list[str] = []
    votes = [vote for at, row in enumerate(rows[1:], 2) if (vote := _read(row, at, study, identity, problems))]
    if problems:
        raise VotesError(f"{path} cannot be used: {named(problems)}; import the votes again")
    if not votes:
        raise VotesError(f"{path} holds no votes: import files in which something was answered")
    check_once(votes, str(path))
    return votes


def check_once(votes: Sequence[Vote], origin: str) -> None:
    """Refuse an answer that was given twice."""
    seen: set[tuple[str, ...]] = set()
    twice = []
    for vote in votes:
        mark = (vote.rater_id, vote.item_id, vote.criterion, vote.model_a if vote.criterion == TAGGED else "")
        if mark in seen:
            twice.append(f"{vote.criterion} of item {vote.item_id} by rater {vote.rater_id}")
        seen.add(mark)
    if twice:
        raise VotesError(
            f"{origin}: {len(twice)} answers are there a second time ({named(twice)}): keep one of each, or give two "
            "people two names"
        )


def choices_of(study: Study) -> tuple[str, ...]:
    """What can stand in the column `choice` of a criterion."""
    if study.mode == "likert":
        return GRADES
    return PAIRWISE if study.both_bad else PAIRWISE[:3]


def _read(row: Sequence[str], at: int, study: Study, identity: str, problems: list[str]) -> Vote | None:
    if len(row) != len(FIELDS):
        problems.append(f"line {at} has {len(row)} values for {len(FIELDS)} columns")
        return None
    values = dict(zip(FIELDS, row, strict=True))
    if found := _wrong(values, study, identity):
        problems.append(f"line {at}, item {values['item_id']}: {found}")
        return None
    numbers = {"strength": int(values["strength"]), "rt_ms": int(values["rt_ms"]) if values["rt_ms"] else None}
    flags = {name: values[name] == "1" for name in ("is_gold", "is_repeat")}
    return Vote(**{**values, **numbers, **flags})  # type: ignore[arg-type]


def _wrong(values: dict[str, str], study: Study, identity: str) -> str:
    """What is wrong with a line, or nothing."""
    models = (*study.models, "")
    if values["study_id"] != identity:
        return f"study_id is {values['study_id']!r}, expected {identity!r}"
    if values["criterion"] not in (*study.criteria, TAGGED):
        return f"criterion {values['criterion']!r} is not of this study ({', '.join(study.criteria)})"
    for name in ("model_a", "model_b"):
        if values[name] not in models and not values[name].startswith(GOLD):
            return f"{name} {values[name]!r} is not of this study ({', '.join(study.models)})"
    if values["criterion"] != TAGGED and values["choice"] not in choices_of(study):
        return f"choice {values['choice']!r} is none of {', '.join(choices_of(study))}"
    for name in ("strength", "rt_ms"):
        if not re.fullmatch(r"\d{1,12}", values[name]) and not (name == "rt_ms" and not values[name]):
            return f"{name} is {values[name]!r}, expected a whole number"
    for name in ("is_gold", "is_repeat"):
        if values[name] not in ("0", "1"):
            return f"{name} is {values[name]!r}, expected 0 or 1"
    if values["side"] not in ("left", "right"):
        return f"side is {values['side']!r}, expected left or right"
    return "" if values["rater_id"] else "rater_id is empty"


def whole_milliseconds(value: object) -> int | None:
    """A response time, or None where there is none. Raises ValueError for what is no time."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"rt_ms is {value!r}, expected milliseconds of at least 0")
    return min(int(value), 10**12 - 1)
