"""How large a study must be: prompts for a difference that is to be found, power, raters, hours and price."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from eval.human.errors import StudyError


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What is asked for.

    mde: the least win rate above one half that is to be found; raters: who see every pair; rho: how alike the votes on
    one pair are (intraclass correlation); ties: share of prompts that end in a tie, which the sign test drops; tests:
    how many are made, for Holm's correction at its first step; seconds: for a pair and a question; block: pairs for one
    rater; rate: pay per hour, in any currency.
    """

    mde: float = 0.05
    power: float = 0.8
    alpha: float = 0.05
    raters: int = 4
    rho: float = 0.3
    ties: float = 0.0
    tests: int = 1
    pairs: int = 1
    criteria: int = 1
    seconds: float = 6.0
    block: int = 60
    rate: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no study can be planned for."""
        for name, low, high in (("mde", 0, 0.5), ("power", 0, 1), ("alpha", 0, 1)):
            if not low < getattr(self, name) < high:
                raise StudyError(f"{name} is {getattr(self, name)}: expected above {low} and below {high}")
        for name in ("rho", "ties"):
            if not 0 <= getattr(self, name) < 1:
                raise StudyError(f"{name} is {getattr(self, name)}: expected a share from 0 to below 1")
        for name in ("raters", "tests", "pairs", "criteria", "block"):
            if getattr(self, name) < 1:
                raise StudyError(f"{name} is {getattr(self, name)}: expected at least 1")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise StudyError(f"seconds is {self.seconds}: expected a time above 0 for one question")
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate >= 0):
            raise StudyError(f"rate is {self.rate}: expected what an hour is paid, at least 0")


@dataclass(frozen=True)
class Planned:
    """What it takes: independent votes, the design effect, prompts, power of the exact test, people and time."""

    votes: int
    deff: float
    prompts: int
    exact_power: float
    judgements: int
    blocks: int
    hours: float
    price: float | None


def votes_needed(rate: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Independent votes that find a win rate p other than 1/2 (two-sided, normal approximation).

    n = ((z_(1 - alpha/2) / 2 + z_power sqrt(p (1 - p))) / (p - 1/2))^2
    """
    if not 0 < rate < 1 or rate == 0.5:
        raise StudyError(f"a win rate of {rate} cannot be planned for: expected between 0 and 1, and not 0.5")
    near, far = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)
    return math.ceil(((near / 2 + far * math.sqrt(rate * (1 - rate))) / (rate - 0.5)) ** 2)


def sign_test_power(n: int, rate: float, *, alpha: float = 0.05) -> float:
    """Power of the exact two-sided sign test on n votes that are no ties."""
    wins = np.arange(n + 1)
    p = np.minimum(1, 2 * stats.binom.cdf(np.minimum(wins, n - wins), n, 0.5))
    return float(stats.binom.pmf(wins[p <= alpha], n, rate).sum())


def design_effect(raters: int, rho: float) -> float:
    """How many votes are worth one where m raters judge the same pair (Kish 1965): 1 + (m - 1) rho."""
    return 1 + (raters - 1) * rho


def planned(asked: Effort) -> Planned:
    """The size of a study; its prompts are rounded up."""
    rate, alpha = 0.5 + asked.mde, asked.alpha / asked.tests
    votes = votes_needed(rate, alpha=alpha, power=asked.power)
    deff = design_effect(asked.raters, asked.rho)
    prompts = math.ceil(votes * deff / asked.raters / (1 - asked.ties))
    shown = prompts * asked.raters * asked.pairs
    effective = math.floor(prompts * (1 - asked.ties) * asked.raters / deff)
    hours = shown * asked.criteria * asked.seconds / 3600
    return Planned(
        votes=votes,
        deff=deff,
        prompts=prompts,
        exact_power=sign_test_power(effective, rate, alpha=alpha),
        judgements=shown * asked.criteria,
        blocks=math.ceil(shown / asked.block),
        hours=hours,
        price=None if asked.rate is None else hours * asked.rate,
    )
