"""What a process, a device and a seed give: generators keyed by step, precision, compilers."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

Item = TypeVar("Item")


def step_generator(seed: int, rank: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator of all draws of one step on one rank."""
    key = hashlib.sha256(f"{seed}/{rank}/{step}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key[:8], "little") >> 1)


def is_main() -> bool:
    """Whether this is the main process of a run, or the only one."""
    return PartialState(cpu=not torch.cuda.is_available()).is_main_process


def from_main(value: Item) -> Item:
    """Return what the main process has."""
    message = [value]
    broadcast_object_list(message, from_process=0)
    return message[0]


def leave_group(code: int, *, together: bool) -> None:
    """End a process that trains with others, with an exit code; does nothing where there are no others.

    The threads of a group can outlive it (DDP keeps it), and abort a process whose interpreter ends before them: so
    the interpreter is not left to end. together: all of them end now; who fails alone must not wait for the others.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    if together:
        torch.distributed.destroy_process_group()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):  # closed, or nobody reads
            stream.flush()
    os._exit(code)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move the tensors of a batch."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()
    }


def seeded(seed: int, build: Callable[[], Item]) -> Item:
    """Build what has initial weights, as a function of the seed; global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def size_of(values: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(value.numel() * value.element_size() for value in values)


def device_of(network: nn.Module) -> torch.device:
    """Return where a network's weights are."""
    return next(network.parameters()).device


def autocast(device: torch.device, wanted: bool) -> torch.autocast:
    """bf16 arithmetic for the matrix products of a forward pass, where it is wanted and fast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and has_bf16(device))


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def can_compile() -> bool:
    """Whether torch.compile can work here: on CPU it needs a C++ compiler and Python's headers, on CUDA Triton."""
    if torch.cuda.is_available():
        return importlib.util.find_spec("triton") is not None
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    return headers and any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++"))
