"""Our VAE and VQ-VAE against AutoencoderKL and VQModel of diffusers: what they keep of pictures, what a step costs.

    python scripts/bench/autoencoders.py --data DIR                   an hour; DIR holds openmoji/ and cifar10/
    python scripts/bench/autoencoders.py --quick                      seconds, to see that everything runs
    python scripts/bench/autoencoders.py --data DIR --tables speed    minutes
    python scripts/bench/autoencoders.py --data DIR --set cifar10 --kind vqvae --tables quality

speed      milliseconds of a training step; both sides take turns, so what slows the machine cancels in the ratio
sweep      the learning rates tried on each side, in a shorter training, by PSNR of training pictures
quality    PSNR of held-out pictures after equal steps, each side at its better rate
codebook   our VQ-VAE trained longer: how it uses its codes, and its PSNR over k-means on raw patches at the same rate

Both sides have equally many parameters, see codec_rivals.py, and the same pictures in the same order, losses, AdamW,
clipping and schedule. Finished trainings stand in a file of JSON lines and are not done again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

if not __package__:
    sys.path.pop(0)  # the folder of this script, where discrete.py would hide a package
if find_spec("diffusers") is None:
    raise SystemExit("diffusers is not installed, and there is nothing to compare with; run: pip install '.[test]'")

import numpy as np
import torch
import tyro

from eval.interval import Interval, mean_interval, paired
from pipelines.data.scenes import write
from pipelines.hardware import step_generator
from scripts.bench.codec_rivals import WIDE, Kind, Place, Shape, Side, codec, configs
from scripts.bench.codec_runs import CPU, Job, Ledger, Result, Trainer, step_of
from scripts.bench.rivals import count
from scripts.bench.timing import alternate, always, machine, median, ratio, shown
from scripts.markdown import table
from tokenizer.kmeans import patch_kmeans_psnr

SetName = Literal["openmoji", "cifar10", "scenes"]
Key = tuple[SetName, Kind, Side]
Table = Literal["speed", "sweep", "quality", "codebook"]
SIZES: Mapping[SetName, int] = {"openmoji": 64, "cifar10": 32, "scenes": 16}
SIDES: Sequence[Side] = ("ours", "theirs")
PATCH = 4  # pixels that a code stands for, along one side


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure, and how.

    Args:
        data: a folder that holds a folder of shards for each set.
        sets: sets of pictures; scenes are drawn for --quick.
        kinds: of autoencoders.
        tables: what to measure.
        steps: of a training.
        sweep_steps: of a training that chooses a rate.
        rates: that are tried on each side.
        seeds: trainings of each side.
        batch: pictures of a step.
        rounds: how often a step is timed, at least 2.
        bf16: autocast of the trainings; a step is timed with it and without.
        long_steps: of the trainings of table codebook, on cifar10.
        long_batch: pictures of a step in them.
        out: results of finished trainings.
        quick: small networks and few steps on rendered scenes.
        shape: widths of the networks.
    """

    data: Path | None = None
    sets: Annotated[tuple[SetName, ...], tyro.conf.arg(name="set")] = ("openmoji", "cifar10")
    kinds: Annotated[tuple[Kind, ...], tyro.conf.arg(name="kind")] = ("vae", "vqvae")
    tables: tuple[Table, ...] = ("speed", "sweep", "quality", "codebook")
    steps: int = 400
    sweep_steps: int = 100
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    seeds: int = 3
    batch: int = 8
    rounds: int = 15
    bf16: bool = True
    long_steps: int = 5000
    long_batch: int = 16
    out: Path = Path("runs/bench/autoencoders.jsonl")
    quick: bool = False
    shape: Shape = field(default_factory=Shape)

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("sweep_steps", 1), ("seeds", 1), ("batch", 1), ("rounds", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected {least} or more")
        if self.data is None and not self.quick:
            raise ValueError("--data is missing: give the folder that holds openmoji/ and cifar10/, or --quick")

    @property
    def folder(self) -> Path:
        """Of the sets."""
        assert self.data is not None
        return self.data


def main(options: Options) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if not options.quick:
        return report(options)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "scenes", count=64, size=SIZES["scenes"], seed=0)
        few = {"steps": 4, "sweep_steps": 2, "rates": (1e-3, 3e-3), "seeds": 2, "batch": 4, "rounds": 2}
        long = {"long_steps": 4, "long_batch": 8, "shape": Shape(channels=16, widths=(32, 32, 32), codes=16)}
        places = {"data": Path(folder), "out": Path(folder) / "results.jsonl", "sets": ("scenes",)}
        return report(replace(options, **few, **long, **places))


