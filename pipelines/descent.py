"""One step of gradient descent: a network and, where it has one, its rival, each with a loss of its own.

Both players see the same weights of the other, those from before the step; their gradients are clipped apart and never
mix, since a task gives the network's loss no way into the rival's weights, and the rival only finished pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pipelines.errors import PalimpsestError
from pipelines.hardware import autocast, to_device
from pipelines.rows import whole
from pipelines.state import State
from pipelines.task import Batch, Task, Training

NORMS: tuple[str, ...] = ("gradient_norm", "rival_gradient_norm")  # of the network and its rival
NOT_FINITE = "its loss is not finite"


class Taken(NamedTuple):
    """A step that was taken, or left out for a reason, in words: then `loss` is NaN.

    suspects: keys of this rank's samples of a step that was left out, none where another rank's are to blame.
    """

    loss: float
    scalars: dict[str, Tensor]
    left_out: str = ""
    suspects: tuple[str, ...] = ()


class Descent:
    """Takes the steps of one training run."""

    def __init__(self, task: Task, training: Training, state: State, accelerator: Accelerator) -> None:
        self.task, self.training, self.state, self.accelerator = task, training, state, accelerator
        moved = task.network, *state.optimizers
        sharded = isinstance(task.network, FSDPModule)  # it adds up its gradients itself, those of each micro-batch
        self.network, *rest = moved if sharded else accelerator.prepare(*moved)
        self.rival: nn.Module | None = None if task.rival is None else accelerator.prepare(task.rival)
        self.optimizers: list[Any] = rest

    def step(self, batch: Batch, generator: torch.Generator) -> Taken:
        """Take one step; one whose loss or gradient is not finite on any rank, or is a spike, changes nothing."""
        buffers = [buffer.clone() for buffer in self._buffers()]  # a forward pass moves codebooks and norms
        for player in self.task.players:
            player.zero_grad(set_to_none=True)
        loss, scalars, bad = self._descend(batch, generator)
        if self.anywhere(bool(bad))[0]:
            return self._leave_out(buffers, bad, NOT_FINITE)
        norms = dict(zip(NORMS, map(self._clipped, self.task.players), strict=False))
        if not all(bool(norm.isfinite()) for norm in norms.values()):
            return self._leave_out(buffers, suspects(batch), NOT_FINITE)
        if spike := self._spike(norms):
            return self._leave_out(buffers, suspects(batch), spike)
        for optimizer in self.optimizers:
            optimizer.step()
        return Taken(loss, {**scalars, **norms})

    def _clipped(self, player: nn.Module) -> Tensor:
        """Clip a player's gradients; returns their norm () before that, the same on every rank."""
        return whole(torch.as_tensor(self.accelerator.clip_grad_norm_(player.parameters(), self.training.clip)))

    def _spike(self, norms: Mapping[str, Tensor]) -> str | None:
        """Say why a step is a spike, alike on every rank; a rival that does not play yet has no norm."""
        if self.training.spike is None:
            return None
        playing = {name: float(norm) for name, norm in norms.items() if self.task.playing or name == NORMS[0]}
        return self.state.norms.judge(playing, self.training.spike)

    def _leave_out(self, buffers: list[Tensor], keys: list[str], reason: str) -> Taken:
        """Leave the players as they were before the step: their weights did not move, their buffers go back."""
        for buffer, kept in zip(self._buffers(), buffers, strict=True):
            buffer.copy_(kept)
        return Taken(math.nan, {}, left_out=reason, suspects=tuple(keys))

    def _descend(self, batch: Batch, generator: torch.Generator) -> tuple[float, dict[str, Tensor], list[str]]:
        """Gradients over the micro-batches: the mean loss, mean scalars, and the samples of losses not finite."""
        count, device = self.training.accumulate, self.accelerator.device
        total, shown, bad = 0.0, dict[str, Tensor](), list[str]()
        for number, part in enumerate(micro_batches(batch, count)):
            with ExitStack() as stack:
                for player in (self.network, self.rival):
                    if player is not None and number < count - 1:  # ranks add their gradients up once a step
                        stack.enter_context(self.accelerator.no_sync(player))
                with autocast(device, self.training.bf16):
                    loss, scalars = self.task.loss(self.network, to_device(part, device), generator)
                self.accelerator.backward(loss / count)
                value = float(loss.detach())
                if self.rival is not None and self.task.playing:
                    with autocast(device, self.training.bf16):
                        own, also = self.task.rival_loss(self.rival, generator)
                    self.accelerator.backward(own / count)
                    scalars = {**scalars, **also}
                    value = value if math.isfinite(float(own.detach())) else math.nan
            total += value / count
            shown = {name: shown.get(name, 0) + scalar / count for name, scalar in scalars.items()}
            bad += [] if math.isfinite(value) else suspects(part)
        return total, shown, bad

    def anywhere(self, *flags: bool) -> list[bool]:
        """Whether each flag is set on some rank: all ranks must skip a step, save or stop together."""
        if self.accelerator.num_processes == 1:
            return list(flags)
        total: Any = self.accelerator.reduce(torch.tensor(flags, dtype=torch.float32, device=self.accelerator.device))
        return [bool(flag) for flag in total > 0]

    def _buffers(self) -> Iterator[Tensor]:
        return (buffer for player in self.task.players for buffer in player.buffers())


def micro_batches(batch: Batch, count: int) -> Iterator[Batch]:
    """Cut a batch into `count` equal parts, each of its values by items; what has no items goes with every part.

    Raises PalimpsestError where the items do not divide.
    """
    sizes = {key: len(value) for key, value in batch.items() if _has_items(value)}
    if odd := next((key for key, size in sizes.items() if size % count), None):
        raise PalimpsestError(
            f"training.accumulate is {count}, but a batch on one device has {sizes[odd]} items ({odd}): take a batch "
            "that it divides"
        )
    parts = {key: size // count for key, size in sizes.items()}
    for number in range(count):
        yield {
            key: value[number * parts[key] : (number + 1) * parts[key]] if key in parts else value
            for key, value in batch.items()
        }


def suspects(batch: Batch) -> list[str]:
    """Keys of the samples that hold a value that is not finite, or of all where none does."""
    keys = [str(key) for key in batch.get("key", [])] or ["a sample without a key"]
    found: set[int] = set()
    for value in batch.values():
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim and len(value) == len(keys):
            found |= set((~value.isfinite()).flatten(1).any(1).nonzero().flatten().tolist())
    return [keys[number] for number in sorted(found)] or keys


def _has_items(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.ndim > 0)
