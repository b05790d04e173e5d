"""A tiny stage on any number of processes, which notes what it reads.

-m tests.pipelines.elastic DATA FOLDER WORKERS STEPS
"""

import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from torch import nn

from pipelines.data.decode import image_and_caption
from pipelines.data.shards import open_split
from pipelines.data.stream import Stream
from pipelines.errors import Interrupted
from pipelines.hardware import leave_group, seeded
from pipelines.loop import Loop
from pipelines.stages import lock
from pipelines.stopping import STOPPED
from pipelines.task import Task, Training

BATCH, SEED, SLOW = 4, 5, 0.03


class Noting(Task):
    """Fit the mean of pictures and write down their keys, per process and step."""

    def __init__(self, data: Path, folder: Path, workers: int) -> None:
        self.split, self.folder, self.workers = open_split(data, "train"), folder, workers
        self.network = seeded(0, lambda: nn.Linear(3, 3))

    def batches(self, cursor, rank, world):
        self.rank = rank
        (self.folder / f"pid-{rank}").write_text(str(os.getpid()))
        stream = Stream(
            split=self.split, decode=image_and_caption(16), batch=BATCH, seed=SEED, rank=rank, world=world,
            workers=self.workers,
        )  # fmt: skip
        for batch, after in self.ledger.watch("train", stream).batches(cursor):
            yield {**batch, "step": after // BATCH - 1}, after

    def loss(self, network, batch, generator):
        with (self.folder / f"order-{self.rank}.jsonl").open("a") as handle:
            handle.write(json.dumps([batch["step"], batch["key"]]) + "\n")
        time.sleep(SLOW)
        return (network(batch["image"].mean((2, 3))) - 1).square().mean(), {}


def main(data: Path, folder: Path, workers: int, steps: int) -> int:
    """Train; where the run is stopped, note the step and return the exit code of the command."""
    folder.mkdir(parents=True, exist_ok=True)
    training = Training(steps=steps, batch=BATCH, bf16=False, save_seconds=0.2)
    loop = Loop(Noting(data, folder, workers), training, folder, seed=3, name="elastic")
    with lock(folder, "elastic") if loop.accelerator.is_main_process else nullcontext():
        try:
            loop.run()
        except Interrupted:
            (folder / f"stopped-{loop.accelerator.process_index}").write_text(str(loop.state.step))
            return STOPPED
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    leave_group(code, together=True)
    sys.exit(code)
