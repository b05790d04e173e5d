"""A training step of our networks against those of diffusers: forward, backward, clipping and AdamW, as our loop does.

    python scripts/bench/training.py                  five minutes on one CPU core
    python scripts/bench/training.py --quick          seconds, to see that everything runs
    python scripts/bench/training.py --device cuda    DiT-B/2 and DiT-XL/2 as well, in bf16, see accelerator.py

Each pair has the same width, depth and patch and the same number of parameters within 2%, see rivals.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import tyro
from torch.profiler import ProfilerActivity, profile

from pipelines.hardware import can_compile
from scripts.bench.accelerator import accelerator_tables
from scripts.bench.rivals import Pair, batch_of, step_of, transformers, unets
from scripts.bench.timing import alternate, always, machine, median, ratio, shown
from scripts.markdown import table

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "conv", "scaled_dot_product", "linear")
"""Words in the names of operators that multiply matrices or convolve."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A pair of networks and what they are trained on."""

    pair: Callable[[int, torch.device], Pair]  # (side, device)
    side: int
    batch: int


def _dit(dim: int, layers: int, heads: int, activation: str = "relu2") -> Callable[[int, torch.device], Pair]:
    return lambda side, device: transformers(dim, layers, heads, side, device, activation)  # type: ignore[arg-type]


SETTINGS: Mapping[str, Setting] = {
    "DiT 256 wide, 6 blocks, 8 x 8 x 4, batch 32": Setting(pair=_dit(256, 6, 4), side=8, batch=32),
    "the same, both with exact GELU": Setting(pair=_dit(256, 6, 4, "gelu"), side=8, batch=32),
    "DiT-S/2, 32 x 32 x 4, batch 2": Setting(pair=_dit(384, 12, 6), side=32, batch=2),
    "U-Net 48 wide, 8 x 8 x 4, batch 32": Setting(pair=partial(unets, 48, 2), side=8, batch=32),
}
QUICK: Mapping[str, Setting] = {
    "DiT": Setting(pair=_dit(64, 2, 2), side=4, batch=2),
    "U-Net": Setting(pair=partial(unets, 32, 1), side=4, batch=2),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure, and how.

    Args:
        quick: tiny networks, few rounds, nothing compiled.
        only: a word in the names of the pairs to measure; all by default.
        threads: threads of torch.
        device: cpu, or cuda.
        rounds: how often each step is timed; 0 is 15, or 2 with --quick.
        compiled: also with every block compiled, where that can be done.
        bf16: autocast where the device multiplies bf16, as our loop does; --no-bf16 for float32.
    """

    quick: bool = False
    only: str = ""
    threads: int = 1
    device: str = "cpu"
    rounds: int = 0
    compiled: bool = True
    bf16: bool = True


def main(options: Options) -> None:
    """Print the tables."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    device, settings = torch.device(options.device), QUICK if options.quick else SETTINGS
    chosen = {name: setting for name, setting in settings.items() if options.only in name}
    rows = [cells for name, setting in chosen.items() for cells in setting_rows(name, setting, options, device)]
    sides = ["parameters, ours / diffusers", "ours, ms", "diffusers, ms", "ours / diffusers"]
    columns = ["network", "mode", *sides, "outside products: ours", "diffusers"]
    print(f"\nA training step, {'bf16 autocast' if options.bf16 else 'float32'}\n\n{table(columns, rows)}\n")
    print("" if options.quick else accelerator_tables(device))
    print(machine(device))


def setting_rows(name: str, setting: Setting, options: Options, device: torch.device) -> Iterator[list[str]]:
    """One row eager, one with compiled blocks."""
    batch = batch_of(setting.batch, setting.side, device)
    rounds = options.rounds or (2 if options.quick else 15)
    compiles = options.compiled and not options.quick and can_compile()
    for mode in ("eager", "compiled") if compiles else ("eager",):
        pair = setting.pair(setting.side, device)
        steps = {
            side: step_of(rival, batch, device, bf16=options.bf16, compiled=mode == "compiled")
            for side, rival in pair.items()
        }
        for step in steps.values():
            for _ in range(2):  # compiles, and lets AdamW make its state
                step()
        took = alternate({side: always(step) for side, step in steps.items()}, rounds, device)
        ours, theirs = took["ours"], took["theirs"]
        times = [shown(median(ours), 0, 1e3), shown(median(theirs), 0, 1e3), shown(ratio(ours, theirs))]
        sizes = " / ".join(f"{rival.parameters:,}" for rival in pair.values())
        shares = [f"{100 * share_outside_products(step):.0f}%" if mode == "eager" else "" for step in steps.values()]
        yield [name, mode, sizes, *times, *shares]


def share_outside_products(step: Callable[[], None]) -> float:
    """Share of a step's processor time that is spent outside matrix products and convolutions, by operator.

    Fused attention counts as a product, softmax and all.
    """
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    spent = [(event.key, event.self_cpu_time_total) for event in found.key_averages()]
    products = sum(time for name, time in spent if any(word in name for word in PRODUCTS))
    return 1 - products / sum(time for _, time in spent)


if __name__ == "__main__":
    main(tyro.cli(Options))
