"""Pictures or latents that are not square, in buckets: every batch is of one shape, a function of the position.

A cell is what a bucket has of a set; it has an order and a cursor of its own. In a round every set advances by its
share, and each of its cells by what that is of the set: so cells end their epochs together, and how far each bucket is
at the start of a round is known without looking at those before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np

from pipelines.data.decode import BrokenSample
from pipelines.data.joined import AnySplit, Joined
from pipelines.data.mixture import spread, whole_turns
from pipelines.data.order import Order, Shuffle
from pipelines.data.ratios import Shape, nearest
from pipelines.data.recent import Recent
from pipelines.data.shapes import shapes_of
from pipelines.data.shards import NEXT, Split

ROUND = 2**20  # positions of a round at most
KEPT = 4  # tables in memory
MADE_AGAIN = ("_tables", "_mixtures", "_rounds", "_last")  # what is not sent to another process


def buckets_of(split: Split, samples: range, buckets: Sequence[Shape]) -> np.ndarray:
    """The bucket of each of some samples in a row, at least one, (n,) uint8.

    Those of a shard that cannot be read go with the squares.
    """
    first, last = (split.locate(number)[0] for number in (samples[0], samples[-1]))
    shapes = []
    for shard in range(first, last + 1):
        split.ahead(range(shard, min(shard + NEXT, len(split.sizes))))
        try:
            shapes.append(shapes_of(split, shard))
        except BrokenSample:  # whoever reads its samples will say so
            shapes.append(np.zeros((int(split.sizes[shard]), 2), np.uint32))
    start = samples.start - int(split.sizes[:first].sum())
    return nearest(np.concatenate(shapes)[start : start + len(samples)], buckets)


class Cells:
    """Which bucket each sample of a split is in: counted once, found again from the indices when asked for."""

    def __init__(self, split: AnySplit, buckets: Sequence[Shape]) -> None:
        parts = split.parts if isinstance(split, Joined) else ()
        self.buckets = tuple(buckets)
        self.splits: list[Split] = [part.split for part in parts] if parts else [one for one, _ in split.sets()]
        self.turns = whole_turns([part.weight for part in parts] or [1.0])
        self.starts = (0, *accumulate(map(len, self.splits)))
        self.counts = [  # of each set, (shards, buckets)
            np.stack([np.bincount(self._counted(k, n), minlength=len(buckets)) for n in range(len(one.sizes))])
            for k, one in enumerate(self.splits)
        ]

    def _counted(self, which: int, shard: int) -> np.ndarray:
        self.splits[which].ahead(range(shard, min(shard + NEXT, len(self.splits[which].sizes))))
        return self._of(which, shard)

    def _of(self, which: int, shard: int) -> np.ndarray:
        return nearest(shapes_of(self.splits[which], shard), self.buckets)

    def members(self, which: int, bucket: int, shard: int) -> np.ndarray:
        """Places in a shard of the samples in a bucket."""
        return np.flatnonzero(self._of(which, shard) == bucket)


class Cell:
    """The order of what a bucket has of a set, by the numbers that the samples have in the whole split.

    The shards are permuted alike in all cells of a set, so that one reader goes through the same ones in each.
    """

    def __init__(self, cells: Cells, which: int, bucket: int, seed: int, block: int) -> None:
        self._cells, self._which, self._bucket = cells, which, bucket
        sizes = cells.counts[which][:, bucket]
        self._shuffle = Shuffle(sizes, seed, block)
        self._ends = sizes.cumsum()
        self._first = cells.splits[which].sizes.cumsum() - cells.splits[which].sizes + cells.starts[which]
        self._first_shard = sum(len(split.sizes) for split in cells.splits[:which])
        self._members: Recent[np.ndarray] = Recent(2 * min(block, len(sizes)))

    def __len__(self) -> int:
        return len(self._shuffle)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_members"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._members = Recent(2 * self.at_once)

    @property
    def at_once(self) -> int:
        """Shards of a group."""
        return self._shuffle.at_once

    def number(self, cursor: int) -> int:
        """Number of the sample at a place of the cell's own endless order."""
        return self._in_split(self._shuffle.number(cursor))

    def shards(self, cursor: int) -> list[int]:
        """The shards of the group at a cursor and of the one behind it, numbered behind those of the sets before."""
        now, end = self._shuffle.group(cursor)
        return [self._first_shard + shard for shard in (*now, *self._shuffle.group(end)[0])]

    def stand_ins(self, cursor: int) -> Iterator[int]:
        """Those behind it."""
        return map(self._in_split, self._shuffle.stand_ins(cursor))

    def _in_split(self, place: int) -> int:
        shard = int(np.searchsorted(self._ends, place, side="right"))
        own = self._members.get(shard, lambda shard: self._cells.members(self._which, self._bucket, shard))
        left = int(self._ends[shard]) - place  # members from this one to the shard's last
        return int(self._first[shard] + own[len(own) - left])


