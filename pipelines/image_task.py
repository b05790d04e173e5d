"""What all stages that read pictures share: the streams and the held-out batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from torch import Tensor

from pipelines.data.buckets import BucketOrder, Cells
from pipelines.data.decode import image_and_caption
from pipelines.data.stream import Stream, once
from pipelines.runs import Run
from pipelines.task import HELD_OUT, Batch, Task


class ImageTask(Task):
    """A task of pictures; bucketed: whether it can read those that are not square in shapes of their own."""

    bucketed = False

    def __init__(self, run: Run, batch: int, *, shuffle_seed: int) -> None:
        self.run, self.batch, self.seed = run, batch, shuffle_seed
        self.size = run.recipe.size
        self.decode = image_and_caption(self.size)
        self.train_split = run.open("train")
        self.samples = next(once(run.held_out(), self.decode, batch=HELD_OUT))
        self.held_out: Tensor = self.samples["image"]  # (N, 3, H, W)

    @cached_property
    def cells(self) -> Cells | None:
        """Which bucket each training picture is in, where the recipe has buckets and the task can read them."""
        return Cells(self.train_split, buckets) if self.bucketed and (buckets := self.run.recipe.buckets) else None

    def batches(self, cursor: int, rank: int, world: int) -> Iterator[tuple[Batch, int]]:
        """Shuffled training pictures, from `cursor`."""
        stream = self.stream(self.batch, self.seed, rank, world, workers=self.run.recipe.workers)
        return self.ledger.watch("train", stream).batches(cursor)

    def stream(self, batch: int, seed: int, rank: int = 0, world: int = 1, *, workers: int = 0) -> Stream:
        """Return the shuffled training split."""
        block = self.run.recipe.block
        cells = self.cells
        order = self.train_split.order(seed, block) if cells is None else BucketOrder(cells, batch, seed, block)
        shared = {"rank": rank, "world": world, "workers": workers}
        return Stream(split=self.train_split, order=order, batch=batch, decode=self.decode, **shared)
