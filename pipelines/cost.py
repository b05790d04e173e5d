"""What a training step costs: operations and memory, found by taking it with tensors that hold nothing.

Networks are stepped under torch's FakeTensorMode, which knows the shapes, types and lifetimes of tensors and no values;
torch counts the operations, and the bytes that are alive by what they are for.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from backbone import attention
from discrete.attend import causal_blocks, noisy_and_clean
from pipelines.hardware import size_of
from pipelines.optimizer import optimizers_of
from pipelines.passes import Pass
from pipelines.task import Training, blocks_of

_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the moment of a step that takes most; activations: all that is not kept between steps.

    gathered: of sharded weights and gradients what is whole for a moment.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    gathered: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(vars(self).values())


@contextmanager
def without_values(*networks: nn.Module | None) -> Iterator[None]:
    """Make new tensors hold nothing, those of the networks too, and attention the fused kernel that a GPU uses."""
    wished = attention.WISHED
    attention.WISHED = "sdpa"
    _forget_masks()
    try:
        with FakeTensorMode():
            for network in networks:
                if network is not None:
                    _empty(network)
            yield
    finally:
        attention.WISHED = wished
        _forget_masks()


def _forget_masks() -> None:
    """Empty the caches of tensors: those of one mode are of no use in another."""
    causal_blocks.cache_clear()
    noisy_and_clean.cache_clear()


def _empty(network: nn.Module) -> None:
    """Put tensors of the mode that is on in the place of a network's own; a weight with two names stays one."""
    made: dict[int, Tensor] = {}
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                again = made.setdefault(id(parameter), nn.Parameter(_like(parameter), parameter.requires_grad))
                module._parameters[name] = again  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = made.setdefault(id(buffer), _like(buffer))


def _like(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")


def operations(network: nn.Module, run: Pass, *, backward: bool = True, bf16: bool = True) -> float:
    """Return floating-point operations for one item, a multiplication and an addition being two.

    Counted are matrix products, convolutions and attention, forward and (where it learns) backward, blocks that are
    run twice twice. Call it under `without_values` of the network.
    """
    items = 2  # norms over a batch may refuse a single one
    with (
        FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter,
        torch.autocast("cpu", torch.bfloat16, bf16),
    ):
        with torch.set_grad_enabled(backward):
            found = run(network, items)
        if backward:
            found.backward()
    network.zero_grad()
    return counter.get_total_flops() / items


def memory(network: nn.Module, run: Pass, training: Training, items: int) -> Memory:
    """Return the memory of a step of so many items on one device, after a first step has made the optimiser's state.

    With micro-batches the gradients of those before stand beside the activations of the last. Call it
    under `without_values` of the network.
    """
    optimizers = optimizers_of(network, training)
    weights = size_of((*network.parameters(), *network.buffers()))
    with _Live(network) as live:
        _descend(network, run, training, items)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    states = (state for optimizer in optimizers for state in optimizer.state.values())
    kept = size_of(value for state in states for value in state.values())
    learned = size_of(parameter for parameter in network.parameters() if parameter.requires_grad)
    average = (weights if training.ema else 0) + (2 * learned if training.posthoc else 0)
    return Memory(weights=weights, gradients=live.gradients, optimizer=kept, average=average, activations=live.others)


def sharded(network: nn.Module, run: Pass, training: Training, items: int, held: Memory, parts: int) -> Memory:
    """Return the memory of a step on each of `parts` devices that share a copy, from what one holds without sharing.

    Weights, gradients, moments and averages are divided. Whole are, with their gradients, what stands around the
    blocks, and of the blocks the largest, twice while the next one arrives, in the type that it is gathered in; its
    gradients leave in float32. Call it last: it changes the types of the network.
    """
    blocks = [block for block in blocks_of(network) if block is not network]
    around = size_of(network.parameters()) - sum(size_of(block.parameters()) for block in blocks)
    largest = max((sum(value.numel() for value in block.parameters()) for block in blocks), default=0)
    learned = size_of(parameter for parameter in network.parameters() if parameter.requires_grad)
    each = 2 if training.bf16 else 4
    for module in (module for block in blocks if training.bf16 for module in block.modules()):
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(value.detach().bfloat16(), value.requires_grad)
    with _Live(network) as live:
        _descend(network, run, training, items)
    return Memory(
        weights=held.weights // parts,
        gradients=learned // parts,
        optimizer=held.optimizer // parts,
        average=held.average // parts,
        activations=live.passing,
        gathered=2 * around + largest * (3 * each + 4),
    )


def _descend(network: nn.Module, run: Pass, training: Training, items: int) -> None:
    """Run the passes of a step, as many as it takes for all that is there at once to be there."""
    for _ in range(min(training.accumulate, 2)):
        with torch.autocast("cpu", torch.bfloat16, training.bf16):
            loss = run(network, items)
        loss.backward()
        del loss


class _Live(TorchDispatchMode):
    """Follows the bytes of what operations make, and keeps what was alive when there was most of it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.gradients = self.others = 0  # bytes at the peak
        self.passing = 0  # bytes at the peak of all that are no gradients
        self._alive: dict[int, int] = {}  # bytes of each storage
        self._of_gradients: set[int] = set()
        self._total = self._marked = 0
        self._kept = {_key(value) for value in (*network.parameters(), *network.buffers())}
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._mark) for p in network.parameters() if p.requires_grad
        ]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, Tensor):
                self._follow(value)
        self.passing = max(self.passing, self._total - self._marked)
        if self._total > self.gradients + self.others:
            self.gradients, self.others = self._marked, self._total - self._marked
        return found

    def _follow(self, value: Tensor) -> None:
        key, storage = _key(value), value.untyped_storage()
        if key not in self._alive and key not in self._kept:
            self._alive[key] = storage.nbytes()
            self._total += storage.nbytes()
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        size = self._alive.pop(key, 0)
        self._total -= size
        self._marked -= size if key in self._of_gradients else 0
        self._of_gradients.discard(key)

    def _mark(self, parameter: Tensor) -> None:
        if parameter.grad is not None and (key := _key(parameter.grad)) not in self._of_gradients:
            self._of_gradients.add(key)
            self._marked += self._alive.get(key, 0)


def _key(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def _fused(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    del rest, out_shape, options
    return sdpa_flop_count(query, key, value)


def _fused_backward(
    above: Any, query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **options: Any
) -> int:
    del rest, out_shape, options
    return sdpa_backward_flop_count(above, query, key, value)


_FORMULAS = {_FUSED: _fused, _FUSED_BACKWARD: _fused_backward}
