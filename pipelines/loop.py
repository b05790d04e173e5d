"""The one training loop: every stage that learns by gradient descent runs through `train`.

A stage gives a `Task` (a network, batches, a loss) and the loop gives it the rest: budget, schedule, clipping, EMA,
validation, pictures, curves, checkpoints and exact resume. All draws of a step come from a generator keyed by
(seed, rank, step) and the data order from (seed, epoch, cursor), so that a checkpoint holds no random state and an
interrupted run ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import shutil
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from pipelines.artefact import PLAN, save_weights, write_atomically
from pipelines.errors import PalimpsestError
from pipelines.hardware import autocast, can_compile, prefetch, step_generator, to_device
from pipelines.optimizer import optimizers_of, set_rate
from pipelines.plan import RESERVE, Plan
from pipelines.progress import Meter, meter
from pipelines.state import BEST, State
from pipelines.task import Batch, Task, Training, decay_at, learning_rate, update_average

REHEARSAL = (8, 8.0)  # steps and seconds, at least, that are timed to turn minutes into a number of steps
PARENT_VARIABLE = "PALIMPSEST_PARENT"  # process id of the `palimpsest run` that started a stage
BAD_STEPS = 10  # consecutive steps with a loss that is not finite before a run gives up

log = logging.getLogger("palimpsest")


class Interrupted(PalimpsestError):
    """The run was asked to stop and has saved its state."""


def orphaned() -> bool:
    """Whether the `palimpsest run` that started this stage is gone: nobody waits for it, and another may start."""
    parent = os.environ.get(PARENT_VARIABLE)
    return parent is not None and os.getppid() != int(parent)


class Loop:
    """One training run of one task in one folder."""

    def __init__(self, task: Task, training: Training, folder: Path, *, seed: int, name: str) -> None:
        self.task, self.training, self.folder, self.seed, self.name = task, training, folder, seed, name
        if training.keep == "best" and not task.criterion:
            raise PalimpsestError(
                f"stage.{name}.training.keep is 'best', but its kind validates by no figure: leave it out"
            )
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.device = self.accelerator.device
        task.network.to(self.device)
        if training.compile and can_compile():
            for part in task.compiled_parts():
                part.compile(dynamic=False)
        average = copy.deepcopy(task.network).requires_grad_(False) if training.ema else None
        self.state = State(task.network, average, optimizers_of(task.network, training))
        self.stop = False

    def run(self) -> dict[str, Any]:
        """Train to the end and return what the manifest should remember. Raises Interrupted after saving."""
        self.folder.mkdir(parents=True, exist_ok=True)
        resumed = self.state.load(self.folder)
        self.earlier = self.state.seconds
        if self.accelerator.is_main_process:
            self._trim_log()
        self.plan = self._plan()
        steps = self.plan.at(self.state.step)
        self.prepared, *self.optimizers = self.accelerator.prepare(self.task.network, *self.state.optimizers)
        previous = {number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.state.step)
        try:
            with meter(self.name, steps) as shown:
                shown.advance(self.state.step, "resumed" if resumed else "starting")
                self._steps(shown)
        finally:
            self.writer.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self._finish()

    def _steps(self, shown: Meter) -> None:
        """Take every step that is left."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        bad = 0
        begun = time.monotonic() - self.state.seconds
        batches = prefetch(self.task.batches(self.state.cursor, rank, world))
        while self.state.step < self.plan.at(self.state.step):
            batch, cursor = next(batches)
            loss, scalars = self._step(batch, rank)
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
            if world == 1:  # ranks have clocks of their own
                self.plan.hold_against(self.state.step, self.state.seconds)
                shown.total = self.plan.at(self.state.step)
            self._watch(loss, scalars)

    def _step(self, batch: Batch, rank: int) -> tuple[float, dict[str, Tensor]]:
        """One optimiser step; returns the loss and the scalars to plot. A loss that is not finite changes nothing."""
        state, training = self.state, self.training
        generator = step_generator(self.seed, rank, state.step)
        self.task.before(state.step, self.plan.first, self.plan.at(state.step), generator)
        set_rate(self.optimizers, learning_rate(training, state.step, self.plan.at(state.step)))
        buffers = [buffer.clone() for buffer in state.network.buffers()]  # a forward pass moves codebooks and norms
        with autocast(self.device, training.bf16):
            loss, scalars = self.task.loss(self.prepared, to_device(batch, self.device), generator)
        value = float(loss.detach())
        self.task.network.zero_grad(set_to_none=True)
        if self._anywhere(not math.isfinite(value)):
            return self._skip(buffers)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.prepared.parameters(), training.clip)
        if norm is not None and not torch.isfinite(norm):
            return self._skip(buffers)
        for optimizer in self.optimizers:
            optimizer.step()
        if state.average is not None:
            update_average(state.average, state.network, decay_at(training.ema or 0.0, state.step))
        return value, {**scalars, "gradient_norm": norm} if isinstance(norm, Tensor) else scalars

    def _skip(self, buffers: list[Tensor]) -> tuple[float, dict[str, Tensor]]:
        """Leave the network as it was before the step: its weights did not move, its buffers go back."""
        self.state.skipped += 1
        for buffer, kept in zip(self.state.network.buffers(), buffers, strict=True):
            buffer.copy_(kept)
        return math.nan, {}

    def _watch(self, loss: float, scalars: dict[str, Tensor]) -> None:
        """Plot, validate, draw and save when it is time to."""
        step, training = self.state.step, self.training
        steps = self.plan.at(step)
        last = step == steps
        if step % 20 == 0 or last:
            self._log("train", {"loss": loss, **{key: float(value) for key, value in scalars.items()}})
        stop = self._anywhere(self.stop or orphaned())
        if self.accelerator.is_main_process:
            if step % training.validate_every == 0 or last:
                self._validate()
            if step % training.picture_every == 0 or last:
                self._draw(step)
            if stop or time.monotonic() - self.state.last_save > training.save_seconds:
                self.state.save(self.folder)
        self.accelerator.wait_for_everyone()
        if stop:
            raise Interrupted(
                f"{self.name}: stopped at step {step} of {steps}; saved. The same command goes on from there."
            )

    def _anywhere(self, flag: bool) -> bool:
        """Whether the flag is set on some rank: all ranks must skip a step, or stop, together."""
        if self.accelerator.num_processes == 1:
            return flag
        total: Any = self.accelerator.reduce(torch.tensor(float(flag), device=self.device))
        return bool(total > 0)

    def _draw(self, step: int) -> None:
        """Keep sample pictures of the averaged network. What they are drawn with may be wrong; training goes on."""
        try:
            pictures = self._with_average(self.task.pictures)
        except (PalimpsestError, ValueError) as error:
            log.warning("%s: no sample pictures at step %d: %s", self.name, step, error)
            return
        for name, picture in pictures.items():
            (self.folder / "pictures").mkdir(exist_ok=True)
            picture.save(self.folder / "pictures" / f"{name}-{step:06d}.png")

    def _validate(self) -> None:
        """Plot figures on held-out data, and keep the weights that are best by them where that is asked for."""
        found = self._with_average(self.task.validate)
        self._log("validation", found)
        if self.training.keep == "best":
            figure = found[self.task.criterion]
            if math.isfinite(figure) and (self.state.best is None or figure < self.state.best[1]):
                self.state.best = (self.state.step, figure)
                save_weights(self.folder / BEST.format(self.state.step), self._shown().state_dict())

    def _shown(self) -> nn.Module:
        """The averaged network, or the network itself where no average is kept."""
        return self.state.average if self.state.average is not None else self.state.network

    def _with_average(self, view: Any) -> Any:
        network = self._shown()
        network.eval()
        try:
            with torch.no_grad():
                return view(network)
        finally:
            self.state.network.train()

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
            text = "".join(line + "\n" for line in kept)
            write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def _plan(self) -> Plan:
        """Return the plan of this run; the main process makes it where there is none."""
        path, training = self.folder / PLAN, self.training
        if self.accelerator.is_main_process and not path.exists():
            if training.steps:
                Plan(path, training.steps).save()
            else:
                steps, left = self._rehearse(60 * RESERVE * (training.minutes or 0))
                Plan(path, steps, left).save()
        self.accelerator.wait_for_everyone()
        return Plan.load(path)

    def _rehearse(self, budget: float) -> tuple[int, float]:
        """Time a few steps that change nothing; return (steps that fit, seconds left) of `budget` seconds."""
        begun = time.monotonic()
        kept = copy.deepcopy(self.task.network.state_dict())
        batches = self.task.batches(0, 0, self.accelerator.num_processes)
        optimizers = optimizers_of(self.task.network, self.training)
        set_rate(optimizers, 0.0)
        times: list[float] = []
        while len(times) < REHEARSAL[0] + 2 or (sum(times[2:]) < REHEARSAL[1] and sum(times) < 0.1 * budget):
            started, step = time.monotonic(), len(times)
            batch, _ = next(batches)
            with autocast(self.device, self.training.bf16):
                loss, _ = self.task.loss(self.task.network, to_device(batch, self.device), step_generator(0, 0, step))
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            self.task.network.zero_grad(set_to_none=True)
            times.append(time.monotonic() - started)
        self.task.network.load_state_dict(kept)
        seconds = statistics.median(times[2 + len(times) // 3 :])  # the first ones meet cold caches and busy neighbours
        left = max(budget - (time.monotonic() - begun), 20 * seconds)
        return int(left / seconds), left

    def _ask_to_stop(self, number: int, frame: object) -> None:
        del number, frame
        self.stop = True

    def _finish(self) -> dict[str, Any]:
        """Write the weights, drop the checkpoints and return the facts of the run."""
        state = self.state
        if self.accelerator.is_main_process:
            save_weights(self.folder / "model.safetensors", state.network.state_dict())
            if state.best is not None:
                best = self.folder / BEST.format(state.best[0])
                write_atomically(self.folder / "ema.safetensors", lambda temporary: shutil.copyfile(best, temporary))
            elif state.average is not None:
                save_weights(self.folder / "ema.safetensors", state.average.state_dict())
        self.accelerator.wait_for_everyone()
        seconds = {"seconds": round(state.seconds, 1), "earlier_seconds": round(self.earlier, 1)}
        chosen = {} if state.best is None else {"chosen_step": state.best[0], "chosen_by": self.task.criterion}
        return {"steps": state.step, **seconds, "skipped_steps": state.skipped, **chosen}


def train(task: Task, training: Training, folder: Path, *, seed: int, name: str) -> dict[str, Any]:
    """Train `task` in `folder`, from its last checkpoint if there is one; returns facts for the manifest."""
    return Loop(task, training, folder, seed=seed, name=name).run()


def _step_of(line: str) -> int:
    """Return the step of a log line; a torn last line counts as one to drop."""
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return 1 << 62
