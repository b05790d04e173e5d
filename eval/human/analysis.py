"""A study evaluated: outcomes, strengths and agreement, over all raters and over those that count by the rules."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from eval.human.agreement import Level, alpha_interval, raw_agreement
from eval.human.audit import Rater, audit, consistency, left_share
from eval.human.criteria import TAGGED
from eval.human.errors import StudyError
from eval.human.outcomes import Grade, Outcome, Standing, compared, graded, with_holm
from eval.human.study import Study
from eval.human.votes import Vote
from eval.interval import RESAMPLES, Interval, share_interval


@dataclass(frozen=True)
class Agreement:
    """How far raters agree on one criterion: alpha (None where nothing varied) and the plain share of equal pairs."""

    criterion: str
    level: Level
    alpha: Interval | None
    raw: float
    items: int


@dataclass(frozen=True)
class Tagged:
    """Share of a model's judged pictures in which a rater named a defect."""

    model: str
    tag: str
    share: Interval


@dataclass(frozen=True)
class View:
    """The results over some raters."""

    raters: int
    votes: int
    outcomes: tuple[Outcome, ...]
    standings: tuple[Standing, ...]
    grades: tuple[Grade, ...]
    agreement: tuple[Agreement, ...]
    tags: tuple[Tagged, ...]
    consistency: Interval | None
    left: Interval | None


@dataclass(frozen=True)
class Results:
    """Both views, the raters, and notes; `kept` is None where the rules leave nobody."""

    study: str
    everyone: View
    kept: View | None
    raters: tuple[Rater, ...]
    notes: tuple[str, ...]

    @property
    def main(self) -> View:
        """The view that counts: that of the registered rules, where they leave anybody."""
        return self.kept or self.everyone


def analyse(votes: Sequence[Vote], study: Study, identity: str, *, draws: int = RESAMPLES) -> Results:
    """Evaluate a study by its registered rules. Raises StudyError where there is nothing to evaluate."""
    raters = audit(votes, study.exclude)
    out = {rater.rater for rater in raters if rater.excluded}
    everyone = view(votes, study, draws=draws)
    left = [vote for vote in votes if vote.rater_id not in out]
    counted = any(not vote.is_gold and vote.criterion != TAGGED for vote in left)
    notes = [] if counted else ["the registered rules exclude every rater: the figures are those of all raters"]
    kept = everyone if not out else view(left, study, draws=draws) if counted else None
    return Results(identity, everyone, kept, tuple(raters), tuple(notes + _notes(kept or everyone, study)))


def view(votes: Sequence[Vote], study: Study, *, draws: int = RESAMPLES) -> View:
    """The results of these votes; controls and repeats serve the audit alone."""
    main = [v for v in votes if not v.is_gold and not v.is_repeat and v.criterion != TAGGED]
    if not main:
        raise StudyError("there are no votes on pairs to count: import at least one file in which pairs were answered")
    outcomes: list[Outcome] = []
    standings: list[Standing] = []
    grades: list[Grade] = []
    agreement: list[Agreement] = []
    for criterion in study.criteria:
        own = [vote for vote in main if vote.criterion == criterion]
        if not own:
            continue
        if study.mode == "likert":
            pairs, means = graded(own, study.models, criterion, study.seed)
            grades += means
        else:
            anchor = study.anchor or study.models[0]
            pairs, place = compared(own, study.models, criterion, study.resample, anchor, study.seed, draws)
            standings += [place] if place else []
        outcomes += pairs
        agreement += [found] if (found := _agreement(own, criterion, study, draws)) else []
    return View(
        raters=len({vote.rater_id for vote in main}),
        votes=len(main),
        outcomes=with_holm(outcomes),
        standings=tuple(standings),
        grades=tuple(grades),
        agreement=tuple(agreement),
        tags=tuple(_tags(votes, study)),
        consistency=consistency(votes),
        left=left_share(votes),
    )


def _agreement(votes: Sequence[Vote], criterion: str, study: Study, draws: int) -> Agreement | None:
    """Agreement on the pairs, or pictures, that two raters judged; None where there is none."""
    items: defaultdict[tuple[str, ...], dict[str, str | int]] = defaultdict(dict)
    for vote in votes:
        value = vote.strength if study.mode == "likert" else vote.choice
        items[vote.prompt_id, vote.model_a, vote.model_b][vote.rater_id] = value
    shared = [given for given in items.values() if len(given) > 1]
    if not shared:
        return None
    raters = list(dict.fromkeys(rater for given in shared for rater in given))
    ratings = [[given.get(rater) for given in shared] for rater in raters]
    level: Level = "ordinal" if study.mode == "likert" else "nominal"
    alpha = alpha_interval(ratings, level, seed=study.seed, draws=draws)
    known = alpha if alpha.value == alpha.value else None  # NaN where nothing varied
    return Agreement(criterion, level, known, raw_agreement(ratings), len(shared))


def _tags(votes: Sequence[Vote], study: Study) -> list[Tagged]:
    """Of every model and tag, the share of judged pictures that were so marked, over prompts."""
    shown: dict[str, set[tuple[str, str, str]]] = {model: set() for model in study.models}
    marked: Counter[tuple[str, str, str, str, str]] = Counter()
    for vote in votes:
        if vote.is_gold or vote.is_repeat:
            continue
        if vote.criterion == TAGGED:
            for tag in vote.choice.split("|"):
                marked[vote.model_a, tag, vote.rater_id, vote.item_id, vote.prompt_id] += 1
        elif vote.criterion == "defects":
            for model in (vote.model_a, vote.model_b):
                shown.get(model, set()).add((vote.rater_id, vote.item_id, vote.prompt_id))
    used = sorted({tag for _, tag, *_ in marked})
    found = []
    for model in study.models:
        rows = sorted(shown[model])
        for tag in used if rows else ():
            values = [float((model, tag, *row) in marked) for row in rows]
            found.append(Tagged(model, tag, share_interval(values, [row[2] for row in rows])))
    return found


def _notes(shown: View, study: Study) -> list[str]:
    """What a reader should know before any figure."""
    notes = []
    for place in shown.standings:
        if len(place.classes) > 1:
            said = " > ".join(", ".join(part) for part in place.classes)
            notes.append(
                f"{place.criterion}: nobody ever preferred a later class over an earlier one ({said}); between them "
                "only the order of strengths counts, the distance is that of a weak prior"
            )
        for loop in place.loops:
            notes.append(
                f"{place.criterion}: majorities go in a circle over {', '.join(loop)}; one scale cannot show it"
            )
        if place.dropped:
            notes.append(f"{place.criterion}: {place.dropped} resamples fell apart into groups and are left out")
    linked = {place.criterion for place in shown.standings}
    apart = [c for c in dict.fromkeys(o.criterion for o in shown.outcomes) if c not in linked]
    if study.mode == "pairwise" and apart:
        notes.append(f"{', '.join(apart)}: the votes so far do not link all models, so there are no common strengths")
    few = min((outcome.win_rate.n for outcome in shown.outcomes), default=0)
    if few < 20:
        notes.append(f"some pairs were judged on {few} prompts only: intervals of so few are rough")
    return notes
