"""Reading shards: samples per second beside plain webdataset, opening and resuming large sets, how well blocks shuffle.

python scripts/bench/streaming.py --data DIR      DIR/*train*.tar, such as those of CIFAR-10; three minutes
python scripts/bench/streaming.py --quick         the built-in scenes and small numbers, to see that everything runs
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from PIL import Image
from webdataset.filters import batched, shuffle
from webdataset.filters import map as each
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import SimpleShardList, split_by_worker
from webdataset.tariterators import tarfile_to_samples
from webdataset.writer import TarWriter

from pipelines.data.decode import Decode, Sample, image_and_caption
from pipelines.data.index import index_shard
from pipelines.data.order import Shuffle
from pipelines.data.scenes import write
from pipelines.data.shards import Split, open_split, shard_paths
from pipelines.data.stream import Stream, collate
from pipelines.data.summary import Summary, write_summary
from scripts.bench.timing import always, machine, median, ratio, shown
from scripts.markdown import table

BATCH = 64
BLOCKS = (1, 4, 16, 64, 256)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure, and how.

    Args:
        data: folder of shards; rendered where it is empty.
        size: pixels that pictures are brought to.
        quick: small numbers.
        rounds: how often each is timed.
    """

    data: str = ""
    size: int = 32
    quick: bool = False
    rounds: int = 9


def main(options: Options) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    options = replace(options, rounds=2) if options.quick else options
    with tempfile.TemporaryDirectory() as place:
        folder = Path(options.data) if options.data else Path(place) / "scenes"
        if not options.data:
            write(folder, count=200 if options.quick else 5000, size=options.size, seed=0)
        print(f"\nSamples per second, {folder.name} at {options.size} pixels\n\n{speed_table(folder, options)}\n")
        shards, resumed = (50, 10) if options.quick else (20_000, 1000)
        print(f"A large set\n\n{large_table(folder, Path(place), shards, resumed, options.rounds)}\n")
    print(f"Blocks of 1024 shards of 100 samples\n\n{quality_table([100] * (64 if options.quick else 1024))}\n")
    print(machine(torch.device("cpu")).replace("processor time", "wall time"))


Batches = Iterator[object]


def speed_table(folder: Path, options: Options) -> str:
    """Our exact order, webdataset with a buffer of 1000, and reading in order with neither shuffle nor batches."""
    decode = image_and_caption(options.size)
    count = 2 if options.quick else 48  # batches in a round
    rows = []
    for workers in (0, 2):
        made = {"ours": ours(folder, decode, workers), "webdataset": theirs(folder, decode, workers)}
        if not workers:
            made["in order"] = plain(folder, options.size)
        took = in_turn({name: always(lambda one=one: list(islice(one, count))) for name, one in made.items()}, options)
        rates = {name: shown(median([count * BATCH / t for t in seconds]), 0) for name, seconds in took.items()}
        others = ("webdataset", "in order")
        against = [shown(ratio(took[name], took["ours"])) if name in took else "" for name in others]
        rows.append([str(workers), *(rates.get(name, "") for name in ("ours", *others)), *against])
    return table(["workers", "ours", "webdataset", "in order", "ours / webdataset", "ours / in order"], rows)


