"""Batches of a split as a function of (seed, cursor): a resumed stream gives what the uninterrupted one gives.

Position p of the endless stream is sample `order.number(p)`; a batch is `batch` positions in a row, of which each rank
reads its own slice; the cursor is the position after the batch. The place of a sample that is broken (or has an empty
caption) goes to the next usable one of its set, so that batches keep their size, ranks their step and cursors their
meaning.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count as count_from
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from webdataset.filters import batched
from webdataset.pipeline import DataPipeline

from pipelines.data.ahead import made_ahead
from pipelines.data.decode import BrokenSample, Decode, Sample
from pipelines.data.joined import AnySplit
from pipelines.data.order import BLOCK, Order
from pipelines.data.skipped import Skip, Skipped, skip
from pipelines.errors import DataError

Batch = dict[str, Any]  # tensors (B, ...) and lists of B
Made = tuple[Batch | None, tuple[Skip, ...]]  # None: no usable sample in a whole epoch


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A position, and what has become of its sample so far."""

    position: int
    number: int  # of the sample in the split
    shape: tuple[int, int] | None = None  # that its picture is to have
    sample: Sample | None = None
    decoded: dict[str, Any] | None = None
    skips: tuple[Skip, ...] = ()


@dataclass(kw_only=True)
class Stream:
    """Endless shuffled batches of a split.

    batch: samples of all ranks together, a multiple of `world`; order: without one, the split shuffled by `seed`, in
    blocks as usual; max_broken: share of the split that may be broken before the run fails; workers: processes that
    read ahead (0: none), which changes nothing in what is read. `skipped` holds what was passed over so far.
    """

    split: AnySplit
    decode: Decode
    batch: int
    seed: int = 0
    order: Order | None = None
    rank: int = 0
    world: int = 1
    max_broken: float = 0.01
    workers: int = 0
    skipped: Skipped = field(init=False)
    _order: Order = field(init=False, repr=False)
    _unusable: dict[int, Skip] = field(init=False, default_factory=dict, repr=False)  # never read twice
    _known: int = field(init=False, default=-1, repr=False)  # position up to which the shards are announced

    def __post_init__(self) -> None:
        """Check the batch size, and settle the order."""
        self.skipped = Skipped(split=self.split, max_broken=self.max_broken)
        if self.batch < 1 or self.batch % self.world:
            raise DataError(f"A batch of {self.batch} does not divide over {self.world} processes: take a multiple.")
        self._order = self.split.order(self.seed, BLOCK) if self.order is None else self.order
        self.split.hold(self._order.at_once)

    def pass_over(self, skips: Iterable[Skip]) -> None:
        """Count samples as passed over without reading them: those that an earlier process of the run has met."""
        for one in skips:
            self._unusable[one.number] = one
            self.skipped.remember(one)

    def batches(self, cursor: int = 0) -> Iterator[tuple[Batch, int]]:
        """Yield (this rank's slice of the batch, cursor after it) from a cursor on, for ever.

        Raises DataError once more than `max_broken` of the split is broken, none of it is usable, or a worker is lost.
        """
        self._known = -1
        starts = count_from(cursor, self.batch)
        source = made_ahead(self.made, starts, self.workers) if self.workers else map(self.made, starts)
        for number, (batch, skips) in enumerate(source, start=1):
            for one in skips:
                self.skipped.note(one)
            if batch is None:
                raise self.skipped.nothing_usable()
            yield batch, cursor + number * self.batch

    def made(self, cursor: int) -> Made:
        """Make this rank's slice of the batch from a cursor on: read, decode, mend."""
        local = self.batch // self.world
        start = cursor + self.rank * local
        if start >= self._known:
            self._known = self._announce(start)
        drawn = [self._mend(self._decode(self._read(self._drawn(start + i)))) for i in range(local)]
        samples = [item.decoded for item in drawn if item.decoded is not None]
        skips = tuple(one for item in drawn for one in item.skips)
        return (collate(samples) if len(samples) == local else None), skips

    def _drawn(self, position: int) -> Drawn:
        return Drawn(position=position, number=self._order.number(position), shape=self._order.shape(position))

    def _announce(self, position: int) -> int:
        """Say which shards are read from a position on, and behind them; returns where the former end."""
        now, end = self._order.group(position)
        following, _ = self._order.group(end)
        self.split.ahead(list(dict.fromkeys([*now, *following])))
        return end

    def _read(self, drawn: Drawn) -> Drawn:
        if drawn.number in self._unusable:
            return drawn
        try:
            sample = self.split[drawn.number]
            return replace(drawn, sample=sample if drawn.shape is None else replace(sample, shape=drawn.shape))
        except BrokenSample as error:
            return self._skip(drawn, error)

    def _decode(self, drawn: Drawn) -> Drawn:
        if drawn.sample is None:
            return drawn
        try:
            return replace(drawn, sample=None, decoded=self.decode(drawn.sample))
        except BrokenSample as error:
            return self._skip(drawn, error)

    def _skip(self, drawn: Drawn, error: BrokenSample) -> Drawn:
        one = self._unusable[drawn.number] = skip(self.split, drawn.number, error)
        return replace(drawn, sample=None, skips=(one,))

    def _mend(self, drawn: Drawn) -> Drawn:
        """Give the place of an unusable sample to the next usable one; where a whole epoch has none, to nobody."""
        if drawn.decoded is not None:
            return drawn
        skips = drawn.skips
        for number in self._order.stand_ins(drawn.position):
            other = self._decode(self._read(replace(drawn, number=number, skips=())))
            skips += other.skips
            if other.decoded is not None:
                return replace(other, skips=skips)
        return replace(drawn, skips=skips)


def some(split: AnySplit, decode: Decode, count: int, *, seed: int) -> Batch:
    """At most `count` usable samples, drawn by the seed: shards are often sorted, their first samples no fair picture.

    No sample comes twice; of several sets they come by weight. Raises DataError like Stream.
    """
    return collate(list(islice(_usable(split, decode, split.once(seed)), count)))


def once(
    split: AnySplit, decode: Decode, *, batch: int, count: int | None = None, numbers: Iterable[int] | None = None,
    skipped: Skipped | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """Yield the first `count` usable samples (all when None) once, in the order of the shards.

    Of several sets they come by weight, as long as every set has some left. The last batch is what is left.
    numbers: of the samples, without them all; skipped: counts what is passed over. Raises DataError like Stream.
    """
    samples = islice(_usable(split, decode, split.once() if numbers is None else numbers, skipped), count)
    yield from DataPipeline(lambda: samples, batched(batch, collation_fn=collate))


def _usable(
    split: AnySplit, decode: Decode, numbers: Iterable[int], skipped: Skipped | None = None
) -> Iterator[dict[str, Any]]:
    skipped = Skipped(split=split) if skipped is None else skipped
    for number in numbers:
        try:
            yield decode(split[number])
        except BrokenSample as error:
            skipped.note(skip(split, number, error))
    if len(skipped.broken) + len(skipped.empty) == len(split):
        raise skipped.nothing_usable()


def collate(samples: Sequence[Mapping[str, Any]]) -> Batch:
    """Stack the tensors of samples to (B, ...); everything else becomes a list of B."""
    columns = {name: [sample[name] for sample in samples] for name in samples[0]}
    return {name: torch.stack(column) if isinstance(column[0], Tensor) else column for name, column in columns.items()}
