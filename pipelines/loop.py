"""The one training loop: every stage that learns by gradient descent runs through `train`.

A stage gives a `Task` (a network, batches, a loss) and the loop gives it the rest: budget, schedule, clipping, EMA,
validation, pictures, curves, checkpoints and exact resume. All draws of a step come from a generator keyed by
(seed, rank, step) and the data order from (seed, epoch, cursor), so that a checkpoint holds no random state and an
interrupted run ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import nn

from pipelines import averages
from pipelines.artefact import ArtefactError
from pipelines.checkpoints import load
from pipelines.curves import LOG, Curves
from pipelines.descent import Descent, Taken
from pipelines.errors import DataError, Interrupted, PalimpsestError
from pipelines.hardware import can_compile, from_main, step_generator
from pipelines.ledger import summary
from pipelines.left_out import remedy, too_many
from pipelines.optimizer import players_optimizers, set_rate
from pipelines.posthoc import Tracked, begin_anew
from pipelines.progress import Meter, meter
from pipelines.rehearsal import planned
from pipelines.sharding import Sharding
from pipelines.shared_checkpoints import checkpoints_of
from pipelines.state import State
from pipelines.stopping import listening, orphaned
from pipelines.supply import AGREE, Item, Supply
from pipelines.task import Batch, Task, Training, check_task, decay_at, learning_rate, update_average
from pipelines.together import together
from pipelines.views import Views

NAMED = 8  # samples that a warning names
SHAPES = 256  # that a block is compiled for: those of all buckets, in training, validation and pictures
WORTH_SAYING = 0.05  # share of the time that is waited for data

log = logging.getLogger("palimpsest")


class Loop:
    """One training run of one task in one folder."""

    def __init__(self, task: Task, training: Training, folder: Path, *, seed: int, name: str) -> None:
        self.task, self.training, self.folder, self.seed, self.name = task, training, folder, seed, name
        apart = DistributedDataParallelKwargs(broadcast_buffers=False)  # a pass must not take over another rank's sums
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[apart])
        check_task(task, training, name, self.accelerator.num_processes)
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        if training.compile and can_compile():
            torch._dynamo.config.recompile_limit = SHAPES
            for part in task.compiled_parts():
                part.compile(dynamic=False)
        self.sharding = Sharding.of(training, self.accelerator)
        average = self._spread()
        tracked = Tracked(task.network, training.posthoc) if training.posthoc else None
        self.state = State(task.network, average, players_optimizers(task, training), task.rival, tracked)
        self.checkpoints = checkpoints_of(folder, training, self.sharding, main=self.main)
        self.views = Views(task=task, training=training, state=self.state, folder=folder, name=name, main=self.main)
        self.stop = False

    def _spread(self) -> nn.Module | None:
        """Bring the players to where they train; returns an average of the network where one is kept."""
        task, ema = self.task, self.training.ema is not None
        if self.sharding is not None:
            return self.sharding.shard(task.network, average=ema)
        for player in task.players:
            player.to(self.device)
        return copy.deepcopy(task.network).float().requires_grad_(False) if ema else None

    def run(self) -> dict[str, Any]:
        """Train to the end and return what the manifest should remember. Raises Interrupted after saving."""
        self.folder.mkdir(parents=True, exist_ok=True)
        resumed = self._resume()
        self.earlier, self.saved, self.last_save = self.state.seconds, self.state.step, time.monotonic()
        self.plan = planned(self.task, self.training, self.folder, self.accelerator)
        steps = self.plan.at(self.state.step)
        self.descent = Descent(self.task, self.training, self.state, self.accelerator)
        self.curves = Curves(self.folder, self.state.step) if self.main else None
        try:
            with listening(self._ask_to_stop), meter(self.name, steps) as shown:
                shown.advance(self.state.step, "resumed" if resumed else "starting")
                self._steps(shown)
            rows = self._ledger()
            self._settle(wait=True)
        finally:
            self.checkpoints.close()
            if self.curves is not None:
                self.curves.close()
        facts = {**self._finish(), **({"passed_over": summary(rows)} if rows else {})}
        if self.state.tracked is not None and self.main:
            self.state.tracked.finish(self.folder, facts)
        return facts

    def _resume(self) -> bool:
        """Go on from the newest whole checkpoint, which the main process chooses, if there is one."""
        with together():
            chosen = self.checkpoints.newest() if self.main else None
        chosen = from_main(chosen)
        if chosen is None:
            if self.main:
                begin_anew(self.folder)
            return False
        kept = load(chosen)
        self.state.restore(kept, self.folder)
        self.task.ledger.restore([kept.facts.get("ledger", {})])
        self.views.figures = kept.facts.get("figures", {})
        return True

    def _steps(self, shown: Meter) -> None:
        """Take every step that is left."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        with Supply(self.task.batches(self.state.cursor, rank, world)) as self.supply:
            self._take(rank, world, shown)

    def _take(self, rank: int, world: int, shown: Meter) -> None:
        begun = time.monotonic() - self.state.seconds
        while self.state.step < self.plan.at(self.state.step):
            batch, cursor = self._next(self.supply)
            taken = self._step(batch, self._beside(), rank)
            if taken.left_out:
                self._left_out(taken)
            else:
                self.state.in_a_row = 0
            self.state.step, self.state.cursor = self.state.step + 1, cursor
            self.state.seconds = time.monotonic() - begun
            if self.state.tracked is not None:
                self.state.tracked.update(self.state.network, self.state.step)
            rate = self.state.step * self.training.batch / max(self.state.seconds, 1e-9)
            waited = self.supply.waiting
            idle = f"  {waited:.0%} waiting for data (data.workers)" if waited > WORTH_SAYING else ""
            shown.advance(1, f"loss {taken.loss:.4f}  {rate:.0f} {self.task.unit}/s{idle}")
            if world == 1:  # ranks have clocks of their own
                self.plan.hold_against(self.state.step, self.state.seconds)
                shown.total = self.plan.at(self.state.step)
            self._watch(taken)
        self._agree()
        if self.state.step > self.saved:  # what follows may be stopped
            self._save(wait=False)

    def _next(self, supply: Supply[Item]) -> Item:
        """The next item, once every rank has one."""
        waiting = True
        while waiting:
            there = supply.wait(AGREE)
            waiting = self._agree(waiting=not there, error=supply.error)
        return supply.take()

    def _beside(self) -> list[Batch]:
        """What the step needs beside its batch."""
        step = self.state.step
        wanted = self.task.beside(step, self.plan.first, self.plan.at(step))
        if wanted is None:
            return []
        with Supply(list(batches) for batches in [wanted]) as supply:
            return self._next(supply)

    def _agree(self, *, waiting: bool = False, error: Exception | None = None) -> bool:
        """Save where it is time to; save and stop where a rank is asked to or cannot read; say whether one waits.

        The one agreement of all ranks between two steps. The state is that of the last step, whoever waits for what.
        """
        moved, idle = self.state.step > self.saved, time.monotonic() - self.last_save
        due = self.main and moved and idle > self.training.save_seconds
        flags = self.stop or orphaned(), error is not None, waiting, due
        stop, failed, waiting, due = self.descent.anywhere(*flags)
        if failed:
            self._stop_with(error)
        if stop or due:
            self._save(wait=stop)
        if stop:
            self._stopped()
        return waiting

    def _stop_with(self, error: Exception | None) -> NoReturn:
        """Save, and end with what one rank has met; it is no mistake of the others."""
        said = [words for words in gather_object([str(error) or repr(error) if error else ""]) if words]
        try:
            self._save(wait=True)
        except ArtefactError as also:
            raise DataError(f"{said[0]} {also}") from error
        self.accelerator.wait_for_everyone()
        if error is not None and not isinstance(error, PalimpsestError):
            raise error
        step = self.state.step
        raise DataError(f"{said[0]} {self.name} is saved at step {step}: the same command goes on from there.")

    def _stopped(self) -> NoReturn:
        self.accelerator.wait_for_everyone()
        step, steps = self.state.step, self.plan.at(self.state.step)
        raise Interrupted(
            f"{self.name}: stopped at step {step} of {steps}; saved. The same command goes on from there."
        )

    def _step(self, batch: Batch, beside: list[Batch], rank: int) -> Taken:
        """One optimiser step, with what stands around it."""
        state, steps = self.state, self.plan.at(self.state.step)
        generator = step_generator(self.seed, rank, state.step)
        begins = int(self.task.rival_start * self.plan.first)  # rounded down: any share below 1 leaves it a step
        self.task.playing = self.task.rival is not None and state.step >= begins
        if self.task.playing and state.step == begins:
            state.norms.forget()  # from here on the network has another loss
        state.follow(self.task.before(state.step, self.plan.first, steps, generator, beside))
        set_rate(self.descent.optimizers, learning_rate(self.training, state.step, steps))
        taken = self.descent.step(batch, generator)
        if taken.left_out:
            return taken
        self.task.after(state.step)
        if state.average is not None:
            update_average(state.average, state.network, decay_at(self.training.ema or 0.0, state.step))
        return taken

    def _left_out(self, taken: Taken) -> None:
        """Count a step that was left out and name its samples; give up where that happens too often."""
        state, steps, reason = self.state, self.plan.at(self.state.step), taken.left_out
        keys = gather_object(list(taken.suspects))
        state.skipped, state.in_a_row = state.skipped + 1, state.in_a_row + 1
        if keys and self.curves is not None:
            named = ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
            log.warning("%s: step %d is left out, %s. Samples: %s", self.name, state.step, reason, named)
            self.curves.note({"step": state.step + 1, "split": "left_out", "reason": reason, "keys": keys})
        if words := too_many(state, self.training, steps, reason):
            look = f"Look at the samples named in {self.folder / LOG}"
            raise PalimpsestError(f"{self.name}: {words}. {look}, {remedy(self.name, self.training)}.")

    def _watch(self, taken: Taken) -> None:
        """Plot, validate, draw and keep a checkpoint for good when it is time to; other ranks wait in the next step."""
        step, training = self.state.step, self.training
        steps, looking = self.plan.at(step), self.views.taking_part
        last = step == steps
        if step % 20 == 0 or last:
            scalars = {key: float(value) for key, value in taken.scalars.items()}
            self._log("train", {"loss": taken.loss, **scalars, "waiting": self.supply.waiting})
        if looking and (step % training.validate_every == 0 or last):
            self._log("validation", self.views.validate())
        if looking and (step % training.picture_every == 0 or last):
            self.views.draw(step)
        tracked = self.state.tracked
        if looking and tracked is not None and (step % tracked.config.every == 0 or last):
            tracked.snapshot(self.folder, step, main=self.main)
        self._settle(wait=False)
        if self.checkpoints.due(step):
            self._save(wait=False)

    def _save(self, *, wait: bool) -> None:
        """Begin a checkpoint, and end it where nothing comes after it."""
        rows = self._ledger()
        if self.views.taking_part:
            more = {"figures": self.views.figures, "ledger": rows, "world": self.accelerator.num_processes}
            self._settle(wait=True)
            self.checkpoints.begin({**self.state.facts(), **more}, self.state.tensors())
        self.saved, self.last_save = self.state.step, time.monotonic()  # on all ranks, who must agree on what is left
        if wait:
            with together():
                self.checkpoints.settle()

    def _settle(self, *, wait: bool) -> None:
        """Meet what writing a checkpoint has met. A full disk ends no training: that would lose more than going on."""
        try:
            self.checkpoints.settle(wait=wait)
        except ArtefactError as error:
            log.warning("%s: %s Training goes on, and another checkpoint is tried when it is time.", self.name, error)

    def _ledger(self) -> dict[str, Any]:
        """Return what the streams of all processes have passed over."""
        self.task.ledger.restore(gather_object([self.task.ledger.rows()]))
        return self.task.ledger.rows()

    def _log(self, split: str, scalars: dict[str, float]) -> None:
        """Add to the curves."""
        if scalars and self.curves is not None:
            self.curves.plot(split, self.state.step, self.state.seconds, scalars)

    def _ask_to_stop(self) -> None:
        self.stop = True

    def _finish(self) -> dict[str, Any]:
        """Write the weights, drop the checkpoints and return the facts of the run."""
        state = self.state
        self.views.keep()
        seconds = {"seconds": round(state.seconds, 1), "earlier_seconds": round(self.earlier, 1)}
        seconds["waiting"] = round(self.supply.waiting, 4)
        chosen = {} if state.best is None else {"chosen_step": state.best[0], "chosen_by": self.task.criterion}
        return {"steps": state.step, **seconds, "skipped_steps": state.skipped, **chosen}


def train(task: Task, training: Training, folder: Path, *, seed: int, name: str) -> dict[str, Any]:
    """Train `task` in `folder`, from its last checkpoint if there is one; returns facts for the manifest.

    Where training is over and only averages of another length are asked for, make those.
    """
    if averages.asked(folder):
        return averages.answer(task, folder)
    return Loop(task, training, folder, seed=seed, name=name).run()
