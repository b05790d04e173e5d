"""How long a step takes: a few that change nothing are timed, to turn a budget into a number of steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipelines.artefact import PLAN
from pipelines.descent import micro_batches
from pipelines.hardware import autocast, device_of, step_generator, to_device
from pipelines.optimizer import players_optimizers, set_rate
from pipelines.plan import RESERVE, Plan
from pipelines.supply import AGREE, Supply
from pipelines.task import Batch, Task, Training
from pipelines.together import together
from tokenizer.ranks import alone

LEAST = (8, 8.0)  # steps and seconds, at least, that are timed


def planned(task: Task, training: Training, folder: Path, accelerator: Accelerator) -> Plan:
    """Return the plan of a run in its folder; the main process makes it where there is none.

    Raises on all processes what that one has met: data that cannot be read, or that it was asked to stop.
    """
    path = folder / PLAN
    with together():
        if accelerator.is_main_process and not path.exists():
            _plan(task, training, path, accelerator).save()
    return Plan.load(path)


def _plan(task: Task, training: Training, path: Path, accelerator: Accelerator) -> Plan:
    """Turn a budget into steps, where they are not given."""
    if training.steps:
        return Plan(path, training.steps)
    begun, budget = time.monotonic(), 60 * RESERVE * (training.minutes or 0)
    seconds = rehearse(task, training, accelerator.device, budget, accelerator.num_processes)
    left = max(budget - (time.monotonic() - begun), 20 * seconds)
    watched = left if task.rival is None else None  # a rival makes later steps longer than early ones
    return Plan(path, int(left / seconds), watched)


def rehearse(task: Task, training: Training, device: torch.device, budget: float, world: int) -> float:
    """Return the seconds of a step, a mean over the phases with and without a rival.

    budget: seconds of the whole training, of which at most a tenth goes by here for each phase.
    """
    kept = [value.detach().clone() for value in _values(task.players)]
    shares = {False: 1.0} if task.rival is None else {False: task.rival_start, True: 1 - task.rival_start}
    seconds = sum(share * _timed(task, training, device, budget, world, playing=playing)
                  for playing, share in shares.items() if share)  # fmt: skip
    with torch.no_grad():
        for value, before in zip(_values(task.players), kept, strict=True):
            value.copy_(before)
    return seconds


def _values(players: Sequence[nn.Module]) -> Iterator[Tensor]:
    """All that a step may move."""
    return (value for player in players for value in (*player.parameters(), *player.buffers()))


def _timed(task: Task, training: Training, device: torch.device, budget: float, world: int, *, playing: bool) -> float:
    """Return the median seconds of a step at rate 0."""
    task.rehearse(playing)
    optimizers = players_optimizers(task, training)
    set_rate(optimizers, 0.0)
    times: list[float] = []
    with Supply(task.batches(0, 0, world)) as supply:
        while len(times) < LEAST[0] + 2 or (sum(times[2:]) < LEAST[1] and sum(times) < 0.1 * budget):
            started, generator = time.monotonic(), step_generator(0, 0, len(times))
            while not supply.wait(AGREE):
                pass
            batch, _ = supply.take()
            for part in micro_batches(batch, training.accumulate):
                _descend(task, training, to_device(part, device), generator)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            times.append(time.monotonic() - started)
    return statistics.median(times[2 + len(times) // 3 :])  # the first ones meet cold caches and busy neighbours


def _descend(task: Task, training: Training, part: Batch, generator: torch.Generator) -> None:
    """Take the gradients of a micro-batch alone: other ranks wait."""
    with autocast(device_of(task.network), training.bf16), alone():
        loss, _ = task.loss(task.network, part, generator)
    loss.backward()
    if task.playing and task.rival is not None:
        with autocast(device_of(task.network), training.bf16), alone():
            own, _ = task.rival_loss(task.rival, generator)
        own.backward()
