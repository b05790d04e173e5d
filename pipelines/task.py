"""What a stage brings to the training loop, and the numbers that it trains by."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from backbone.block import Block
from latent.mmdit import JointBlock
from latent.unet import Stage
from pipelines.errors import PalimpsestError
from pipelines.ledger import Ledger
from pipelines.posthoc import PosthocEMA
from pipelines.rates import Cosine, RateSchedule, share, warm_up
from pipelines.rows import local
from tokenizer.quantize import Moved

Batch = dict[str, Any]
HELD_OUT = 256  # items behind a validation figure while training


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a stage trains. Give `steps`, or `minutes` that are turned into steps once, at the start, and saved."""

    steps: int | None = None
    minutes: float | None = None
    batch: int = 32  # items per step, over all processes
    accumulate: int = 1  # micro-batches that a step is made of on each device
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices of transformers (pipelines/optimizer.py)
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 50  # steps of linear warm-up
    schedule: RateSchedule = field(default_factory=Cosine)  # of the learning rate (pipelines/rates.py)
    clip: float = 1.0  # gradient norm
    ema: float | None = None  # decay of the averaged weights; none keeps no average
    posthoc: PosthocEMA | None = None  # averages from which other lengths are made afterwards (`palimpsest ema`)
    bf16: bool = True  # autocast of the forward pass, where the machine has bf16 arithmetic
    compile: bool = True  # compile the blocks, where a compiler is found
    shard: Literal["full", "hybrid"] | None = None  # spread the state over all processes, or over those of a node
    shard_over: int | None = None  # hybrid: the processes that share a copy; none takes those of a node
    save_seconds: float = 60.0
    keep_checkpoints: int = 2  # the last ones that stay while training
    keep_every: int | None = None  # steps between checkpoints that stay for good
    validate_every: int = 250
    picture_every: int = 500
    spike: float | None = None  # a step is left out whose gradient norm is more than so many times the recent median
    max_skipped: float = 0.01  # share of the steps that may be left out (10 steps at least)
    keep: Literal["last", "best"] = "last"  # best: the weights that validated best, of tasks that name a criterion

    def __post_init__(self) -> None:
        """Refuse numbers that cannot train."""
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(
                f"training needs either steps or minutes, got steps={self.steps} and minutes={self.minutes}"
            )
        for name in (
            "steps",
            "minutes",
            "batch",
            "accumulate",
            "learning_rate",
            "clip",
            "save_seconds",
            "validate_every",
            "picture_every",
            "keep_checkpoints",
            "keep_every",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"training.{name} = {value}, expected a number above 0")
        if not 0 <= self.max_skipped < 1:
            raise ValueError(f"training.max_skipped = {self.max_skipped}, expected a share below 1, such as 0.01")
        if self.batch % self.accumulate:
            raise ValueError(
                f"training.accumulate = {self.accumulate}, expected a number that divides batch = {self.batch}"
            )
        if self.spike is not None and not 1 < self.spike < math.inf:
            raise ValueError(
                f"training.spike = {self.spike}, expected a number above 1, such as 10: none leaves it out"
            )
        check_betas(self.betas, "training.betas")
        self._check_shards()
        for name in ("weight_decay", "warmup"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"training.{name} = {value}, expected 0 (none) or more")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"training.ema = {self.ema}, expected a decay between 0 and 1, such as 0.998")

    def _check_shards(self) -> None:
        if self.shard is not None and self.steps is None:
            raise ValueError(
                f"training.shard = {self.shard!r} needs training.steps in place of minutes: one process alone cannot "
                "time the steps of a network that lies on several"
            )
        if self.shard_over is not None and (self.shard != "hybrid" or self.shard_over < 1):
            raise ValueError(
                f"training.shard_over = {self.shard_over} with shard = {self.shard!r}, expected 1 process or more and "
                "shard = 'hybrid'"
            )


def check_betas(betas: tuple[float, float], name: str) -> None:
    """Raise ValueError unless both of an optimiser's decays are at least 0 and below 1."""
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"{name} = {list(betas)}, expected two decays from 0 to below 1, such as [0.9, 0.99]")


