"""One of the processes of a run: moments of its share of the batches, merged with those of the others.

-m tests.eval.streamed BATCH: prints the distance of the merged moments to a reference, from the main process.
"""

import sys

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from eval.frechet import frechet_distance, moments
from pipelines.hardware import leave_group


def sets():
    """Features far from zero, 203 rows: no batch size but 1 and 7 divides them."""
    rng = np.random.RandomState(0)
    return rng.randn(203, 16) * 1.2 + 1e3, rng.randn(300, 16) + 1e3


def main() -> None:
    """Merge in both directions: the batches of a process, then the processes."""
    processes, (x, y) = PartialState(cpu=True), sets()
    size = int(sys.argv[1])
    batches = [x[start : start + size] for start in range(0, len(x), size)][
        processes.process_index :: processes.num_processes
    ]
    own = moments(batches[0])
    for batch in batches[1:]:
        own = own.merge(moments(batch))
    first, *others = gather_object([own])
    for other in others:
        first = first.merge(other)
    if processes.is_main_process:
        print(f"{processes.num_processes} {first.n} {frechet_distance(first, y)!r}")
    leave_group(0, together=True)


if __name__ == "__main__":
    main()
