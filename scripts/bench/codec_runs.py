"""Trainings of autoencoders that are done once: pictures in memory, one loop for both sides, and a file of results."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.features import quantise
from eval.reconstruction import codebook, count_codes, psnr
from pipelines.data.decode import image_and_caption
from pipelines.data.order import Shuffle
from pipelines.data.shards import open_split
from pipelines.data.stream import once
from pipelines.hardware import autocast, step_generator
from pipelines.optimizer import optimizers_of, set_rate
from pipelines.progress import meter
from pipelines.task import Training, learning_rate
from scripts.bench.codec_rivals import Codec, Kind, Place, Shape, Side, codec

CHOOSING = 256  # training pictures by which a learning rate is chosen
JUDGED = 100  # pictures in a batch while judging
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures of a split: (n, H, W, 3) uint8."""

    values: NDArray[np.uint8]

    @staticmethod
    def read(place: Place, split: str) -> Pictures:
        """All usable pictures in the order of the shards."""
        batches = once(open_split(place.folder, split), image_and_caption(place.size), batch=JUDGED)
        return Pictures(np.concatenate([quantise(batch["image"]) for batch in batches]))

    def __len__(self) -> int:
        return len(self.values)

    def at(self, numbers: Sequence[int] | slice) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1]."""
        return torch.from_numpy(self.values[numbers]).permute(0, 3, 1, 2).float() / 127.5 - 1

    def batch(self, step: int, size: int, seed: int) -> Tensor:
        """The pictures of a step, in the order in which `pipelines.data.stream` gives them."""
        order = Shuffle([len(self)], seed)
        return self.at([order.number(position) for position in range(step * size, (step + 1) * size)])


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training, and what it is judged by: the whole held-out split, or some training pictures."""

    name: str  # of the set
    size: int
    kind: Kind
    side: Side
    shape: Shape
    rate: float
    seed: int
    steps: int
    batch: int
    bf16: bool
    judged: Literal["train", "test"]

    @property
    def work(self) -> int:
        """Pixels that it trains on: what its time goes by, on one side."""
        return self.steps * self.batch * self.size**2

    @property
    def training(self) -> Training:
        """As the recipes have it, for both sides."""
        return Training(
            steps=self.steps, batch=self.batch, learning_rate=self.rate, weight_decay=0.01, bf16=self.bf16,
            compile=False,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a training led to. seconds: of training alone, on the clock of timing.py."""

    psnr: tuple[float, ...]  # dB of each judged picture
    seconds: float
    usage: float | None = None
    perplexity: float | None = None


@dataclass(kw_only=True)
class Ledger:
    """Results in a file of JSON lines: {"job": ..., "result": ...}; what stands there is not trained again."""

    path: Path
    known: dict[Job, Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        for line in lines:
            entry = json.loads(line)
            shape = Shape(**{**entry["job"]["shape"], "widths": tuple(entry["job"]["shape"]["widths"])})
            result = Result(**{**entry["result"], "psnr": tuple(entry["result"]["psnr"])})
            self.known[Job(**{**entry["job"], "shape": shape})] = result

    def add(self, job: Job, result: Result) -> None:
        """Keep a result."""
        self.known[job] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"job": dataclasses.asdict(job), "result": dataclasses.asdict(result)})
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")


@dataclass(kw_only=True)
class Trainer:
    """Trains what the ledger does not know yet."""

    ledger: Ledger
    folder: Path  # of the sets
    pictures: dict[tuple[Place, str], Pictures] = field(default_factory=dict)

    def finish(self, jobs: Sequence[Job]) -> None:
        """Train the jobs that are missing, and say before each how many there are and how long they will take."""
        missing = [job for job in jobs if job not in self.ledger.known]
        began, done, total = time.monotonic(), 0, sum(job.work for job in missing)
        for number, job in enumerate(missing, start=1):
            left = f", {(time.monotonic() - began) * (total - done) / done / 60:.0f} min left" if done else ""
            title = f"{job.name} {job.kind} {job.side} {job.rate:g} seed {job.seed}"
            print(f"training {number} of {len(missing)}{left}: {title}, {job.steps} steps", flush=True)
            self.ledger.add(job, self.train(job, title))
            done += job.work

    def of(self, place: Place, split: str) -> Pictures:
        """A split in memory."""
        if (place, split) not in self.pictures:
            self.pictures[place, split] = Pictures.read(place, split)
        return self.pictures[place, split]

    def train(self, job: Job, title: str) -> Result:
        """One training from its first step to its judgement."""
        place, training = Place(folder=self.folder / job.name, size=job.size), job.training
        model = codec(job.kind, job.side, job.shape, place, training, job.seed)
        pictures, seconds = self.of(place, "train"), 0.0
        with meter(title, job.steps) as shown:
            for step, run in enumerate(steps_of(model, training, pictures, job.seed)):
                began = time.process_time()
                loss = run()
                seconds += time.process_time() - began
                shown.advance(1, f"loss {loss:.4f}  {(step + 1) * job.batch / seconds:.1f} pictures/s")
        judged = self.of(place, "test") if job.judged == "test" else some_of(pictures)
        return judge(model, judged, seconds, codes=job.shape.codes, bf16=job.bf16)


def some_of(pictures: Pictures) -> Pictures:
    """Some pictures of a split, the same for everybody."""
    order = Shuffle([len(pictures)], 0)
    return Pictures(pictures.values[[order.number(i) for i in range(min(CHOOSING, len(pictures)))]])


def steps_of(model: Codec, training: Training, pictures: Pictures, seed: int) -> Iterator[Callable[[], float]]:
    """The steps of a training, each to be run: as `pipelines.loop.Loop` takes them, without its records."""
    step = step_of(model, training)
    for number in range(training.steps or 0):
        x, generator = pictures.batch(number, training.batch, seed), step_generator(seed, 0, number)
        yield lambda number=number, x=x, generator=generator: step(number, x, generator)


def step_of(model: Codec, training: Training) -> Callable[[int, Tensor, torch.Generator], float]:
    """A step (number, pictures, generator) -> loss: forward, backward, clipping, AdamW, and what comes around it."""
    optimizers, steps = optimizers_of(model.network.train(), training), training.steps or 1
    parameters = list(model.network.parameters())

    def step(number: int, x: Tensor, generator: torch.Generator) -> float:
        model.before(number, steps, generator)
        set_rate(optimizers, learning_rate(training, number, steps))
        with autocast(CPU, training.bf16):
            loss = model.loss(x, generator)
        model.network.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, training.clip)
        for optimizer in optimizers:
            optimizer.step()
        model.after(number)
        return float(loss.detach())

    return step


@torch.no_grad()
def judge(model: Codec, pictures: Pictures, seconds: float, *, codes: int, bf16: bool) -> Result:
    """PSNR of each picture as an 8-bit one, and how the codebook is used over all of them."""
    model.network.eval()
    found: list[float] = []
    counts = np.zeros(codes, dtype=np.int64)
    for start in range(0, len(pictures), JUDGED):
        chosen = slice(start, start + JUDGED)
        with autocast(CPU, bf16):
            x_hat, used = model.rebuild(pictures.at(chosen))
        found += psnr(pictures.values[chosen], quantise(x_hat)).round(3).tolist()
        if used is not None:
            counts += count_codes(used.numpy(), codes)
    if not counts.any():
        return Result(psnr=tuple(found), seconds=round(seconds, 3))
    book = codebook(counts)
    return Result(psnr=tuple(found), seconds=round(seconds, 3), usage=book.usage, perplexity=book.perplexity)
