"""What the distances between sets of features cost beside torch-fidelity and prdc, same quantities, in one run.

    OMP_NUM_THREADS=2 python scripts/bench/metrics.py                        a few minutes on two idle CPU cores
    OMP_NUM_THREADS=1 python scripts/bench/metrics.py --rounds 1             processor time, for a busy machine
    OMP_NUM_THREADS=2 python scripts/bench/metrics.py --rows 3000 --dim 512  seconds

Prints a markdown table: seconds of either, the ratio within rounds, the most memory of a process of its own, and how
far the two values lie apart. `OMP_NUM_THREADS` must be set before, since it is read once.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from backbone.clip import cure_torchvision
from eval.frechet import frechet_distance
from eval.kernel import kid, kid_interval, kid_subsets
from eval.prdc import prdc, prdc_intervals
from scripts.bench.timing import alternate, always, machine, ratio, shown
from scripts.markdown import table

cure_torchvision()
K = 5
FOUR = ("precision", "recall", "density", "coverage")
Features = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Size of both sets and how often each contestant runs after its warm-up."""

    rows: int = 10_000
    dim: int = 2048
    rounds: int = 3


def features(rows: int, dim: int) -> tuple[Features, Features]:
    """Two sets that overlap in part: real (n, d) and generated (n, d), float64, of falling spectrum."""
    rng = np.random.default_rng(0)
    scales = np.arange(1, dim + 1) ** -0.5
    return rng.standard_normal((rows, dim)) * scales, rng.standard_normal((rows, dim)) * scales * 1.05 + 0.02 * scales


def fidelity_frechet(a: Features, b: Features) -> float:
    """torch-fidelity's FID from features."""
    from torch_fidelity import metric_fid

    sides = [metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    return metric_fid.fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]


def fidelity_kid(a: Features, b: Features, subsets: int, size: int) -> float:
    """torch-fidelity's KID: the mean over subsets."""
    from torch_fidelity import metric_kid

    found = metric_kid.kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=subsets, kid_subset_size=size, verbose=False
    )
    return found["kernel_inception_distance_mean"]


def prdc_package(a: Features, b: Features) -> NDArray[np.float64]:
    """The four figures of the package prdc."""
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):
        found = compute_prdc(a, b, nearest_k=K)
    return np.array([found[name] for name in FOUR])


def own_prdc(a: Features, b: Features) -> NDArray[np.float64]:
    """Our four figures."""
    found = prdc(a, b, K)
    return np.array([getattr(found, name) for name in FOUR])


def own_intervals(a: Features, b: Features) -> NDArray[np.float64]:
    """Our four figures from their intervals."""
    found = prdc_intervals(a, b, K)
    return np.array([found[name].value for name in FOUR])


def contests(rows: int) -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    """Name, ours, theirs: the same quantity of the same float64 features."""
    size = min(1000, rows)
    return {
        "FD": (frechet_distance, fidelity_frechet),
        "KID, all rows": (kid, lambda a, b: fidelity_kid(a, b, 1, rows)),
        "KID and its interval, against no interval": (kid_interval, lambda a, b: fidelity_kid(a, b, 1, rows)),
        f"KID, 20 subsets of {size}": (
            lambda a, b: kid_subsets(a, b, subsets=20, subset_size=size).mean(),
            lambda a, b: fidelity_kid(a, b, 20, size),
        ),
        f"PRDC, k = {K}": (own_prdc, prdc_package),
        "PRDC and its intervals, against none": (own_intervals, prdc_package),
    }


def peak(measure: Callable[..., Any], sides: tuple[Features, Features]) -> float:
    """Most memory in GiB of a forked process that measures once, the features and all imports included."""
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()

    def child() -> None:
        measure(*sides)
        told.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)

    process = context.Process(target=child)
    process.start()
    process.join()
    return told.get()


def row(name: str, options: Options, sides: tuple[Features, Features]) -> list[str]:
    """One line of the table."""
    ours, theirs = contests(options.rows)[name]
    values: dict[str, Any] = {}

    def run(who: str, measure: Callable[..., Any]) -> Callable[[], None]:
        return lambda: values.__setitem__(who, measure(*sides))

    contestants = {"ours": always(run("ours", ours)), "theirs": always(run("theirs", theirs))}
    times = alternate(contestants, options.rounds, torch.device("cpu"))
    apart = np.abs(getattr(values["ours"], "value", values["ours"]) - values["theirs"]).max()
    return [
        name,
        *(f"{np.median(times[who]):.2f}" for who in ("ours", "theirs")),
        shown(ratio(times["ours"], times["theirs"])),
        *(f"{peak(measure, sides):.2f}" for measure in (ours, theirs)),
        f"{apart:.1e}",
    ]


def main(options: Options) -> None:
    """Print the table, line by line as it grows."""
    sides = features(options.rows, options.dim)
    heads = ["metric", "ours, s", "theirs, s", "ours / theirs", "ours, GiB", "theirs, GiB", "values apart"]
    print(
        f"{options.rows:,} x {options.dim:,} on both sides, {options.rounds} rounds. {machine(torch.device('cpu'))}\n"
    )
    print(table(heads, []), flush=True)
    for name in contests(options.rows):
        print(table(row(name, options, sides), []).splitlines()[0], flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
