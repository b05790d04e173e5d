"""The one training loop: every stage that learns by gradient descent runs through `train`.

A stage gives a `Task` (a network, batches, a loss) and the loop gives it the rest: budget, schedule, clipping, EMA,
validation, pictures, curves, checkpoints and exact resume. All draws of a step come from a generator keyed by
(seed, rank, step) and the data order from (seed, epoch, cursor), so that a checkpoint holds no random state and an
interrupted run ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import math
import os
import shutil
import signal
import statistics
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from pipelines.artefact import load_state, read_json, save_state, save_weights, write_json
from pipelines.errors import PalimpsestError
from pipelines.progress import Meter, meter

Item = TypeVar("Item")
Module = TypeVar("Module", bound=nn.Module)
Batch = dict[str, Any]
REHEARSAL = 8  # timed steps that turn minutes into a number of steps
PARENT_VARIABLE = "PALIMPSEST_PARENT"  # process id of the `palimpsest run` that started a stage
BAD_STEPS = 10  # consecutive steps with a loss that is not finite before a run gives up


class Interrupted(PalimpsestError):
    """The run was asked to stop and has saved its state."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a stage trains. Give `steps`, or `minutes` that are turned into steps once, at the start, and saved."""

    steps: int | None = None
    minutes: float | None = None
    batch: int = 32  # items per step, over all processes
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 50  # steps of linear warm-up; cosine decay to zero follows
    clip: float = 1.0  # gradient norm
    ema: float | None = None  # decay of the averaged weights; none keeps no average
    bf16: bool = True  # autocast of the forward pass, where the machine has bf16 arithmetic
    compile: bool = True  # compile the blocks, where a compiler is found
    save_seconds: float = 60.0
    validate_every: int = 250
    picture_every: int = 500

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
            "learning_rate",
            "clip",
            "save_seconds",
            "validate_every",
            "picture_every",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"training.{name} = {value}, expected a number above 0")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"training.ema = {self.ema}, expected a decay between 0 and 1, such as 0.998")


class Task(ABC):
    """What a stage brings to the loop: a network, its batches and its loss."""

    network: nn.Module
    unit: str = "images"

    @abstractmethod
    def batches(self, cursor: int, rank: int, world: int) -> Iterator[tuple[Batch, int]]:
        """Yield (batch, cursor behind it) without end, from the sample that `cursor` names."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss () to descend and further scalars to plot."""

    def before(self, step: int, steps: int, generator: torch.Generator) -> None:
        """Do what a stage needs ahead of a step (codebooks start and revive here)."""
        del step, steps, generator

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
        return []


