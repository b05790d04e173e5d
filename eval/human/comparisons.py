"""Pairwise votes as win matrices, of all votes and of many resamples: prompts are drawn again, never single votes.

Votes on one prompt are not independent, nor are those of one rater; the second factor is optional, since it widens
intervals to what another group of raters might have said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from eval.human.errors import StudyError
from eval.human.votes import SCORE, Vote
from eval.interval import RESAMPLES, Interval, wilson_of

Resample = Literal["prompts", "prompts and raters"]
CHUNK = 100  # two-way resamples at once


@dataclass(frozen=True)
class Comparisons:
    """Votes on one criterion: numbers of prompt, rater and models (V,), and score of the first model, 1, 1/2 or 0."""

    models: tuple[str, ...]
    prompt: NDArray[np.int64]
    rater: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    score: NDArray[np.float64]

    @classmethod
    def of(cls, votes: Sequence[Vote], models: Sequence[str]) -> "Comparisons":
        """The votes of one criterion, without controls and repeats."""
        if not votes:
            raise StudyError("there are no votes to compare: import votes, or exclude fewer raters")
        place = {model: at for at, model in enumerate(models)}
        prompts = {name: at for at, name in enumerate(dict.fromkeys(vote.prompt_id for vote in votes))}
        raters = {name: at for at, name in enumerate(dict.fromkeys(vote.rater_id for vote in votes))}
        return cls(
            tuple(models),
            np.array([prompts[vote.prompt_id] for vote in votes]),
            np.array([raters[vote.rater_id] for vote in votes]),
            np.array([place[vote.model_a] for vote in votes]),
            np.array([place[vote.model_b] for vote in votes]),
            np.array([SCORE[vote.choice] for vote in votes]),
        )

    def wins(self) -> NDArray[np.float64]:
        """W (M, M): votes for the model of the row over that of the column, ties half."""
        return self._by_prompt().sum(0).reshape(len(self.models), len(self.models))

    def resampled(self, how: Resample, *, seed: int, draws: int = RESAMPLES) -> NDArray[np.float64]:
        """Win matrices (B, M, M) of resamples of whole prompts, or of prompts and raters (two-way bootstrap)."""
        rng = np.random.default_rng(seed)
        prompts, raters = int(self.prompt.max()) + 1, int(self.rater.max()) + 1
        if how == "prompts":
            made = _weights(rng, draws, prompts) @ self._by_prompt()
        else:
            parts, cells = [], self._cells()
            for start in range(0, draws, CHUNK):
                count = min(CHUNK, draws - start)
                weights = _weights(rng, count, prompts)[:, self.prompt] * _weights(rng, count, raters)[:, self.rater]
                parts.append(np.asarray(cells.T @ weights.T).T)
            made = np.concatenate(parts)
        return made.reshape(draws, len(self.models), len(self.models))

    def prompts_of(self, first: int, second: int) -> dict[int, float]:
        """Of every prompt that shows a pair, the sum of scores less one half: above 0 where most prefer the first."""
        chosen = (self.first == first) & (self.second == second)
        sums = np.bincount(self.prompt[chosen], self.score[chosen] - 0.5)
        return {int(prompt): float(sums[prompt]) for prompt in np.unique(self.prompt[chosen])}

    def _by_prompt(self) -> NDArray[np.float64]:
        """The win matrix of every prompt (P, M M)."""
        models = len(self.models)
        made = np.zeros((int(self.prompt.max()) + 1, models * models))
        np.add.at(made, (self.prompt, self.first * models + self.second), self.score)
        np.add.at(made, (self.prompt, self.second * models + self.first), 1 - self.score)
        return made

    def _cells(self) -> sparse.csr_matrix:
        """Each vote's share of the win matrix (V, M M)."""
        models, votes = len(self.models), np.arange(len(self.score))
        won, lost = self.first * models + self.second, self.second * models + self.first
        values = np.concatenate([self.score, 1 - self.score])
        places = (np.concatenate([votes, votes]), np.concatenate([won, lost]))
        return sparse.csr_matrix((values, places), shape=(len(votes), models * models))


def rate_interval(value: float, drawn: NDArray[np.float64], prompts: int, votes: int) -> Interval:
    """The interval of a share of votes whose spread over resamples is known: Wilson's, of as many as vary alike."""
    known = drawn[np.isfinite(drawn)]
    spread = float(known.var()) * prompts / (prompts - 1) if len(known) and prompts > 1 else 0.0
    return wilson_of(value, spread, votes, clusters=prompts)


def _weights(rng: np.random.Generator, draws: int, units: int) -> NDArray[np.float64]:
    """How often each unit is drawn in each resample (B, U)."""
    return rng.multinomial(units, np.full(units, 1 / units), draws).astype(np.float64)
