"""How well automatic metrics agree with people: over the models of a study, and over its prompts where known."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from eval.human.bradley_terry import fit
from eval.human.comparisons import Comparisons, Resample
from eval.human.votes import SCORE, Vote
from eval.interval import Interval, ends, share_interval

DRAWS = 500
Values = Mapping[str, Mapping[str, float]]  # metric -> model -> value, higher is better
PromptValues = Mapping[str, Mapping[str, Mapping[str, float]]]  # metric -> model -> prompt id -> value


@dataclass(frozen=True)
class Fit:
    """How a metric agrees with people on one criterion.

    over: "models" (n pairs of models, the interval is that of people's strengths) or "prompts" (pairs of pictures with
    a majority; the interval resamples prompts). accuracy: share of pairs that the metric orders as people do, its ties
    half; 0.5 is chance. tau: Kendall's tau-b, None where fewer than three values are there.
    """

    criterion: str
    metric: str
    over: str
    accuracy: Interval
    tau: float | None


def over_models(votes: Sequence[Vote], models: Sequence[str], criterion: str, values: Values, how: Resample,
                seed: int) -> list[Fit]:  # fmt: skip
    """Metrics against strengths; those that are not known of two models at least are left out."""
    own = [vote for vote in votes if vote.criterion == criterion]
    made = Comparisons.of(own, models)
    theta = fit(made.wins()[None])[0]
    drawn = fit(made.resampled(how, seed=seed, draws=DRAWS))
    found = []
    for metric, given in values.items():
        known = [at for at, model in enumerate(models) if np.isfinite(given.get(model, np.nan))]
        if len(known) < 2 or not np.isfinite(theta[known]).all():
            continue
        x = np.array([given[models[at]] for at in known])
        accuracy = _ordered(x, theta[None, known])[0]
        draws = _ordered(x, drawn[np.isfinite(drawn).all(1)][:, known])
        pairs = len(known) * (len(known) - 1) // 2
        tau = _tau(x, theta[known])
        enough = len(known) > 2 and len(draws) > 0  # one pair of models alone is right or wrong, without a spread
        low, high = ends(draws, len(set(made.prompt.tolist()))) if enough else (-np.inf, np.inf)
        whole = Interval(float(accuracy), low, high, pairs)
        found.append(Fit(criterion, metric, "models", whole, tau))
    return found


def over_prompts(votes: Sequence[Vote], criterion: str, values: PromptValues) -> list[Fit]:
    """Metrics against the majority on each pair of pictures; pairs without a majority are left out."""
    sums: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for vote in votes:
        if vote.criterion == criterion:
            sums[vote.prompt_id, vote.model_a, vote.model_b] += SCORE[vote.choice] - 0.5
    found = []
    for metric, given in values.items():
        rows = []
        for (prompt, a, b), score in sums.items():
            first, second = given.get(a, {}).get(prompt), given.get(b, {}).get(prompt)
            if score and first is not None and second is not None:
                rows.append((prompt, first - second, score))
        if len(rows) < 2:
            continue
        prompts, gaps, scores = (list(column) for column in zip(*rows, strict=True))
        agreed = [0.5 if not gap else float((gap > 0) == (score > 0)) for gap, score in zip(gaps, scores, strict=True)]
        tau = _tau(gaps, scores)
        found.append(Fit(criterion, metric, "prompts", share_interval(agreed, prompts), tau))
    return found


def _tau(x: ArrayLike, y: ArrayLike) -> float | None:
    """Kendall's tau-b; None for fewer than three values, or where one side is constant."""
    tau = float(np.asarray(stats.kendalltau(x, y))[0]) if len(np.asarray(x)) > 2 else np.nan
    return tau if np.isfinite(tau) else None


def _ordered(x: NDArray[np.float64], theta: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of pairs of models that x (M,) orders as strengths (B, M) do, ties of either half; (B,)."""
    pairs = list(combinations(range(len(x)), 2))
    signs = np.array([np.sign(x[i] - x[j]) for i, j in pairs])
    people = np.stack([np.sign(theta[:, i] - theta[:, j]) for i, j in pairs], 1)
    return (0.5 + 0.5 * signs * people).mean(1)
