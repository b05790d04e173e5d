"""From answers on sides to votes on models, checked against the sealed key; nothing is dropped without a word."""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.human.answers import Answer, plain_choice, read_answers
from eval.human.criteria import TAGGED
from eval.human.errors import VotesError, named
from eval.human.key import Item, Key
from eval.human.pictures import secret_name
from eval.human.votes import TIES, Vote, check_once

RATER = re.compile(r"\w[\w.@+-]{0,63}")  # a name that a spreadsheet does not take for a formula


@dataclass(frozen=True)
class Imported:
    """The long table, and what a reader of it should know."""

    votes: list[Vote]
    notes: list[str]


def import_votes(files: Iterable[Path], key: Key, *, names: bool = False) -> Imported:
    """One long table from files of any known form. names: keep the raters' names, which else only the key can tell.

    Raises VotesError, which names the items, for votes of another study, unknown items, criteria, choices and tags,
    raters without a name, and answers given twice.
    """
    read = [read_answers(path, key) for path in files]
    notes = [note for one in read for note in one.notes]
    answers = [answer for one in read for answer in one.found]
    votes = to_votes(answers, key)
    if strange := [vote for vote in votes if vote.client_sha not in ("", key.page)]:
        who = named(sorted({vote.rater_id for vote in strange}))
        notes.append(f"{len(strange)} answers come from a page with another script than was exported (raters {who})")
    notes += _unanswered(votes, key)
    return Imported(votes if names else hide_raters(votes, key), notes)


def to_votes(answers: Sequence[Answer], key: Key) -> list[Vote]:
    """Votes on models from checked answers. Raises VotesError like `import_votes`."""
    problems = [f"{answer.file.name}: {problem}" for answer in answers if (problem := _wrong(answer, key))]
    if problems:
        raise VotesError(f"{len(problems)} answers cannot be used: {named(problems)}; ask for these files again")
    votes = [_vote(answer, key) for answer in answers]
    if not any(vote.criterion != TAGGED for vote in votes):
        raise VotesError("the files hold no votes: give at least one file in which something was answered")
    check_once(votes, "the files together")
    return _with_repeats(votes)


def hide_raters(votes: Sequence[Vote], key: Key) -> list[Vote]:
    """The votes with raters by names that the study's secret makes."""
    hidden = {name: f"r-{secret_name(key.secret, 'rater', name)[:12]}" for name in {vote.rater_id for vote in votes}}
    return [dataclasses.replace(vote, rater_id=hidden[vote.rater_id]) for vote in votes]


def unblind(chosen: str, first_left: bool) -> str:
    """What was chosen in terms of the first and second model; ties and grades stay what they are."""
    if chosen in ("left", "right"):
        return "a" if (chosen == "left") == first_left else "b"
    return chosen


def _wrong(answer: Answer, key: Key) -> str:
    """What is wrong with an answer, or nothing."""
    item, choice = answer.item, plain_choice(answer.choice)
    if not isinstance(item, str) or item not in key.items:
        return f"item {item!r} is not of this study"
    if not isinstance(answer.rater, str) or not RATER.fullmatch(answer.rater):
        return f"item {item}: rater {answer.rater!r} is no name of 1 to 64 letters, digits, . @ + _ -"
    if answer.criterion == TAGGED:
        tags = str(choice).split("|")
        if answer.side not in ("left", "right") or (answer.side == "right" and not key.items[item].second):
            return f"item {item}: tags of side {answer.side!r}, expected left or right"
        unknown = [tag for tag in tags if tag not in key.tags]
        return f"item {item}: tags {named(unknown)} are not of this study ({named(key.tags)})" if unknown else ""
    if answer.criterion not in key.criteria:
        return f"item {item}: criterion {answer.criterion!r} is not of this study ({', '.join(key.criteria)})"
    if not isinstance(choice, str) or choice not in key.choices:
        return f"item {item}: choice {answer.choice!r} is none of {', '.join(key.choices)}"
    return ""


def _vote(answer: Answer, key: Key) -> Vote:
    item = key.items[str(answer.item)]
    choice = str(plain_choice(answer.choice))
    tagged = answer.criterion == TAGGED
    first, second = (_marked(item, answer.side), "") if tagged else (item.first, item.second)
    given = choice if tagged else unblind(choice, item.first_left)
    strength = len(choice.split("|")) if tagged else int(given) if given.isdigit() else int(given not in TIES)
    return Vote(
        study_id=key.study,
        item_id=item.id,
        prompt_id=item.prompt_id,
        rater_id=str(answer.rater),
        criterion=str(answer.criterion),
        model_a=first,
        model_b=second,
        side=answer.side if tagged else "left" if item.first_left else "right",
        choice=given,
        strength=strength,
        rt_ms=answer.rt_ms,
        is_gold=item.kind == "gold",
        is_repeat=False,
        ts=answer.ts,
        client_sha=answer.client_sha,
    )


def _marked(item: Item, side: str) -> str:
    """The model whose picture stood on a side."""
    return item.first if (side == "left") == item.first_left or not item.second else item.second


def _with_repeats(votes: Sequence[Vote]) -> list[Vote]:
    """Mark what a rater had judged before: the later of two judgements of one pair, on whatever side and page."""
    groups: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, vote in enumerate(votes):
        if not vote.is_gold:
            groups[vote.rater_id, vote.prompt_id, vote.criterion, vote.model_a, vote.model_b].append(at)
    later: set[int] = set()
    for members in groups.values():
        dated = all(votes[at].ts for at in members)
        ordered = sorted(members, key=lambda at: (votes[at].ts, at)) if dated else members
        later |= set(ordered[1:])
    return [dataclasses.replace(vote, is_repeat=at in later) for at, vote in enumerate(votes)]


def _unanswered(votes: Sequence[Vote], key: Key) -> list[str]:
    """Say which blocks nobody answered, and how many items are not answered in full."""
    asked = Counter(vote.item_id for vote in votes if vote.criterion != TAGGED)
    blocks = sorted({item.block for item in key.items.values()})
    begun = {key.items[item].block for item in asked}
    notes = []
    if missing := [block for block in blocks if block not in begun]:
        notes.append(f"{len(missing)} of {len(blocks)} blocks have no answers yet: {named(missing)}")
    partly = [name for name, item in key.items.items() if item.block in begun and asked[name] < len(key.criteria)]
    if partly:
        notes.append(f"{len(partly)} items of the other blocks lack answers: {named(partly)}")
    return notes