class Task(ABC):
    """What a stage brings to the loop: a network, its batches and its loss.

    rival: a second network that trains against the first, from the share `rival_start` of the steps on; `playing` says
    whether it does. divisible: whether the loss is a mean over items, so that a step can be made of micro-batches.
    """

    network: nn.Module
    rival: nn.Module | None = None
    rival_start: float = 0.0
    playing: bool = False
    divisible: bool = True
    unit: str = "images"
    criterion: str = ""  # the figure of `validate` by which weights are chosen, lower being better

    @cached_property
    def ledger(self) -> Ledger:
        """The samples that the streams of this task pass over."""
        return Ledger()

    @property
    def players(self) -> list[nn.Module]:
        """The network and, where it has one, its rival."""
        return [self.network, *([] if self.rival is None else [self.rival])]

    @abstractmethod
    def batches(self, cursor: int, rank: int, world: int) -> Iterator[tuple[Batch, int]]:
        """Yield (batch, cursor behind it) without end, from the sample that `cursor` names."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss () to descend and further scalars to plot."""

    def rival_loss(self, rival: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the rival's loss () on what `loss` has just made, with further scalars to plot."""
        raise NotImplementedError

    def rival_training(self, training: Training) -> Training:
        """Return the settings of the rival's optimiser."""
        return training

    def beside(self, step: int, first: int, steps: int) -> Iterator[Batch] | None:
        """Yield what `before` is to read, or return None, on all ranks alike.

        It is read like a batch, ahead of the step: whoever cannot, or is asked to stop meanwhile, has not begun it.
        """
        del step, first, steps
        return None

    def before(
        self, step: int, first: int, steps: int, generator: torch.Generator, read: Sequence[Batch]
    ) -> Sequence[Moved]:
        """Do what a stage needs ahead of a step (codebooks start and revive here); return what it moved by hand.

        first: the number of steps as it was first planned, which phases start by; steps: as it is planned now; read:
        what `beside` has given.
        """
        del step, first, steps, generator, read
        return ()

    def rehearse(self, playing: bool) -> None:
        """Enter the phase that most steps with the rival, or without, are in, to be timed."""
        self.playing = playing

    def after(self, step: int) -> None:
        """Do what a stage needs behind a step that was not skipped (codebooks learn from its passes here)."""
        del step

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Return figures on held-out data at fixed times and noise."""
        del network
        return {}

    def pictures(self, network: nn.Module) -> dict[str, Image.Image]:
        """Return sample pictures of the network as it stands."""
        del network
        return {}

    def compiled_parts(self) -> list[nn.Module]:
        """Return the modules worth compiling: small, repeated, of fixed shape."""
        return blocks_of(self.network)


def check_task(task: Task, training: Training, name: str, world: int) -> None:
    """Refuse settings that a task has no use for, or that do not divide over `world` processes."""
    own = training.batch // world
    if training.keep == "best" and not task.criterion:
        raise PalimpsestError(
            f"stage.{name}.training.keep is 'best', but its kind validates by no figure: leave it out"
        )
    if training.accumulate > 1 and not task.divisible:
        raise PalimpsestError(
            f"stage.{name}.training.accumulate is {training.accumulate}, but its loss compares all items of a "
            "batch with each other: leave it out"
        )
    if training.shard is not None and task.rival is not None:
        raise PalimpsestError(
            f"stage.{name}.training.shard is {training.shard!r}, but its network trains against a rival, and two "
            "players are not sharded: leave it out"
        )
    if own % training.accumulate:
        raise PalimpsestError(
            f"stage.{name}.training.accumulate is {training.accumulate}, which does not divide the "
            f"{own} items of a batch of {training.batch} on each process"
        )


def learning_rate(training: Training, step: int, steps: int) -> float:
    """The rate at a step: the schedule's, on top of a linear warm-up."""
    warm = warm_up(step, steps, training.warmup)
    return training.learning_rate * warm * share(training.schedule, step, steps)


def decay_at(ema: float, step: int) -> float:
    """EMA decay with a start that forgets the initial weights: min(ema, (1 + step) / (10 + step))."""
    return min(ema, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average, kept in float32, towards the network; buffers are copied."""
    for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
        local(mine).lerp_(local(theirs).to(mine.dtype), 1 - decay)
    for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(theirs)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the repeated parts of a network: many of one shape, so that compiling one serves all.

    A part inside another goes with the outer one.
    """
    if isinstance(network, Block | JointBlock | Stage):
        return [network]
    return [block for child in network.children() for block in blocks_of(child)]
