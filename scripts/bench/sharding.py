"""Memory of each process where the state of a training is sharded, and where it is not (gloo, on the CPU).

    python -m scripts.bench.sharding            a DiT of 43 million parameters on 2 processes, a minute
    python -m scripts.bench.sharding --quick    a small one, to see that everything runs

Each row is a training of its own: resident memory of a process after three steps, and the most that it was, both beyond
what it was before the network was built.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from latent.condition import Condition
from latent.dit import DiT, DiTConfig
from pipelines.cost import memory, sharded, without_values
from pipelines.hardware import seeded, step_generator
from pipelines.loop import Loop
from pipelines.passes import _denoising
from pipelines.task import Batch, Task, Training
from scripts.markdown import table

ROOT = Path(__file__).parents[2]
TEXT = {"text_length": 32, "text_width": 128, "pooled_width": 128}
TRAINING = Training(steps=3, batch=4, ema=0.9, bf16=False, compile=False, save_seconds=1e9)
ROWS = ("memory a process", "counted", "after the steps", "at most")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    Args:
        processes: that share the state.
        quick: a small network.
        row: the measurement of one row, which the script starts by itself.
        folder: where that trains.
    """

    processes: int = 2
    quick: bool = False
    row: str | None = None
    folder: Path = Path()


class Denoising(Task):
    """A DiT on latents that mean nothing."""

    def __init__(self, config: DiTConfig) -> None:
        self.network = seeded(0, lambda: DiT(config))

    def batches(self, cursor: int, rank: int, world: int) -> Iterator[tuple[Batch, int]]:
        """Nothing, so many times."""
        while True:
            yield {"x": torch.zeros(TRAINING.batch // world)}, cursor + TRAINING.batch
            cursor += TRAINING.batch

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """A number that depends on all outputs."""
        items = len(batch["x"])
        x_t, t = torch.randn(items, 4, 16, 16, generator=generator), torch.rand(items, generator=generator)
        cond = Condition(torch.zeros(items, 32, 128), torch.ones(items, 32, dtype=torch.bool), torch.zeros(items, 128))
        return (network(x_t, t, cond, torch.arange(items) < 1) - x_t).square().mean(), {}


def config_of(quick: bool) -> DiTConfig:
    """Return the network's sizes."""
    return DiTConfig(dim=64, layers=2, heads=2) if quick else DiTConfig(dim=512, layers=10, heads=8)


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(shard: Any, folder: Path, quick: bool) -> None:
    """Train on this process and print what it took, beside the others."""
    step_generator(0, 0, 0)
    torch.ones(8, 8) @ torch.ones(8, 8)
    before, peak, ended = resident(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            peak[0] = max(peak[0], resident())

    threading.Thread(target=watch, daemon=True).start()
    loop = Loop(Denoising(config_of(quick)), replace(TRAINING, shard=shard), folder, seed=0, name="bench")
    loop._finish = lambda: {}  # type: ignore[method-assign]  # the artefact is the main process' alone
    peak[0] = 0
    loop.run()
    after = resident()
    ended.set()
    found = folder / f"{loop.accelerator.process_index}.json"
    found.write_text(json.dumps({"after": after - before, "peak": peak[0] - before}), encoding="utf-8")


def counted(shard: str | None, options: Options) -> int:
    """Return what the plan counts."""
    with torch.device("meta"):
        network = DiT(config_of(options.quick))
    run, items = _denoising(4, 16, TEXT), TRAINING.batch // options.processes
    with without_values(network):
        held = memory(network, run, TRAINING, items)
        spread = held if shard is None else sharded(network, run, TRAINING, items, held, options.processes)
    return spread.total


def parameters_of(options: Options) -> int:
    """Return how many parameters the network has."""
    with torch.device("meta"):
        return sum(value.numel() for value in DiT(config_of(options.quick)).parameters())


def rows_of(options: Options) -> Iterator[tuple[str, ...]]:
    """Yield a row for each way to spread the state."""
    for shard in (None, "full"):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(options.processes)]
        own = ["-m", "scripts.bench.sharding", "--row", shard or "none", *(["--quick"] if options.quick else [])]
        allocator = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back to the system at once
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "PALIMPSEST_ATTENTION": "sdpa", **allocator}
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, *launcher, *own, "--folder", folder]
            done = subprocess.run(command, cwd=ROOT, env=settings, text=True, capture_output=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            found = [json.loads(path.read_text()) for path in Path(folder).glob("[0-9]*.json")]
        held = counted(shard, options) + (4 * parameters_of(options) if shard is None else 0)  # buckets of DDP
        after, peak = (max(row[key] for row in found) for key in ("after", "peak"))
        yield (
            f"shard = {shard or 'none'}",
            *(f"{size / 1e6:.0f} MB" for size in (held, after, peak)),
        )


def main(options: Options) -> None:
    """Measure all rows, or one."""
    if options.row:
        measure(None if options.row == "none" else options.row, options.folder, options.quick)
        return
    started = time.monotonic()
    print(f"{parameters_of(options) / 1e6:.1f} million parameters on {options.processes} processes\n")
    print(table(ROWS, list(rows_of(options))))
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(Options))
