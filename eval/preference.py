"""Win rates from votes. Votes of one prompt are not independent: intervals resample prompts, tests count prompts."""

import csv
import dataclasses
import io
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from eval.blocks import Cell, Column, Figure, Table
from eval.interval import Interval, share_interval
from eval.page import write_whole
from eval.votes import Vote, VotesError

SCORE = {"a": 1.0, "tie": 0.5, "b": 0.0}


@dataclass(frozen=True)
class Outcome:
    """One criterion: votes for model_a, for neither, for model_b; the win rate of model_a, its interval over prompts.

    `p` is the two-sided exact sign test on prompt majorities (tied prompts dropped); `p_holm` corrects it
    for the number of criteria.
    """

    criterion: str
    wins: int
    ties: int
    losses: int
    win_rate: Interval
    prompts_won: int
    prompts_tied: int
    prompts_lost: int
    p: float
    p_holm: float


@dataclass(frozen=True)
class StudyResult:
    """All outcomes, and how far the raters can be trusted.

    consistency: share of repeated pairs answered alike with the sides swapped; left: share of answers for the left
    picture among those that were no tie, 0.5 without a position bias. None where nothing was repeated or chosen.
    """

    study: str
    model_a: str
    model_b: str
    raters: int
    outcomes: tuple[Outcome, ...]
    consistency: Interval | None
    left: Interval | None
    median_rt_ms: float | None

    def tables(self) -> list[Table]:
        """The section of a report: outcomes per criterion, then the raters' own check."""
        return [_outcome_table(self), _check_table(self)]


def win_rates(votes: Sequence[Vote], *, seed: int = 0) -> StudyResult:
    """Win rates of model_a per criterion; w = (wins + ties / 2) / votes. Repeats serve the consistency check only."""
    if not votes:
        raise VotesError("there are no votes to count: import at least one votes.json")
    if len({(v.study_id, v.model_a, v.model_b) for v in votes}) > 1:
        raise VotesError(f"votes of several studies {sorted({v.study_id for v in votes})}: count each study by itself")
    main = [vote for vote in votes if not vote.is_repeat]
    criteria = dict.fromkeys(vote.criterion for vote in main)
    outcomes = [_outcome(name, [vote for vote in main if vote.criterion == name], seed) for name in criteria]
    corrected = holm([outcome.p for outcome in outcomes])
    times = sorted(vote.rt_ms for vote in votes if vote.rt_ms is not None)
    return StudyResult(
        study=votes[0].study_id,
        model_a=votes[0].model_a,
        model_b=votes[0].model_b,
        raters=len({vote.rater_id for vote in votes}),
        outcomes=tuple(dataclasses.replace(o, p_holm=p) for o, p in zip(outcomes, corrected, strict=True)),
        consistency=_consistency(votes, seed),
        left=_left(votes, seed),
        median_rt_ms=float(times[len(times) // 2]) if times else None,
    )


def sign_test(won: int, lost: int) -> float:
    """Two-sided exact sign test of won against lost; 1 where there is neither."""
    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Step-down corrected p values (Holm 1979): max over smaller p of (m - rank) p, at most 1."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected, highest = [1.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = highest
    return corrected


def write_results(votes: Sequence[Vote], result: StudyResult, folder: Path) -> list[Table]:
    """Write `votes.csv` (the long table) and `study.json`; returns the report's tables."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in dataclasses.fields(Vote)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(vote) for vote in votes)
    write_whole(folder / "votes.csv", buffer.getvalue())
    content: dict[str, Any] = {"schema": 1, **dataclasses.asdict(result)}
    write_whole(folder / "study.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    return result.tables()


def _outcome(criterion: str, votes: Sequence[Vote], seed: int) -> Outcome:
    by_prompt: dict[str, float] = defaultdict(float)
    for vote in votes:
        by_prompt[vote.prompt_id] += SCORE[vote.choice] - 0.5
    won, lost = sum(s > 0 for s in by_prompt.values()), sum(s < 0 for s in by_prompt.values())
    p = sign_test(won, lost)
    rate = share_interval([SCORE[v.choice] for v in votes], [v.prompt_id for v in votes], seed=seed)
    counts = Counter(vote.choice for vote in votes)
    tied = len(by_prompt) - won - lost
    return Outcome(criterion, counts["a"], counts["tie"], counts["b"], rate, won, tied, lost, p, p)


def _consistency(votes: Sequence[Vote], seed: int) -> Interval | None:
    first = {(v.rater_id, v.item_id, v.criterion): v for v in votes if not v.is_repeat}
    again = [v for v in votes if v.is_repeat and (v.rater_id, v.repeat_of, v.criterion) in first]
    same = [float(v.choice == first[v.rater_id, v.repeat_of, v.criterion].choice) for v in again]
    return share_interval(same, [v.prompt_id for v in again], seed=seed) if again else None


def _left(votes: Sequence[Vote], seed: int) -> Interval | None:
    """Share for the left side. Repeats count: they balance the sides of their pair."""
    chosen = [vote for vote in votes if vote.choice != "tie"]
    left = [float((vote.choice == "a") == (vote.side == "left")) for vote in chosen]
    return share_interval(left, [vote.prompt_id for vote in chosen], seed=seed) if chosen else None


def _outcome_table(result: StudyResult) -> Table:
    source = f"study {result.study}"
    rows: list[list[Cell]] = [
        [o.criterion, Figure.of(o.win_rate, source), o.wins, o.ties, o.losses, _prompts(o), o.p, o.p_holm]
        for o in result.outcomes
    ]
    names = ["wins", "ties", "losses", "prompts won / tied / lost", "sign test p", "p (Holm)"]
    columns = [Column("criterion"), Column(f"win rate of {result.model_a}", "share"), *map(Column, names)]
    note = (
        f"{result.raters} raters. A tie counts half. Intervals resample prompts; the exact sign test counts a prompt "
        "once, by its majority, and drops tied prompts."
    )
    return Table(f"{result.model_a} against {result.model_b}", columns, rows, note)


def _prompts(outcome: Outcome) -> str:
    return f"{outcome.prompts_won} / {outcome.prompts_tied} / {outcome.prompts_lost}"


def _check_table(result: StudyResult) -> Table:
    def shown(interval: Interval | None) -> Cell:
        return Figure.of(interval, f"study {result.study}") if interval else None

    rows: list[list[Cell]] = [
        ["repeated pairs answered alike with sides swapped", shown(result.consistency)],
        ["answers for the left picture (ties left out)", shown(result.left)],
    ]
    return Table("How far the raters can be trusted", ["check", Column("share", "share")], rows)
