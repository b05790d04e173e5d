"""Several sets drawn by weight: whose turn it is at each position, a pure function of (seed, position).

A period holds of each set a whole number of turns, so that the turns before any position are known without looking at
them. Within a period every set's turns are spread: one falls, at random, into each of as many equal parts as it has.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate
from itertools import count as count_from
from math import gcd, lcm
from typing import Any

import numpy as np

from pipelines.data.order import Order
from pipelines.data.recent import Recent

LONGEST = 10_000  # positions of a period at most
TABLE = 4096  # positions that are laid out at once, in whole periods
KEPT = 4  # tables in memory: a reader that looks ahead comes back


def whole_turns(weights: Sequence[float]) -> tuple[int, ...]:
    """Turns of each set in the shortest period in which the weights are whole numbers.

    Where that would be longer than LONGEST positions, shares are rounded to that many, the largest remainders up.
    Raises ValueError for a weight that is not above 0, and for a share of less than one in LONGEST.
    """
    if not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"weights are {list(weights)}, expected numbers above 0")
    exact = [Fraction(str(weight)) for weight in weights]  # as they are written: 0.1 is a tenth
    scale = lcm(*(weight.denominator for weight in exact))
    turns = [int(weight * scale) for weight in exact]
    turns = [count // gcd(*turns) for count in turns]
    if (total := sum(turns)) <= LONGEST:
        return tuple(turns)
    if min(turns) * LONGEST < total:
        raise ValueError(
            f"weights are {list(weights)}, of which the least draws less than one sample in {LONGEST:,}: raise it, or "
            "leave that set out"
        )
    rounded = [count * LONGEST // total for count in turns]
    largest = sorted(range(len(turns)), key=lambda k: -(turns[k] * LONGEST % total))
    for k in largest[: LONGEST - sum(rounded)]:
        rounded[k] += 1
    return tuple(rounded)


class Turns:
    """Whose turn it is at each position, and which of its turns that is.

    Each period holds exactly the turns of each set; any window of positions holds of a set with share s what its length
    asks for, within 2 (1 + K s) of K sets. Picklable; tables are made again when asked for.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self.turns, self.seed = whole_turns(weights), seed
        self.period = sum(self.turns)
        self._periods = max(1, TABLE // self.period)  # in a table
        self._tables: Recent[np.ndarray] = Recent(KEPT)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_tables"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tables = Recent(KEPT)

    def at(self, position: int) -> tuple[int, int]:
        """Number of the set at a position, and how many earlier positions are that set's."""
        period, place = divmod(position, self.period)
        table, row = divmod(period, self._periods)
        which, turn = self._tables.get(table, self._lay_out)[row, place].tolist()
        return which, period * self.turns[which] + turn

    def before(self, position: int) -> list[int]:
        """How many of the positions before this one are each set's."""
        period, place = divmod(position, self.period)
        table, row = divmod(period, self._periods)
        earlier = self._tables.get(table, self._lay_out)[row, :place, 0]
        counts = np.bincount(earlier, minlength=len(self.turns)).tolist()
        return [period * turns + count for turns, count in zip(self.turns, counts, strict=True)]

    def position(self, which: int, turn: int) -> int:
        """The position at which a set has one of its turns."""
        period, own = divmod(turn, self.turns[which])
        table, row = divmod(period, self._periods)
        places = self._tables.get(table, self._lay_out)[row]
        return period * self.period + int(np.flatnonzero(places[:, 0] == which)[own])

    def _lay_out(self, table: int) -> np.ndarray:
        return spread(self.turns, self._periods, np.random.default_rng((self.seed, table)))


def spread(turns: Sequence[int], periods: int, rng: np.random.Generator) -> np.ndarray:
    """Lay out periods with so many turns of each: whose a place is and which of its turns, (periods, places, 2).

    One turn falls, at random, into each of as many equal parts of a period as there are.
    """
    which = np.repeat(np.arange(len(turns)), turns)  # (P,)
    turn = np.concatenate([np.arange(count) for count in turns])
    times = (turn + rng.random((periods, len(which)))) / np.asarray(turns)[which]
    return np.stack([which, turn], 1)[times.argsort(1)]


class Mixture(Order):
    """An order over several sets: each has an order of its own and goes on in it at its turns alone.

    parts: their orders; lengths: their samples; shards: how many each has. The samples of a set are numbered behind
    those of the sets before it, and so are shards.
    """

    def __init__(
        self, parts: Sequence[Order], lengths: Sequence[int], weights: Sequence[float], seed: int, shards: Sequence[int]
    ) -> None:
        self.parts = tuple(parts)
        self._shards = (0, *accumulate(shards))
        self.turns = Turns(weights, seed)
        self._starts = (0, *accumulate(lengths))

    @property
    def at_once(self) -> int:
        """Shards of the set that needs most of them."""
        return max(part.at_once for part in self.parts)

    def number(self, position: int) -> int:
        """Number of the sample at a position."""
        which, cursor = self.turns.at(position)
        return self._starts[which] + self.parts[which].number(cursor)

    def group(self, position: int) -> tuple[list[int], int]:
        """The shards of all sets' groups at a position, and the first behind it where one of them is through."""
        found, ends = list[int](), list[int]()
        for k, cursor in enumerate(self.turns.before(position)):
            shards, end = self.parts[k].group(cursor)
            found += [self._shards[k] + number for number in shards]
            ends.append(self.turns.position(k, end))
        return found, min(ends)

    def stand_ins(self, position: int) -> Iterator[int]:
        """Numbers that may take the place of a broken sample: of the same set, so that shares stay."""
        which, cursor = self.turns.at(position)
        return (self._starts[which] + number for number in self.parts[which].stand_ins(cursor))


def each_once(lengths: Sequence[int], weights: Sequence[float], seed: int) -> Iterator[tuple[int, int]]:
    """Yield (set, number in it) of every sample once, by weight as long as every set has some left.

    A set that is through leaves its turns to the others.
    """
    done = [0] * len(lengths)
    while left := [k for k, length in enumerate(lengths) if done[k] < length]:
        turns = Turns([weights[k] for k in left], seed)
        for position in count_from():
            k = left[turns.at(position)[0]]
            if done[k] == lengths[k]:
                break
            yield k, done[k]
            done[k] += 1
