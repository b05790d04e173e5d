"""Synthetic raters of known strengths: the whole loop can be tried before anybody is asked, and intervals be checked.

    u = theta_a - theta_b + effect(prompt, pair) +- bias for the left side + logistic noise;   |u| < width is a tie

A careless rater answers at random and fast.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.human.answers import Answer
from eval.human.bradley_terry import bradley_terry
from eval.human.errors import StudyError
from eval.human.gold import ANSWERS, GOLD, has_answer
from eval.human.importing import to_votes
from eval.human.key import SCHEMA, Item, Key, item_of, make_key
from eval.human.layout import lay_out
from eval.human.outcomes import Outcome, Standing
from eval.human.study import Study
from eval.human.votes import Vote

SLIP = 0.03  # an attentive rater's share of wrong answers to controls
BEGAN = datetime(2026, 1, 5, 9)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is true of synthetic raters, strengths in nats by the order of the models.

    noise: standard deviation of how a prompt changes a pair; width: of ties; bias: for the left side; careless: share
    of raters who do not look.
    """

    strengths: tuple[float, ...]
    noise: float = 0.5
    width: float = 0.3
    bias: float = 0.0
    careless: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no law of answers."""
        values = (*self.strengths, self.noise, self.width, self.bias, self.careless)
        if not np.isfinite(values).all() or len(self.strengths) < 2:
            raise StudyError(f"strengths {self.strengths} and noise, width, bias, careless: expected finite numbers")
        if self.noise < 0 or self.width < 0 or not 0 <= self.careless < 1:
            raise StudyError("noise and width: expected at least 0; careless: a share from 0 to below 1")

    def win_rate(self, a: int, b: int) -> float:
        """Expected win rate of model a over b among attentive raters, ties half, over prompts and sides."""
        nodes, weights = _normal_nodes()
        d = self.strengths[a] - self.strengths[b] + self.noise * nodes[:, None] + np.array([self.bias, -self.bias])
        score = 0.5 + 0.5 * (_sigmoid(d - self.width) - _sigmoid(-d - self.width))
        return float((weights[:, None] * score).sum() / (2 * weights.sum()))

    def theta(self) -> NDArray[np.float64]:
        """The strengths that a fit finds with endless votes: noise and ties draw them together."""
        wins = np.zeros((len(self.strengths),) * 2)
        for a, b in itertools.permutations(range(len(wins)), 2):
            wins[a, b] = self.win_rate(a, b)
        return bradley_terry(wins)


def synthetic_key(study: Study, prompts: Sequence[str], rng: np.random.Generator) -> Key:
    """The key of a study without pictures, for synthetic raters."""
    secret = rng.bytes(8).hex()
    blocks = lay_out(study, len(prompts), rng, truth=True)
    items = [
        item_of(study, secret, block, at, prompts[place.unit.prompt])
        for block in blocks
        for at, place in enumerate(block.places)
    ]
    return make_key(study, "synthetic", secret, "0" * 16, items)


def answer_pages(key: Key, truth: Truth, rng: np.random.Generator) -> list[dict[str, Any]]:
    """What the raters of all blocks would save as votes.json, one rater for each block."""
    if key.mode != "pairwise":
        raise StudyError("synthetic raters compare pairs: give a study of mode pairwise")
    if len(key.models) != len(truth.strengths):
        raise StudyError(f"{len(truth.strengths)} strengths for {len(key.models)} models: give one for each")
    effects: dict[tuple[str, ...], float] = {}
    blocks: dict[int, list[Item]] = {}
    for item in key.items.values():
        blocks.setdefault(item.block, []).append(item)
    careless = set(rng.permutation(list(blocks))[: round(truth.careless * len(blocks))].tolist())
    made = []
    for block, items in blocks.items():
        clock, votes = BEGAN, []
        for item in items:
            for criterion in key.criteria:
                chosen, took = _answer(key, truth, item, criterion, block in careless, effects, rng)
                clock += timedelta(milliseconds=took)
                at = clock.isoformat(timespec="milliseconds") + "Z"
                votes.append({"item": item.id, "criterion": criterion, "choice": chosen, "rt_ms": took, "at": at})
        made.append({"schema": SCHEMA, "study": key.study, "block": block, "page": key.page,
                     "rater": f"rater{block}{'-careless' if block in careless else ''}", "votes": votes})  # fmt: skip
    return made


def synthetic_votes(study: Study, prompts: int, truth: Truth, rng: np.random.Generator) -> list[Vote]:
    """The table of one simulated study, without pictures and files."""
    key = synthetic_key(study, [f"prompt {i}" for i in range(prompts)], rng)
    answers = [
        Answer(
            Path("simulated"), vote["item"], page["rater"], vote["criterion"], vote["choice"], vote["rt_ms"], vote["at"]
        )
        for page in answer_pages(key, truth, rng)
        for vote in page["votes"]
    ]
    return to_votes(answers, key)


@dataclass(frozen=True)
class Recovered:
    """One figure of a simulated study: what is true and what was found with its interval."""

    what: str
    true: float
    value: float
    low: float
    high: float

    @property
    def covered(self) -> bool:
        """Whether the interval holds the truth."""
        return self.low <= self.true <= self.high


def recovered(
    outcomes: Sequence[Outcome], standings: Sequence[Standing], models: Sequence[str], truth: Truth
) -> list[Recovered]:
    """Win rates and strengths beside the truth."""
    place = {model: at for at, model in enumerate(models)}
    theta = truth.theta()
    found = []
    for one in outcomes:
        true = truth.win_rate(place[one.model_a], place[one.model_b])
        rate = one.win_rate
        name = f"{one.criterion}: {one.model_a} over {one.model_b}"
        found.append(Recovered(name, true, rate.value, rate.low, rate.high))
    for standing in standings:
        for row in standing.strengths:
            name = f"{standing.criterion}: strength of {row.model}"
            true = float(theta[place[row.model]])
            found.append(Recovered(name, true, row.theta.value, row.theta.low, row.theta.high))
    return found


def _answer(key: Key, truth: Truth, item: Item, criterion: str, careless: bool, effects: dict[tuple[str, ...], float],
            rng: np.random.Generator) -> tuple[str, int]:  # fmt: skip
    """The answer on the screen, and how many milliseconds it took."""
    if careless:
        return str(rng.choice(key.choices)), int(rng.integers(300, 1200))
    took = int(np.exp(rng.normal(np.log(4500), 0.4)))
    if item.kind == "gold":
        if not has_answer(item.first, criterion):
            return "tie", took
        slipped = rng.random() < SLIP
        right = ANSWERS[item.first.removeprefix(GOLD)][0]
        return ("right" if right == "tie" or item.first_left else "left") if slipped else _sided(right, item), took
    name = (item.prompt_id, item.first, item.second, criterion)
    if name not in effects:
        effects[name] = float(rng.normal(0, truth.noise))
    a, b = key.models.index(item.first), key.models.index(item.second)
    d = truth.strengths[a] - truth.strengths[b] + effects[name] + (truth.bias if item.first_left else -truth.bias)
    u = d + rng.logistic()
    return _sided("tie" if abs(u) < truth.width else "a" if u > 0 else "b", item), took


def _sided(choice: str, item: Item) -> str:
    """A choice between models as one between sides."""
    if choice not in ("a", "b"):
        return choice
    return "left" if (choice == "a") == item.first_left else "right"


@functools.cache
def _normal_nodes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and weights of a mean over a standard normal law (Gauss-Hermite)."""
    return np.polynomial.hermite_e.hermegauss(60)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))