class BucketOrder(Order):
    """Batches of one bucket each; `batch` positions in a row from a multiple of it on are one batch.

    What a bucket has left over in a round waits for the next one, whose first samples complete the batch: each sample
    is shown once in each epoch of its set and bucket, and none is left out.
    """

    def __init__(self, cells: Cells, batch: int, seed: int, block: int, *, mixed: bool = True) -> None:
        """mixed: samples of other buckets may stand in for broken ones, since they can be brought to the shape."""
        self.batch, self.seed, self.buckets, self.mixed = batch, seed, cells.buckets, mixed
        self._turns, self._starts = cells.turns, cells.starts
        self._counts = [[int(n) for n in counts.sum(0)] for counts in cells.counts]  # of each set in each bucket
        lengths = [sum(counts) for counts in self._counts]
        whole = max(-(-length // turns) for length, turns in zip(lengths, self._turns, strict=True))
        self._periods = max(1, min(whole, ROUND // sum(self._turns)))  # of turns, in a round
        seeds = [int(np.random.SeedSequence((seed, k)).generate_state(1)[0]) for k in range(len(lengths))]
        self._cells = [
            [Cell(cells, k, b, seeds[k], block) if count else None for b, count in enumerate(counts)]
            for k, counts in enumerate(self._counts)
        ]
        self._forget()

    def _forget(self) -> None:
        self._tables: Recent[np.ndarray] = Recent(KEPT)
        self._mixtures: Recent[np.ndarray] = Recent(KEPT * len(self.buckets))
        self._rounds: dict[int, tuple[int, int, int]] = {}  # of each bucket the last one: its number, start and end
        self._last = -1, (0, 0)  # a batch, its bucket and turn

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in MADE_AGAIN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @property
    def at_once(self) -> int:
        """Shards of a group of the set that needs most of them."""
        return max(cell.at_once for cells in self._cells for cell in cells if cell is not None)

    def number(self, position: int) -> int:
        """Number of the sample at a position."""
        cell, cursor, _ = self._find(position)
        return cell.number(cursor)

    def shape(self, position: int) -> Shape:
        """The bucket of a position's batch."""
        return self.buckets[self._batch(position // self.batch)[0]]

    def group(self, position: int) -> tuple[list[int], int]:
        """The shards that a batch's bucket reads now and next in all sets, and the next batch, perhaps of another."""
        number, slot = divmod(position, self.batch)
        bucket, turn = self._batch(number)
        cursors = self._cursors(bucket, turn * self.batch + slot)
        cells = [(cells[bucket], cursor) for cells, cursor in zip(self._cells, cursors, strict=True)]
        return [shard for cell, cursor in cells if cell for shard in cell.shards(cursor)], (number + 1) * self.batch

    def stand_ins(self, position: int) -> Iterator[int]:
        """Those of the same set and bucket, and then, where they may, all others of the set."""
        cell, cursor, which = self._find(position)
        return chain(cell.stand_ins(cursor), range(*self._starts[which : which + 2]) if self.mixed else ())

    def _find(self, position: int) -> tuple[Cell, int, int]:
        """The cell of a position, its cursor there, and its set."""
        number, slot = divmod(position, self.batch)
        bucket, turn = self._batch(number)
        which, cursor = self._in_bucket(bucket, turn * self.batch + slot)
        cell = self._cells[which][bucket]
        assert cell is not None
        return cell, cursor, which

    def _done(self, which: int, bucket: int, rounds: int) -> int:
        """Samples of a cell before a round."""
        drawn = rounds * self._periods * self._turns[which]
        return drawn * self._counts[which][bucket] // sum(self._counts[which])

    def _filled(self, bucket: int, rounds: int) -> int:
        """Samples of a bucket before a round."""
        return sum(self._done(which, bucket, rounds) for which in range(len(self._counts)))

    def _batches(self, rounds: int) -> int:
        """Whole batches before a round."""
        return sum(self._filled(bucket, rounds) // self.batch for bucket in range(len(self.buckets)))

    def _round(self, wanted: int, of: Callable[[int], int]) -> int:
        """The last round before which `of` counts no more than `wanted`."""
        end = 1
        while of(end) <= wanted:
            end *= 2
        return bisect_right(range(end), wanted, key=of) - 1

    def _batch(self, number: int) -> tuple[int, int]:
        """Bucket of a batch, and how many of the bucket's batches come before it."""
        if number != self._last[0]:
            rounds = self._round(number, self._batches)
            bucket, turn = self._tables.get(rounds, self._lay_out)[number - self._batches(rounds)].tolist()
            self._last = number, (bucket, self._filled(bucket, rounds) // self.batch + turn)
        return self._last[1]

    def _lay_out(self, rounds: int) -> np.ndarray:
        """Bucket and turn of each batch of a round, (batches, 2)."""
        ends = [
            self._filled(bucket, rounds + 1) // self.batch - self._filled(bucket, rounds) // self.batch
            for bucket in range(len(self.buckets))
        ]
        return spread(ends, 1, np.random.default_rng((self.seed, rounds)))[0]

    def _in_bucket(self, bucket: int, place: int) -> tuple[int, int]:
        """Set of a place in a bucket's own endless order, and the cursor of its cell."""
        if len(self._counts) == 1:
            return 0, place
        rounds, mixed, at = self._mixed(bucket, place)
        which, turn = mixed[at].tolist()
        return which, self._done(which, bucket, rounds) + turn

    def _cursors(self, bucket: int, place: int) -> list[int]:
        """The cursors of the bucket's cells in all sets at a place in its endless order."""
        if len(self._counts) == 1:
            return [place]
        rounds, mixed, at = self._mixed(bucket, place)
        before = np.bincount(mixed[:at, 0], minlength=len(self._counts)).tolist()
        return [self._done(which, bucket, rounds) + count for which, count in enumerate(before)]

    def _mixed(self, bucket: int, place: int) -> tuple[int, np.ndarray, int]:
        """The round of a place in a bucket's order, how the round is mixed, and the place in it."""
        rounds, start, end = self._rounds.get(bucket, (0, 0, 0))
        if not start <= place < end:
            rounds = self._round(place, lambda rounds: self._filled(bucket, rounds))
            start, end = self._filled(bucket, rounds), self._filled(bucket, rounds + 1)
            self._rounds[bucket] = rounds, start, end
        return rounds, self._mixtures.get(rounds * len(self.buckets) + bucket, self._mix), place - start

    def _mix(self, key: int) -> np.ndarray:
        """Set and turn of each sample of a bucket in a round, (samples, 2)."""
        rounds, bucket = divmod(key, len(self.buckets))
        counts = [
            self._done(which, bucket, rounds + 1) - self._done(which, bucket, rounds)
            for which in range(len(self._counts))
        ]
        return spread(counts, 1, np.random.default_rng((self.seed, rounds, 1 + bucket)))[0]