@dataclass
class State:
    """Everything that changes while training; a checkpoint is this, written down."""

    network: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    step: int = 0
    cursor: int = 0
    seconds: float = 0.0
    skipped: int = 0
    last_save: float = field(default_factory=time.monotonic)

    def save(self, folder: Path) -> None:
        """Write a checkpoint and keep the one before it, in case the disk tears."""
        path = folder / "checkpoint.pt"
        values = {
            "step": self.step,
            "cursor": self.cursor,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if path.exists():
            shutil.copy2(path, folder / "checkpoint.previous.pt.tmp")
            (folder / "checkpoint.previous.pt.tmp").replace(folder / "checkpoint.previous.pt")
        save_state(path, values)
        self.last_save = time.monotonic()

    def load(self, folder: Path) -> bool:
        """Go on from the newest checkpoint that reads; False when there is none."""
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            values = load_state(folder / name)
            if values is None:
                continue
            self.network.load_state_dict(values["network"])
            if self.average is not None:
                self.average.load_state_dict(values["average"])
            self.optimizer.load_state_dict(values["optimizer"])
            self.step, self.cursor = values["step"], values["cursor"]
            self.seconds, self.skipped = values["seconds"], values["skipped"]
            return True
        return False


def step_generator(seed: int, rank: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator of all draws of one step on one rank."""
    key = hashlib.sha256(f"{seed}/{rank}/{step}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key[:8], "little") >> 1)


def learning_rate(training: Training, step: int, steps: int) -> float:
    """Linear warm-up, then cosine decay to zero at `steps`."""
    warm = min(1.0, (step + 1) / max(1, min(training.warmup, steps // 4)))
    return training.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def decay_at(ema: float, step: int) -> float:
    """EMA decay with a start that forgets the initial weights: min(ema, (1 + step) / (10 + step))."""
    return min(ema, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average, kept in float32, towards the network; buffers are copied."""
    for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
        mine.lerp_(theirs, 1 - decay)
    for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(theirs)


def prefetch(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """Make the next items in a thread while the current one is used."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        queue = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := queue.popleft().result()) is not end:
            queue.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]


def orphaned() -> bool:
    """Whether the `palimpsest run` that started this stage is gone: nobody waits for it, and another may start."""
    parent = os.environ.get(PARENT_VARIABLE)
    return parent is not None and os.getppid() != int(parent)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()
    }


class Loop:
    """One training run of one task in one folder."""

    def __init__(self, task: Task, training: Training, folder: Path, *, seed: int, name: str) -> None:
        self.task, self.training, self.folder, self.seed, self.name = task, training, folder, seed, name
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.device = self.accelerator.device
        task.network.to(self.device)
        if training.compile and can_compile():
            for part in task.compiled_parts():
                part.compile(dynamic=False)
        average = copy.deepcopy(task.network).requires_grad_(False) if training.ema else None
        optimizer = torch.optim.AdamW(
            [p for p in task.network.parameters() if p.requires_grad],
            lr=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.state = State(task.network, average, optimizer)
        self.stop = False

    def run(self) -> dict[str, Any]:
        """Train to the end and return what the manifest should remember. Raises Interrupted after saving."""
        self.folder.mkdir(parents=True, exist_ok=True)
        resumed = self.state.load(self.folder)
        self._trim_log()
        steps = self._plan()
        self.prepared, self.optimizer = self.accelerator.prepare(self.task.network, self.state.optimizer)
        previous = {number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.state.step)
        try:
            with meter(self.name, steps) as shown:
                shown.advance(self.state.step, "resumed" if resumed else "starting")
                self._steps(steps, shown)
        finally:
            self.writer.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self._finish(steps)

    def _steps(self, steps: int, shown: Meter) -> None:
        """Take every step that is left."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        bad = 0
        begun = time.monotonic() - self.state.seconds
        batches = prefetch(self.task.batches(self.state.cursor, rank, world))
        while self.state.step < steps:
            batch, cursor = next(batches)
            loss, scalars = self._step(batch, steps, rank)
            bad = 0 if math.isfinite(loss) else bad + 1
            if bad >= BAD_STEPS:
                raise PalimpsestError(
                    f"{self.name}: the loss was not finite for {bad} steps in a row (step {self.state.step}). "
                    f"Lower stage.{self.name}.training.learning_rate, or set bf16 = false."
                )
            self.state.step, self.state.cursor = self.state.step + 1, cursor
            self.state.seconds = time.monotonic() - begun
            rate = self.state.step * self.training.batch / max(self.state.seconds, 1e-9)
            shown.advance(1, f"loss {loss:.4f}  {rate:.0f} {self.task.unit}/s")
            self._watch(steps, loss, scalars)

    def _step(self, batch: Batch, steps: int, rank: int) -> tuple[float, dict[str, Tensor]]:
        """One optimiser step; returns the loss and the scalars to plot. A loss that is not finite changes nothing."""
        state, training = self.state, self.training
        generator = step_generator(self.seed, rank, state.step)
        self.task.before(state.step, steps, generator)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(training, state.step, steps)
        with autocast(self.device, training.bf16):
            loss, scalars = self.task.loss(self.prepared, to_device(batch, self.device), generator)
        value = float(loss.detach())
        self.optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(value):
            state.skipped += 1
            return value, {}
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.prepared.parameters(), training.clip)
        if norm is not None and not torch.isfinite(norm):
            state.skipped += 1
            return math.nan, {}
        self.optimizer.step()
        if state.average is not None:
            update_average(state.average, state.network, decay_at(training.ema or 0.0, state.step))
        return value, {**scalars, "gradient_norm": norm} if isinstance(norm, Tensor) else scalars

    def _watch(self, steps: int, loss: float, scalars: dict[str, Tensor]) -> None:
        """Plot, validate, draw and save when it is time to."""
        step, training = self.state.step, self.training
        last = step == steps
        if step % 20 == 0 or last:
            self._log("train", {"loss": loss, **{key: float(value) for key, value in scalars.items()}})
        if step % training.validate_every == 0 or last:
            self._log("validation", self._with_average(self.task.validate))
        if step % training.picture_every == 0 or last:
            for name, picture in self._with_average(self.task.pictures).items():
                (self.folder / "pictures").mkdir(exist_ok=True)
                picture.save(self.folder / "pictures" / f"{name}-{step:06d}.png")
        main = self.accelerator.is_main_process
        if main and (self.stop or orphaned() or time.monotonic() - self.state.last_save > training.save_seconds):
            self.state.save(self.folder)
        if self.stop or orphaned():
            raise Interrupted(
                f"{self.name}: stopped at step {step} of {steps}; saved. The same command goes on from there."
            )

    def _with_average(self, view: Any) -> Any:
        network = self.state.average if self.state.average is not None else self.state.network
        network.eval()
        with torch.no_grad():
            result = view(network)
        self.state.network.train()
        return result

    def _log(self, split: str, scalars: dict[str, float]) -> None:
        """Append scalars to TensorBoard and to log.jsonl, from which the report draws its curves."""
        if not scalars or not self.accelerator.is_main_process:
            return
        for name, value in scalars.items():
            self.writer.add_scalar(f"{name}/{split}", value, self.state.step)
        finite = {key: value for key, value in scalars.items() if math.isfinite(value)}
        line = {"step": self.state.step, "seconds": round(self.state.seconds, 1), "split": split, **finite}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")

    def _trim_log(self) -> None:
        """Drop curve points that lie behind the checkpoint: those steps are taken again."""
        path = self.folder / "log.jsonl"
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= self.state.step]
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def _plan(self) -> int:
        """Return the number of steps, decided once and saved."""
        path, training = self.folder / "plan.json", self.training
        if self.accelerator.is_main_process and not path.exists():
            steps, seconds = (training.steps, None) if training.steps else self._rehearse(60 * (training.minutes or 0))
            write_json(path, {"steps": steps, "seconds_per_step": seconds, "minutes": training.minutes})
        self.accelerator.wait_for_everyone()
        return int(read_json(path)["steps"])

    def _rehearse(self, budget: float) -> tuple[int, float]:
        """Time a few steps that change nothing; return (steps that fit into `budget` seconds, seconds per step)."""
        begun = time.monotonic()
        kept = copy.deepcopy(self.task.network.state_dict())
        batches = self.task.batches(0, 0, 1)
        parameters = [p for p in self.task.network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=True)
        times = []
        for step in range(REHEARSAL + 2):
            started = time.monotonic()
            batch, _ = next(batches)
            with autocast(self.device, self.training.bf16):
                loss, _ = self.task.loss(self.task.network, to_device(batch, self.device), step_generator(0, 0, step))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            times.append(time.monotonic() - started)
        self.task.network.load_state_dict(kept)
        seconds = statistics.median(times[2:])
        left = budget - (time.monotonic() - begun)
        return max(20, int(0.95 * left / seconds)), seconds

    def _ask_to_stop(self, number: int, frame: object) -> None:
        del number, frame
        self.stop = True

    def _finish(self, steps: int) -> dict[str, Any]:
        """Write the weights, drop the checkpoints and return the facts of the run."""
        state = self.state
        if self.accelerator.is_main_process:
            save_weights(self.folder / "model.safetensors", state.network.state_dict())
            if state.average is not None:
                save_weights(self.folder / "ema.safetensors", state.average.state_dict())
        self.accelerator.wait_for_everyone()
        return {"steps": steps, "seconds": round(state.seconds, 1), "skipped_steps": state.skipped}


def train(task: Task, training: Training, folder: Path, *, seed: int, name: str) -> dict[str, Any]:
    """Train `task` in `folder`, from its last checkpoint if there is one; returns facts for the manifest."""
    return Loop(task, training, folder, seed=seed, name=name).run()


def seeded(seed: int, build: Callable[[], Module]) -> Module:
    """Build a network whose initial weights are a function of the seed; global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def device_of(network: nn.Module) -> torch.device:
    """Return where a network's weights are."""
    return next(network.parameters()).device


def drop_checkpoints(folder: Path) -> None:
    """Remove training state once the artefact stands."""
    for path in folder.glob("checkpoint*.pt"):
        path.unlink()


def autocast(device: torch.device, wanted: bool) -> torch.autocast:
    """bf16 arithmetic for the matrix products of a forward pass, where it is wanted and fast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and has_bf16(device))


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def can_compile() -> bool:
    """Whether torch.compile can work here: on CPU it needs a C++ compiler, on CUDA it needs Triton."""
    if torch.cuda.is_available():
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++"))


def _step_of(line: str) -> int:
    """Return the step of a log line; a torn last line counts as one to drop."""
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return 1 << 62