def report(options: Options) -> None:
    """Every table that is asked for, as soon as it is there."""
    trainer = Trainer(ledger=Ledger(path=options.out), folder=options.folder)
    for name in options.tables:
        print(f"\n{TABLES[name](options, trainer)}\n", flush=True)
    print(machine(CPU))


def pairs(options: Options) -> list[tuple[SetName, Kind]]:
    """Sets and kinds."""
    return [(name, kind) for name in options.sets for kind in options.kinds]


def both_sides(options: Options) -> list[Key]:
    """Sets, kinds and sides."""
    return [(name, kind, side) for name, kind in pairs(options) for side in SIDES]


# What a step costs.


def speed_table(options: Options, trainer: Trainer) -> str:
    """A row for each set, kind, pair of widths and precision."""
    shapes = (options.shape,) if options.quick else (options.shape, WIDE)
    rows = [
        speed_row(replace(options, shape=shape, bf16=bf16), trainer, name, kind)
        for name, kind in pairs(options)
        for shape in shapes
        for bf16 in (False, True)
    ]
    columns = ["set", "kind", "widths, ours and theirs", "parameters, ours / theirs", "precision"]
    columns += ["ours, ms", "theirs, ms", "ours / theirs"]
    return f"A training step, batch {options.batch}: below 1 ours is faster\n\n{table(columns, rows)}"


def speed_row(options: Options, trainer: Trainer, name: SetName, kind: Kind) -> list[str]:
    """Steps with a codebook that has started, between two revivals."""
    shape, config = options.shape, configs(options.shape)[1]
    place = Place(folder=options.folder / name, size=SIZES[name])
    x = trainer.of(place, "train").batch(0, options.batch, 0)
    steps, sizes = {}, {}
    for side in SIDES:
        training = job_of(options, name, kind, side, 1e-4, 0).training
        model = codec(kind, side, shape, place, training, 0)
        start = int(config.unquantised * options.steps)
        step = step_of(model, training)
        step(start, x, step_generator(0, 0, start))
        quiet = start + 1 + ((start + 1) % config.revive_every == 0)
        steps[side] = always(partial(step, quiet, x, step_generator(0, 0, quiet)))
        sizes[side] = f"{count(model.network):,}"
    took = alternate(steps, options.rounds, CPU)
    times = [shown(median(took[side]), 0, 1e3) for side in SIDES]
    widths = f"{shape.channels} and {', '.join(map(str, shape.widths))}"
    what = [name, kind, widths, " / ".join(sizes.values()), "bf16" if options.bf16 else "float32"]
    return [*what, *times, shown(ratio(took["ours"], took["theirs"]))]


# Trainings.


def job_of(options: Options, name: SetName, kind: Kind, side: Side, rate: float, seed: int) -> Job:
    """A training whose result counts."""
    return Job(
        name=name, size=SIZES[name], kind=kind, side=side, shape=options.shape, rate=rate, seed=seed,
        steps=options.steps, batch=options.batch, bf16=options.bf16, judged="test",
    )  # fmt: skip


def trials(options: Options, name: SetName, kind: Kind, side: Side) -> dict[float, Job]:
    """The shorter trainings of a side, by their rate."""
    return {
        rate: replace(job_of(options, name, kind, side, rate, 0), steps=options.sweep_steps, judged="train")
        for rate in options.rates
    }


def sweep(options: Options, trainer: Trainer, keys: Sequence[Key]) -> Mapping[Key, dict[float, float]]:
    """PSNR in dB by rate, for each set, kind and side."""
    # both sides with every rate, so that the time which is left can be told
    trainer.finish([trials(options, *key)[rate] for rate in options.rates for key in keys])
    known = trainer.ledger.known
    return {key: {rate: float(np.mean(known[job].psnr)) for rate, job in trials(options, *key).items()} for key in keys}


def best(found: Mapping[float, float]) -> float:
    """The rate of the highest PSNR."""
    return max(found, key=lambda rate: found[rate])


def sweep_table(options: Options, trainer: Trainer) -> str:
    """A row for each set, kind and side."""
    rows = [
        [*key, *(f"{found[rate]:.2f}" for rate in options.rates), f"{best(found):g}"]
        for key, found in sweep(options, trainer, both_sides(options)).items()
    ]
    columns = ["set", "kind", "side", *(f"{rate:g}" for rate in options.rates), "best rate"]
    return f"PSNR in dB of training pictures after {options.sweep_steps} steps, one seed\n\n{table(columns, rows)}"


