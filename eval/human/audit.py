"""How far each rater can be trusted, and who does not count by the rules that were registered before the first vote."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.human.criteria import TAGGED
from eval.human.gold import as_expected, has_answer
from eval.human.study import Exclude
from eval.human.votes import TIES, Vote
from eval.interval import Interval, share_interval


@dataclass(frozen=True)
class Rater:
    """One rater: answers without controls, then shares (None where there was nothing to judge by), and why excluded.

    gold: controls answered as expected, of `golds`; alike: repeated pairs answered alike, of `repeats`; left: answers
    for the left picture among those that were no tie; same: share of the commonest answer on the screen.
    """

    rater: str
    answers: int
    golds: int
    gold: float | None
    repeats: int
    alike: float | None
    median_ms: float | None
    left: float | None
    same: float | None
    ties: float | None
    excluded: tuple[str, ...]


def audit(votes: Sequence[Vote], rules: Exclude) -> list[Rater]:
    """Every rater by name, judged by the rules."""
    by: defaultdict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        if vote.criterion != TAGGED:
            by[vote.rater_id].append(vote)
    return [_judged(name, by[name], rules) for name in sorted(by)]


def consistency(votes: Sequence[Vote]) -> Interval | None:
    """Share of repeated pairs that were answered alike, over prompts; None where nothing was repeated."""
    alike = _alike(votes)
    return share_interval([same for same, _ in alike], [prompt for _, prompt in alike]) if alike else None


def left_share(votes: Sequence[Vote]) -> Interval | None:
    """Share of answers for the left picture, ties and controls left out; 0.5 without a bias for a side."""
    chosen = [vote for vote in votes if vote.choice in ("a", "b") and not vote.is_gold]
    values = [float(_for_left(vote)) for vote in chosen]
    return share_interval(values, [vote.prompt_id for vote in chosen]) if chosen else None


def _judged(name: str, votes: Sequence[Vote], rules: Exclude) -> Rater:
    gold = [as_expected(v.model_a, v.choice) for v in votes if v.is_gold and has_answer(v.model_a, v.criterion)]
    alike = [same for same, _ in _alike(votes)]
    own = [vote for vote in votes if not vote.is_gold]
    times = [vote.rt_ms for vote in votes if vote.rt_ms is not None]
    sides = [_for_left(vote) for vote in own if vote.choice in ("a", "b")]
    seen = [_on_screen(vote) for vote in own]
    found = {
        "gold": _mean(gold),
        "alike": _mean(alike),
        "median_ms": float(np.median(times)) if times else None,
        "left": _mean(sides),
        "same": max(seen.count(one) for one in set(seen)) / len(seen) if seen else None,
        "ties": _mean([vote.choice in TIES for vote in own]) if own and not own[0].choice.isdigit() else None,
    }
    why = _why(found, len(gold), len(sides), rules)
    return Rater(name, len(own), len(gold), repeats=len(alike), excluded=tuple(why), **found)  # type: ignore[arg-type]


def _why(found: dict[str, float | None], golds: int, sides: int, rules: Exclude) -> list[str]:
    """The rules that a rater breaks; one failed control proves nothing."""
    gold, alike, median, left = found["gold"], found["alike"], found["median_ms"], found["left"]
    why = []
    if rules.min_gold and gold is not None and golds * (1 - gold) > 1.5 and gold < rules.min_gold:
        why.append(f"{gold:.0%} of {golds} controls as expected, below {rules.min_gold:.0%}")
    if rules.min_median_ms and median is not None and median < rules.min_median_ms:
        why.append(f"median time {median / 1000:.1f} s, below {rules.min_median_ms / 1000:.1f} s")
    if rules.min_consistency and alike is not None and alike < rules.min_consistency:
        why.append(f"{alike:.0%} of repeats alike, below {rules.min_consistency:.0%}")
    if rules.max_side and left is not None and sides >= 10 and max(left, 1 - left) > rules.max_side:
        why.append(f"{max(left, 1 - left):.0%} of answers for one side, above {rules.max_side:.0%}")
    return why


def _alike(votes: Sequence[Vote]) -> list[tuple[float, str]]:
    """Of every repeated answer, whether it is that of the first time, with its prompt."""
    first = {_mark(vote): vote for vote in votes if not vote.is_repeat and not vote.is_gold}
    again = [vote for vote in votes if vote.is_repeat and _mark(vote) in first and vote.criterion != TAGGED]
    return [(float(vote.choice == first[_mark(vote)].choice), vote.prompt_id) for vote in again]


def _mark(vote: Vote) -> tuple[str, ...]:
    return vote.rater_id, vote.prompt_id, vote.criterion, vote.model_a, vote.model_b


def _for_left(vote: Vote) -> bool:
    return (vote.choice == "a") == (vote.side == "left")


def _on_screen(vote: Vote) -> str:
    return ("left" if _for_left(vote) else "right") if vote.choice in ("a", "b") else vote.choice


def _mean(values: Sequence[float | bool]) -> float | None:
    return float(np.mean(values)) if values else None
