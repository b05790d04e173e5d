"""Splits of several sets behind one another, as one split that is drawn by weight."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from pipelines.data.decode import Sample
from pipelines.data.mixture import Mixture, each_once
from pipelines.data.order import Order
from pipelines.data.shards import Split


@dataclass(frozen=True)
class Part:
    """The split of one set. weight: its share of what is drawn, relative to those of the others."""

    name: str
    split: Split
    weight: float


class Joined:
    """Several splits as one: the samples of each are numbered behind those of the sets before it."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.name = self.parts[0].split.name
        self._starts = (0, *accumulate(self._lengths))

    @property
    def _lengths(self) -> list[int]:
        return [len(part.split) for part in self.parts]

    @property
    def _weights(self) -> list[float]:
        return [part.weight for part in self.parts]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: int) -> Sample:
        part, number = self._find(i)
        return part.split[number]

    def _find(self, i: int) -> tuple[Part, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        which = bisect_right(self._starts, i) - 1
        return self.parts[which], i - self._starts[which]

    def name_of(self, i: int) -> str:
        """Key, shard and set of sample i, for messages."""
        part, number = self._find(i)
        return f"{part.split.name_of(number)} of {part.name}"

    def set_of(self, i: int) -> tuple[str, int]:
        """The set of sample i, and how many samples it has."""
        part, _ = self._find(i)
        return part.name, len(part.split)

    def sets(self) -> list[tuple[Split, float]]:
        """The splits that it is made of, and the share of each in what is drawn."""
        return [(part.split, part.weight / sum(self._weights)) for part in self.parts]

    def hold(self, at_once: int) -> None:
        """Make room for a reader that goes to and fro between so many shards of each set."""
        for part in self.parts:
            part.split.hold(at_once, beside=len(self.parts))

    def ahead(self, shards: Sequence[int]) -> None:
        """Say which shards will be read next, numbered like the samples, behind those of the sets before."""
        starts = (0, *accumulate(len(part.split.shards) for part in self.parts))
        for part, begin, end in zip(self.parts, starts, starts[1:], strict=False):
            part.split.ahead([number - begin for number in shards if begin <= number < end])

    def order(self, seed: int, block: int) -> Order:
        """The endless shuffled order: sets by weight, each in an order of its own."""
        seeds = [int(np.random.SeedSequence((seed, k)).generate_state(1)[0]) for k in range(len(self.parts))]
        orders = [part.split.order(own, block) for part, own in zip(self.parts, seeds, strict=True)]
        return Mixture(orders, self._lengths, self._weights, seed, [len(part.split.shards) for part in self.parts])

    def once(self, seed: int | None = None) -> Iterable[int]:
        """Every number once, by weight as long as every set has some left; within a set in order, or shuffled."""
        numbers = [iter(part.split.once(seed)) for part in self.parts]
        for k, _ in each_once(self._lengths, self._weights, seed or 0):
            yield self._starts[k] + next(numbers[k])

    def captions(self) -> Iterator[str]:
        """Every caption, set by set; broken and empty ones are left out."""
        for part in self.parts:
            yield from part.split.captions()


AnySplit = Split | Joined


def joined(parts: Sequence[Part]) -> AnySplit:
    """One split of several; a single one stays what it is."""
    return Joined(parts) if len(parts) > 1 else parts[0].split
