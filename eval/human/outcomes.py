"""What people said: win rates and strengths per criterion from pairs, mean grades and their differences from grades."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from eval.human.bradley_terry import SCALE, bradley_terry, cycles, fit, groups, separated
from eval.human.comparisons import Comparisons, Resample, rate_interval
from eval.human.votes import Vote
from eval.interval import RESAMPLES, Interval, ends, mean_interval


@dataclass(frozen=True)
class Outcome:
    """One pair on one criterion. difference: mean grade of model_a less that of model_b, where grades were given.

    wins, ties, both_bad, losses: votes, or prompts where grades were given. win_rate: of model_a, ties half. p: exact
    two-sided sign test on prompts by their majority, tied ones dropped; p_holm: corrected over criteria and pairs.
    """

    criterion: str
    model_a: str
    model_b: str
    wins: int
    ties: int
    both_bad: int
    losses: int
    win_rate: Interval
    difference: Interval | None
    prompts_won: int
    prompts_tied: int
    prompts_lost: int
    p: float
    p_holm: float


@dataclass(frozen=True)
class Strength:
    """A model's place on one criterion: strength in nats (sum 0), points above the anchor, rank, chance to be first."""

    criterion: str
    model: str
    theta: Interval
    points: Interval
    rank: Interval
    p_best: float


@dataclass(frozen=True)
class Standing:
    """The strengths on one criterion and what to know about them; `wins` is the matrix behind them.

    classes: where one class won everything against the next, best first; loops: Condorcet cycles; dropped: resamples
    that fell apart.
    """

    criterion: str
    anchor: str
    strengths: tuple[Strength, ...]
    wins: tuple[tuple[float, ...], ...]
    classes: tuple[tuple[str, ...], ...]
    loops: tuple[tuple[str, ...], ...]
    dropped: int


@dataclass(frozen=True)
class Grade:
    """A model's mean grade on one criterion, 1 to 5; the interval resamples prompts."""

    criterion: str
    model: str
    mean: Interval


def pair_outcomes(made: Comparisons, votes: Sequence[Vote], drawn: np.ndarray, criterion: str) -> list[Outcome]:
    """The outcomes of every pair that was shown; drawn: resampled win matrices (B, M, M)."""
    wins, found = made.wins(), []
    for i, j in combinations(range(len(made.models)), 2):
        if not wins[i, j] + wins[j, i]:
            continue
        count = Counter(v.choice for v in votes if (v.model_a, v.model_b) == (made.models[i], made.models[j]))
        scores = list(made.prompts_of(i, j).values())
        with np.errstate(invalid="ignore"):
            rates = drawn[:, i, j] / (drawn[:, i, j] + drawn[:, j, i])
        cast = wins[i, j] + wins[j, i]
        rate = rate_interval(float(wins[i, j] / cast), rates, len(scores), round(cast))
        won, lost = sum(s > 0 for s in scores), sum(s < 0 for s in scores)
        p = sign_test(won, lost)
        counts = (count["a"], count["tie"], count["both_bad"], count["b"])
        found.append(Outcome(criterion, made.models[i], made.models[j], *counts, rate, None,
                             won, len(scores) - won - lost, lost, p, p))  # fmt: skip
    return found


def standing(made: Comparisons, drawn: np.ndarray, criterion: str, anchor: str) -> Standing:
    """Strengths of all models. Raises StudyError where the comparisons fall apart into groups."""
    wins = made.wins()
    theta = bradley_terry(wins, made.models)
    thetas = fit(drawn)  # (B, M)
    kept = thetas[np.isfinite(thetas).all(1)]
    ranks = (kept[:, None, :] > kept[:, :, None] + 1e-9).sum(-1) + 1  # (B, M)
    base = made.models.index(anchor)
    order = (theta[None, :] > theta[:, None] + 1e-9).sum(-1) + 1
    n = int(made.prompt.max()) + 1
    rows = [
        Strength(
            criterion,
            model,
            _over(theta[m], kept[:, m], n),
            _over(SCALE * (theta[m] - theta[base]), SCALE * (kept[:, m] - kept[:, base]), n),
            _over(order[m], ranks[:, m], n),
            float((ranks[:, m] == 1).mean()) if len(kept) else float("nan"),
        )
        for m, model in enumerate(made.models)
    ]

    def named(parts: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(made.models[i] for i in part) for part in parts)

    rows.sort(key=lambda row: -row.theta.value)
    table = tuple(tuple(map(float, row)) for row in wins)
    lost = len(thetas) - len(kept)
    return Standing(criterion, anchor, tuple(rows), table, named(separated(wins)), named(cycles(wins)), lost)


def compared(votes: Sequence[Vote], models: Sequence[str], criterion: str, how: Resample, anchor: str, seed: int,
             draws: int = RESAMPLES) -> tuple[list[Outcome], Standing | None]:  # fmt: skip
    """Outcomes and strengths on one criterion; no strengths where the models were not all linked by votes."""
    made = Comparisons.of(votes, models)
    drawn = made.resampled(how, seed=seed, draws=draws)
    outcomes = pair_outcomes(made, votes, drawn, criterion)
    linked = len(groups(made.wins())) == 1
    return outcomes, standing(made, drawn, criterion, anchor) if linked else None


def graded(
    votes: Sequence[Vote], models: Sequence[str], criterion: str, seed: int
) -> tuple[list[Outcome], list[Grade]]:
    """Mean grades, and differences of two models over the prompts that both were graded on."""
    by: dict[str, dict[str, list[int]]] = {model: defaultdict(list) for model in models}
    for vote in votes:
        by[vote.model_a][vote.prompt_id].append(vote.strength)
    grades = []
    for model in models:
        rows = [(grade, prompt) for prompt, given in by[model].items() for grade in given]
        if rows:
            values, prompts = zip(*rows, strict=True)
            grades.append(Grade(criterion, model, mean_interval(values, prompts, seed=seed)))
    means = {model: {prompt: float(np.mean(given)) for prompt, given in by[model].items()} for model in models}
    outcomes = []
    for a, b in combinations(models, 2):
        shared = [prompt for prompt in means[a] if prompt in means[b]]
        if shared:
            outcomes.append(_graded_pair(criterion, a, b, [means[a][p] - means[b][p] for p in shared]))
    return outcomes, grades


def with_holm(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """The outcomes with p values corrected over all of them."""
    corrected = holm([outcome.p for outcome in outcomes])
    return tuple(dataclasses.replace(o, p_holm=p) for o, p in zip(outcomes, corrected, strict=True))


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


def _graded_pair(criterion: str, a: str, b: str, gaps: list[float]) -> Outcome:
    won, lost = sum(g > 0 for g in gaps), sum(g < 0 for g in gaps)
    tied, n = len(gaps) - won - lost, len(gaps)
    rate = (won + tied / 2) / n
    draws = np.random.default_rng(0).multinomial(n, np.array([won, tied, lost]) / n, RESAMPLES)
    win_rate = rate_interval(rate, (draws[:, 0] + draws[:, 1] / 2) / n, n, n)
    p = sign_test(won, lost)
    return Outcome(criterion, a, b, won, tied, 0, lost, win_rate, mean_interval(gaps), won, tied, lost, p, p)


def _over(value: float, drawn: np.ndarray, n: int) -> Interval:
    if not len(drawn):
        return Interval(float(value), -np.inf, np.inf, n)
    return Interval(float(value), *ends(drawn, n), n)
