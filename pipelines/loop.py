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
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from pipelines.artefact import PLAN, save_weights, write_atomically
from pipelines.descent import Descent, Taken
from pipelines.errors import PalimpsestError
from pipelines.hardware import can_compile, prefetch, step_generator
from pipelines.optimizer import players_optimizers, set_rate
from pipelines.plan import RESERVE, Plan
from pipelines.progress import Meter, meter
from pipelines.rehearsal import rehearse
from pipelines.state import BEST, State
from pipelines.task import Batch, Task, Training, decay_at, learning_rate, update_average

PARENT_VARIABLE = "PALIMPSEST_PARENT"  # process id of the `palimpsest run` that started a stage
LOG = "log.jsonl"  # curves and skipped samples, a line each
BAD_STEPS = 10  # steps in a row with a loss that is not finite before a run gives up
NAMED = 8  # samples that a warning names

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
        if training.accumulate > 1 and not task.divisible:
            raise PalimpsestError(
                f"stage.{name}.training.accumulate is {training.accumulate}, but its loss compares all items of a "
                "batch with each other: leave it out"
            )
        if training.batch // PartialState().num_processes % training.accumulate:
            raise PalimpsestError(
                f"stage.{name}.training.accumulate is {training.accumulate}, which does not divide the "
                f"{training.batch // PartialState().num_processes} items of a batch of {training.batch} on each process"
            )
        apart = DistributedDataParallelKwargs(broadcast_buffers=False)  # a pass must not take over another rank's sums
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[apart])
        self.device = self.accelerator.device
        for player in task.players:
            player.to(self.device)
        if training.compile and can_compile():
            for part in task.compiled_parts():
                part.compile(dynamic=False)
        average = copy.deepcopy(task.network).requires_grad_(False) if training.ema else None
        self.state = State(task.network, average, players_optimizers(task, training), task.rival)
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
        self.descent = Descent(self.task, self.training, self.state, self.accelerator)
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
            taken = self._step(batch, rank)
            bad = bad + 1 if taken.left_out else 0
            if taken.left_out:
                self._left_out(taken.suspects, bad)
            self.state.step, self.state.cursor = self.state.step + 1, cursor
            self.state.seconds = time.monotonic() - begun
            rate = self.state.step * self.training.batch / max(self.state.seconds, 1e-9)
            shown.advance(1, f"loss {taken.loss:.4f}  {rate:.0f} {self.task.unit}/s")
            if world == 1:  # ranks have clocks of their own
                self.plan.hold_against(self.state.step, self.state.seconds)
                shown.total = self.plan.at(self.state.step)
            self._watch(taken)

    def _step(self, batch: Batch, rank: int) -> Taken:
        """One optimiser step, with what stands around it."""
        state, steps = self.state, self.plan.at(self.state.step)
        generator = step_generator(self.seed, rank, state.step)
        begins = int(self.task.rival_start * self.plan.first)  # rounded down: any share below 1 leaves it a step
        self.task.playing = self.task.rival is not None and state.step >= begins
        state.follow(self.task.before(state.step, self.plan.first, steps, generator))
        set_rate(self.descent.optimizers, learning_rate(self.training, state.step, steps))
        taken = self.descent.step(batch, generator)
        if taken.left_out:
            return taken
        self.task.after(state.step)
        if state.average is not None:
            update_average(state.average, state.network, decay_at(self.training.ema or 0.0, state.step))
        return taken

    def _left_out(self, keys: Sequence[str], in_a_row: int) -> None:
        """Count a step that was left out and name its samples; give up where that happens too often."""
        state, steps = self.state, self.plan.at(self.state.step)
        state.skipped += 1
        if keys:
            named = ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
            log.warning("%s: step %d is left out, its loss is not finite. Samples: %s", self.name, state.step, named)
            self._write({"step": state.step + 1, "split": "left_out", "keys": keys})
        remedy = (
            f"Look at the samples named in {self.folder / LOG}, lower stage.{self.name}.training.learning_rate, or "
            "set bf16 = false."
        )
        if in_a_row >= BAD_STEPS:
            raise PalimpsestError(
                f"{self.name}: the loss was not finite for {in_a_row} steps in a row (step {state.step}). {remedy}"
            )
        if state.skipped > max(BAD_STEPS, self.training.max_skipped * steps):
            raise PalimpsestError(
                f"{self.name}: {state.skipped} of {state.step + 1} steps had a loss that is not finite, more than "
                f"{self.training.max_skipped:.1%} of {steps} (training.max_skipped). {remedy}"
            )

    def _watch(self, taken: Taken) -> None:
        """Plot, validate, draw and save when it is time to."""
        step, training = self.state.step, self.training
        steps = self.plan.at(step)
        last = step == steps
        if step % 20 == 0 or last:
            self._log("train", {"loss": taken.loss, **{key: float(value) for key, value in taken.scalars.items()}})
        stop = self.descent.anywhere(self.stop or orphaned())
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
        self._write({"step": self.state.step, "seconds": round(self.state.seconds, 1), "split": split, **finite})

    def _write(self, line: dict[str, Any]) -> None:
        """Append a line to log.jsonl."""
        if self.accelerator.is_main_process:
            with (self.folder / LOG).open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")

    def _trim_log(self) -> None:
        """Drop curve points that lie behind the checkpoint: those steps are taken again."""
        path = self.folder / LOG
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
                begun, budget = time.monotonic(), 60 * RESERVE * (training.minutes or 0)
                seconds = rehearse(self.task, training, self.device, budget, self.accelerator.num_processes)
                left = max(budget - (time.monotonic() - begun), 20 * seconds)
                watched = left if self.task.rival is None else None  # a rival makes later steps longer than early ones
                Plan(path, int(left / seconds), watched).save()
        self.accelerator.wait_for_everyone()
        return Plan.load(path)

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