def quality_table(options: Options, trainer: Trainer) -> str:
    """A row for each set and kind."""
    rates = {key: best(found) for key, found in sweep(options, trainer, both_sides(options)).items()}
    jobs = {key: [job_of(options, *key, rate, seed) for seed in range(options.seeds)] for key, rate in rates.items()}
    trainer.finish([runs[seed] for seed in range(options.seeds) for runs in jobs.values()])
    known = trainer.ledger.known
    rows = [
        quality_row(name, kind, {side: [known[job] for job in jobs[name, kind, side]] for side in SIDES})
        for name, kind in pairs(options)
    ]
    columns = ["set", "kind", "n", "ours, dB", "theirs, dB", "ours - theirs, dB", "by seed", "time, ours / theirs"]
    columns += ["usage, ours / theirs", "perplexity, ours / theirs"]
    title = f"PSNR of held-out pictures after {options.steps} steps of {options.batch}, {options.seeds} seeds"
    return f"{title}\n\n{table(columns, rows)}"


def quality_row(name: SetName, kind: Kind, found: Mapping[Side, Sequence[Result]]) -> list[str]:
    """Decibels of a picture are its mean over the seeds; intervals are over pictures."""
    means = {side: np.mean([result.psnr for result in results], 0) for side, results in found.items()}
    ours, theirs = means["ours"], means["theirs"]
    by_seed = [f"{np.mean(a.psnr) - np.mean(b.psnr):+.2f}" for a, b in zip(found["ours"], found["theirs"], strict=True)]
    times = ratio([result.seconds for result in found["ours"]], [result.seconds for result in found["theirs"]])
    cells = [decibels(mean_interval(ours)), decibels(mean_interval(theirs)), decibels(paired(ours, theirs))]
    used = [health(found, lambda result: result.usage, ".1%"), health(found, lambda result: result.perplexity, ".0f")]
    return [name, kind, str(len(ours)), *cells, ", ".join(by_seed), f"{times.value:.2f}", *used]


def decibels(interval: Interval) -> str:
    """A table's cell."""
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def health(found: Mapping[Side, Sequence[Result]], figure: Callable[[Result], float | None], form: str) -> str:
    """Means over the seeds of a figure that only VQ-VAEs have."""
    values = {side: [figure(result) for result in results] for side, results in found.items()}
    known = {side: [value for value in row if value is not None] for side, row in values.items()}
    return " / ".join(format(float(np.mean(row)), form) for row in known.values() if row)


def codebook_table(options: Options, trainer: Trainer) -> str:
    """A row for each seed."""
    name: SetName = "scenes" if options.quick else "cifar10"
    key: Key = (name, "vqvae", "ours")
    rate = best(sweep(options, trainer, [key])[key])
    longer = replace(options, steps=options.long_steps, batch=options.long_batch)
    jobs = [job_of(longer, *key, rate, seed) for seed in range(options.seeds)]
    trainer.finish(jobs)
    place, codes = Place(folder=options.folder / name, size=SIZES[name]), options.shape.codes
    train, test = (trainer.of(place, split).at(slice(None)) for split in ("train", "test"))
    baseline = patch_kmeans_psnr(train, test, codes, PATCH).numpy()
    rows = [codebook_row(job, trainer.ledger.known[job], baseline) for job in jobs]
    columns = ["seed", "usage", "perplexity", "PSNR, dB", "k-means on patches, dB", "difference, dB"]
    title = f"Our VQ-VAE of {codes} codes on {name}, {longer.steps} steps of {longer.batch} at {rate:g}"
    return f"{title}, n = {len(test)}\n\n{table(columns, rows)}"


def codebook_row(job: Job, found: Result, baseline: np.ndarray) -> list[str]:
    """One training against the baseline, picture by picture."""
    cells = [mean_interval(found.psnr), mean_interval(baseline), paired(found.psnr, baseline)]
    return [str(job.seed), f"{found.usage:.1%}", f"{found.perplexity:.0f}", *map(decibels, cells)]


TABLES: Mapping[Table, Callable[[Options, Trainer], str]] = {
    "speed": speed_table,
    "sweep": sweep_table,
    "quality": quality_table,
    "codebook": codebook_table,
}


if __name__ == "__main__":
    main(tyro.cli(Options))
