"""Which sample stands at which position of the endless stream: a pure function of (seed, position).

Nothing is read of what is passed over, so going on at any position costs as much as beginning.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

BLOCK = 16  # shards that are shuffled together where nothing else is said
KEPT = 2  # groups in memory: a reader that looks ahead over the end of one comes back


class Order(Protocol):
    """The way of a reader through a split. Picklable; what it keeps in memory is cheap to make again."""

    @property
    def at_once(self) -> int:
        """Shards from which samples at neighbouring positions come: so many are worth holding open."""
        ...

    def number(self, position: int) -> int:
        """Number in the split of the sample at a position, counted from 0 and without end."""
        ...

    def stand_ins(self, position: int) -> Iterator[int]:
        """Numbers of the samples that may take the place of a broken one, the next first, each at least once."""
        ...

    def group(self, position: int) -> tuple[list[int], int]:
        """The shards from which samples around a position come, and the first position behind it where others do."""
        ...

    def shape(self, position: int) -> tuple[int, int] | None:
        """Height and width to which the picture at a position is brought; None leaves that to the decoder."""
        del position
        return None


class Shuffle(Order):
    """Every sample once an epoch: shards are permuted, then samples within each group of `block` shards in a row.

    sizes: samples of each shard, in the order of their numbers. With `block` shards or fewer an epoch is one
    permutation of all samples, a true shuffle. A jump to anywhere costs a permutation of the shards where the epoch is
    new, and that of one group; two groups at most are in memory, 8 bytes a sample.
    """

    def __init__(self, sizes: Sequence[int] | np.ndarray, seed: int, block: int = BLOCK) -> None:
        check_block(block)
        self.sizes = np.asarray(sizes, np.int64)  # (S,)
        self.seed, self.block = seed, block
        self._starts = np.concatenate([[0], self.sizes.cumsum()])  # (S + 1,)
        self._length = int(self._starts[-1])
        self._layout: tuple[int, np.ndarray, np.ndarray] | None = None  # of an epoch
        self._groups: list[tuple[int, int, np.ndarray]] = []  # first position, the one after the last, numbers

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layout": None, "_groups": []}

    @property
    def at_once(self) -> int:
        """Shards of a group."""
        return min(self.block, len(self.sizes))

    def __len__(self) -> int:
        return self._length

    def number(self, position: int) -> int:
        """Number of the sample at a position."""
        for first, end, numbers in self._groups:
            if first <= position < end:
                return int(numbers[position - first])
        found = self._group(*divmod(position, self._length))
        self._groups = [found, *self._groups[: KEPT - 1]]
        return int(found[2][position - found[0]])

    def stand_ins(self, position: int) -> Iterator[int]:
        """Numbers of the samples behind a position; two epochs hold every sample wherever they start."""
        return map(self.number, range(position + 1, position + 2 * self._length))

    def group(self, position: int) -> tuple[list[int], int]:
        """The shards of the group at a position, and the position after its last sample."""
        epoch, place = divmod(position, self._length)
        if self.block >= len(self.sizes):
            return list(range(len(self.sizes))), (epoch + 1) * self._length
        shards, starts = self._epoch(epoch)
        group = int(np.searchsorted(starts, place, side="right")) - 1
        chosen = shards[group * self.block : (group + 1) * self.block]
        return chosen.tolist(), epoch * self._length + int(starts[group + 1])

    def _group(self, epoch: int, place: int) -> tuple[int, int, np.ndarray]:
        """The group that holds a place of an epoch."""
        start = epoch * self._length
        if self.block >= len(self.sizes):
            return start, start + self._length, np.random.default_rng((self.seed, epoch)).permutation(self._length)
        shards, starts = self._epoch(epoch)
        group = int(np.searchsorted(starts, place, side="right")) - 1
        chosen = shards[group * self.block : (group + 1) * self.block]
        parts = [np.arange(*self._starts[shard : shard + 2].tolist()) for shard in chosen.tolist()]
        # from 1 on: numpy's seeds (a, b) and (a, b, 0) are the same seed, and that one permutes the shards
        numbers = np.random.default_rng((self.seed, epoch, group + 1)).permutation(np.concatenate(parts))
        return start + int(starts[group]), start + int(starts[group + 1]), numbers

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch in their order, and where its groups start and the last one ends."""
        if self._layout is None or self._layout[0] != epoch:
            shards = np.random.default_rng((self.seed, epoch)).permutation(len(self.sizes))
            groups = np.add.reduceat(self.sizes[shards], np.arange(0, len(shards), self.block))
            self._layout = epoch, shards, np.concatenate([[0], groups.cumsum()])
        return self._layout[1:]


def check_block(block: int) -> None:
    """Raise ValueError where no shards could be shuffled together."""
    if block < 1:
        raise ValueError(f"block is {block}, expected the number of shards to shuffle together, such as {BLOCK}")
