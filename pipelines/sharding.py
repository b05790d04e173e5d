"""Sharded training: each process holds a part of the rows of every tensor (FSDP, arXiv:2304.11277; hybrid: HSDP).

Blocks are made whole one after the other where a pass comes to them; what stands around them (embeddings, the last
layer) is whole during a pass. Sharded tensors are torch's DTensors, cut by their first dimension.
"""

from __future__ import annotations

import copy
import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils._pytree import tree_map_only

from pipelines.errors import PalimpsestError
from pipelines.hardware import has_bf16
from pipelines.rows import local
from pipelines.task import Training, blocks_of
from pipelines.training_files import Part

FEW = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


@dataclass(frozen=True)
class Sharding:
    """Which processes share a copy of the state. mesh: (parts,) or (copies, parts)."""

    mesh: DeviceMesh
    device: torch.device
    bf16: bool

    @classmethod
    def of(cls, training: Training, accelerator: Accelerator) -> Sharding | None:
        """Return how `training.shard` spreads the state over the processes; None where each holds all of it."""
        world, device = accelerator.num_processes, accelerator.device
        if training.shard is None or world == 1:
            return None
        parts = parts_of(training, world, processes_of_a_node())
        shape = (world,) if parts == world else (world // parts, parts)
        names = ("copies", "parts")[-len(shape) :]
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
        return cls(mesh, device, training.bf16 and has_bf16(device))

    @property
    def part(self) -> Part | None:
        """The part of the state that this process writes; None where another process holds the same."""
        number, count = self.mesh.get_local_rank("parts"), self.mesh["parts"].size()
        first = self.mesh.ndim == 1 or self.mesh.get_local_rank("copies") == 0
        return Part(number, count) if first else None

    def shard(self, network: nn.Module, *, average: bool) -> nn.Module | None:
        """Shard a network, and return an average of it in float32 that lies like it, where one is kept.

        The network's blocks are gathered in bf16 where that is what they compute in; their gradients are added up in
        float32. Only a block at a time is on the device before it is sharded.
        """
        kept = _without_values(network) if average else None
        self._cut(network, FEW if self.bf16 else MixedPrecisionPolicy())
        if kept is not None:
            self._cut(kept, MixedPrecisionPolicy())
            kept.to_empty(device=self.device)
            _take_over(kept, network)
        return kept

    def _cut(self, network: nn.Module, policy: MixedPrecisionPolicy) -> None:
        for block in blocks_of(network):
            if block is not network:
                fully_shard(block, mesh=self.mesh, mp_policy=policy)
        fully_shard(network, mesh=self.mesh)


def processes_of_a_node() -> int:
    """Return how many processes of the run a node has, whoever started them; all of them must call it."""
    heard = gather_object([(socket.gethostname(), int(os.environ.get("LOCAL_WORLD_SIZE", 0)))])
    said = [count for _, count in heard if count > 1]  # a launcher that starts each process alone says 1
    return math.gcd(*said) if said else side_by_side([host for host, _ in heard])


def side_by_side(hosts: Sequence[str]) -> int:
    """Return the largest number of neighbours that are on one machine, whichever is asked; hosts: of each process."""
    return math.gcd(*(len(list(run)) for _, run in groupby(hosts)))


def parts_of(training: Training, world: int, node: int) -> int:
    """Return how many processes share a copy of the state: all, or those of a node, `node`.

    Raises PalimpsestError where they do not divide the processes.
    """
    if training.shard != "hybrid":
        return world
    parts = training.shard_over or node
    if world % parts:
        raise PalimpsestError(
            f"training.shard_over is {parts} (by default the processes of a node), which does not divide the {world} "
            "processes: give a number that does"
        )
    return parts


def _without_values(network: nn.Module) -> nn.Module:
    """Return a copy in float32 whose tensors hold nothing, and which does not learn."""
    made: dict[int, Any] = {}
    for value in network.parameters():
        made[id(value)] = nn.Parameter(torch.empty_like(value, device="meta", dtype=torch.float32), requires_grad=False)
    for value in network.buffers():
        made[id(value)] = torch.empty_like(value, device="meta")
    return copy.deepcopy(network, made)


@torch.no_grad()
def _take_over(average: nn.Module, network: nn.Module) -> None:
    for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
        local(mine).copy_(local(theirs))
    for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(theirs)


@contextmanager
def open_to_all(network: nn.Module) -> Iterator[None]:
    """Let all processes ask a sharded network together, what stands around its blocks being whole meanwhile.

    What the main process finds is what all go on with, so that none takes another way through a sampler. One that is
    not sharded is left alone.
    """
    if not isinstance(network, FSDPModule):
        yield
        return
    hook = network.register_forward_hook(lambda module, inputs, outputs: _as_main(outputs))
    network.unshard()
    try:
        yield
    finally:
        hook.remove()
        network.reshard()


def _as_main(outputs: Any) -> Any:
    def spread(value: Tensor) -> Tensor:
        value = value.contiguous()
        dist.broadcast(value, 0)
        return value

    return tree_map_only(Tensor, spread, outputs)
