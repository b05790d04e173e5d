"""Times of things that are to be compared: taken in turn, so that a busy neighbour slows all of them alike."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

Times = Mapping[str, list[float]]
"""Seconds of every contestant, one number per round: the i-th of each were taken beside each other."""

RESAMPLES = 2000


class Bounds(NamedTuple):
    """A median over rounds, and the ends of its 95% bootstrap interval."""

    value: float
    low: float
    high: float


Contestant = Callable[[], Callable[[], object]]
"""Makes ready, and gives what is to be timed."""


def alternate(contestants: Mapping[str, Contestant], rounds: int, device: torch.device) -> Times:
    """Run every contestant once to warm up, then `rounds` times in turn, every other round backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for ready in contestants.values():
        clocked(ready(), device)
    for i in range(rounds):
        order = list(contestants.items())
        for name, ready in order if i % 2 == 0 else reversed(order):
            seconds[name].append(clocked(ready(), device))
    return seconds


def clocked(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that a run takes until the device is done.

    With one thread on a CPU these are seconds of processor time: what the core gives to others does not count.
    """
    clock = time.process_time if alone(device) else time.perf_counter
    _wait(device)
    began = clock()
    run()
    _wait(device)
    return clock() - began


def alone(device: torch.device) -> bool:
    """Whether all work is done by one thread of this process."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def always(run: Callable[[], object]) -> Contestant:
    """A contestant that needs no preparation."""
    return lambda: run


def median(values: Sequence[float]) -> Bounds:
    """Median over the rounds, by a bootstrap over them."""
    x = np.asarray(values)
    drawn = np.random.default_rng(0).integers(len(x), size=(RESAMPLES, len(x)))
    low, high = np.quantile(np.median(x[drawn], 1), [0.025, 0.975])
    return Bounds(float(np.median(x)), float(low), float(high))


def ratio(over: Sequence[float], under: Sequence[float]) -> Bounds:
    """Median of over / under within a round: what slows both of a round cancels."""
    return median([a / b for a, b in zip(over, under, strict=True)])


def difference(first: Sequence[float], second: Sequence[float]) -> Bounds:
    """Median of first - second within a round."""
    return median([a - b for a, b in zip(first, second, strict=True)])


def shown(bounds: Bounds, digits: int = 2, scale: float = 1.0) -> str:
    """A table's cell, `value [low, high]`, times `scale`."""
    value, low, high = (f"{scale * part:.{digits}f}" for part in bounds)
    return f"{value} [{low}, {high}]"


def machine(device: torch.device) -> str:
    """Where the figures were taken and what else went on there, as a sentence."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
    clock = "processor time" if alone(device) else "wall time"
    return (
        f"{name}, {os.cpu_count()} logical processors, {torch.get_num_threads()} thread(s), {clock}; "
        f"torch {torch.__version__}, diffusers {version('diffusers')}; load over 1, 5 and 15 minutes: {load}."
    )


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