def in_turn(contestants: dict[str, Callable[[], Callable[[], object]]], options: Options) -> dict[str, list[float]]:
    """Seconds of wall time, since the work may be done by other processes; every other round backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for ready in contestants.values():
        ready()()
    for i in range(options.rounds):
        for name in list(contestants)[:: -1 if i % 2 else 1]:
            began = time.perf_counter()
            contestants[name]()()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ours(folder: Path, decode: Decode, workers: int) -> Batches:
    """Our stream."""
    return Stream(split=open_split(folder, "train"), decode=decode, batch=BATCH, workers=workers).batches()


def theirs(folder: Path, decode: Decode, workers: int) -> Batches:
    """Plain webdataset: tars read in order by each worker, a buffer of 1000 samples, our transforms and batches."""

    def decoded(item: dict[str, bytes]) -> dict[str, object]:
        key = str(item["__key__"])
        return decode(Sample(key=key, members={e: part for e, part in item.items() if not e.startswith("__")}))

    urls = [str(path) for path in shard_paths(folder, "train")]
    urls = urls if len(urls) >= workers else urls * workers
    pipeline = DataPipeline(
        SimpleShardList(urls), split_by_worker, tarfile_to_samples(), shuffle(1000),
        each(decoded), batched(BATCH, collation_fn=collate, partial=False),
    ).repeat(10**6)  # fmt: skip
    if not workers:
        return iter(pipeline)
    loader = torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=workers)  # type: ignore[arg-type]
    return iter(loader)


def plain(folder: Path, size: int) -> Batches:
    """The bytes of the tars from one end to the other, each picture decoded by Pillow and resized; lists of them."""
    found: list[Image.Image] = []
    while True:
        for path in shard_paths(folder, "train"):
            data, index = path.read_bytes(), index_shard(path)
            for i in range(len(index)):
                for extension, (offset, length) in index.members(i).items():
                    if extension in ("png", "jpg", "webp"):
                        picture = Image.open(BytesIO(data[offset : offset + length])).convert("RGB")
                        found.append(picture.resize((size, size)))
                if len(found) == BATCH:
                    yield found
                    found = []


def large_table(folder: Path, place: Path, shards: int, resumed: int, rounds: int) -> str:
    """Opening many shards and going on in the middle of an epoch, each in a process of its own."""
    many, some = place / "many", place / "some"
    source = write_small(folder, place / "small.tar")
    link(source, many, shards)
    link(source, some, resumed)
    first = open_split(some, "train")  # makes the indices
    copied(first.shards, many)
    row = [inside(partial(opened, many)) for _ in range(rounds)]
    rows = [[f"open {shards:,} shards", *cells(row)]]
    row = [inside(partial(jumped, many)) for _ in range(rounds)]
    rows.append(["and an order, and a jump into the middle of an epoch", *cells(row)])
    row = [inside(partial(went_on, some)) for _ in range(rounds)]
    rows.append([f"open {resumed:,} shards and read the first batch in the middle of an epoch", *cells(row)])
    return table(["what", "seconds", "MiB"], rows)


class Cost(NamedTuple):
    """Of something done once in a fresh process."""

    seconds: float
    bytes: int


def cells(costs: Sequence[Cost]) -> list[str]:
    """Medians over rounds."""
    return [shown(median([c.seconds for c in costs]), 3), shown(median([c.bytes / 2**20 for c in costs]), 1)]


def inside(work: Callable[[], object]) -> Cost:
    """Seconds of a piece of work in a fresh process, and by how much that process grows while its result stands."""
    context = get_context("forkserver")  # a process that has imported all and done nothing
    context.set_forkserver_preload(["scripts.bench.streaming"])
    receive, send = context.Pipe(False)
    process = context.Process(target=_cost, args=(work, send))
    process.start()
    send.close()  # of a process that fails the end is seen
    found = receive.recv()
    process.join()
    return found


def _cost(work: Callable[[], object], send: Connection) -> None:
    before, began = resident(), time.perf_counter()
    kept = work()
    send.send(Cost(time.perf_counter() - began, resident() - before))
    del kept


def resident() -> int:
    """Bytes of memory that are this process's own."""
    pages = Path("/proc/self/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


def opened(folder: Path) -> Split:
    """Open a split."""
    return open_split(folder, "train")


def jumped(folder: Path) -> tuple[Split, Shuffle]:
    """Open a split and ask for the sample in the middle of its third epoch."""
    split = opened(folder)
    order = Shuffle(split.sizes, 0)
    order.number(int(2.5 * len(split)))
    return split, order


def went_on(folder: Path) -> tuple[Stream, object]:
    """Open a split and read the batch in the middle of its third epoch."""
    split = opened(folder)
    stream = Stream(split=split, decode=image_and_caption(32), batch=BATCH)
    return stream, next(stream.batches(int(2.5 * len(split))))


def write_small(folder: Path, path: Path, count: int = 50) -> Path:
    """Write a shard of the first samples of a split."""
    split = open_split(folder, "train")
    with TarWriter(str(path), encoder=False) as writer:
        for i in range(min(count, len(split))):
            writer.write({"__key__": f"{i:08d}", **split[i].members})
    return path


def link(source: Path, folder: Path, count: int) -> None:
    """Give one shard many names."""
    folder.mkdir()
    for number in range(count):
        os.link(source, folder / f"train-{number:06d}.tar")


def copied(summary: Summary, folder: Path) -> None:
    """Write the summary of a folder whose shards are all the first one of another's."""
    names = tuple(sorted(path.name for path in folder.glob("*.tar")))
    first = summary.take([0] * len(names))
    write_summary(replace(first, folder=folder, names=names))


class Quality(NamedTuple):
    """How an order differs from a true shuffle, for which all four are 1 but for chance."""

    together: float  # pairs of neighbours from one shard, over those expected of a true shuffle
    distance: float  # mean distance of neighbours in the set as it is stored, over (n^2 - 1) / 3 n, that of a true one
    shards: float  # different shards in a batch, over those of a true shuffle
    spread: float  # of batch means of a value that all samples of a shard share (sorted shards): standard deviations


def quality(numbers: np.ndarray, sizes: Sequence[int], batch: int = 256) -> Quality:
    """Measure an epoch's order (n,) against the closed forms of a true shuffle."""
    size, n = np.asarray(sizes), len(numbers)
    shard = np.repeat(np.arange(len(size)), size)[numbers]
    expected = (size * (size - 1.0)).sum() / (n * (n - 1.0))
    together = (shard[1:] == shard[:-1]).mean() / expected
    distance = np.abs(np.diff(numbers)).mean() / ((n * n - 1.0) / (3 * n))
    batches = shard[: n // batch * batch].reshape(-1, batch)
    missing = np.array([np.exp(_log_missing(n, int(s), batch)) for s in np.unique(size)])
    share = np.array([(size == s).sum() for s in np.unique(size)])
    different = np.mean([len(np.unique(one)) for one in batches]) / (share * (1 - missing)).sum()
    value = np.random.default_rng(0).standard_normal(len(size))
    value -= np.average(value, weights=size)
    own = np.average(value**2, weights=size) / batch * (n - batch) / (n - 1)  # without replacement
    return Quality(together, distance, different, float(np.sqrt((value[batches].mean(1) ** 2).mean() / own)))


def _log_missing(n: int, size: int, batch: int) -> float:
    """Log of the chance that no sample of a shard is among `batch` of n."""
    i = np.arange(batch)
    return float(np.log(np.maximum(n - size - i, 1e-300) / (n - i)).sum())


def quality_table(sizes: Sequence[int]) -> str:
    """A row for each block, and one for all shards together."""
    rows = []
    for block in (*(block for block in BLOCKS if block < len(sizes)), len(sizes)):
        order = Shuffle(sizes, 0, block)
        found = quality(np.array([order.number(i) for i in range(len(order))]), sizes)
        rows.append([str(block) if block < len(sizes) else "all", *(f"{part:.2f}" for part in found)])
    return table(["block", "neighbours of one shard", "their distance", "shards in a batch", "spread if sorted"], rows)


if __name__ == "__main__":
    main(tyro.cli(Options))
