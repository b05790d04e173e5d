"""Real stages of finished runs on any number of processes: -m tests.pipelines.sharded CASES, a JSON file of a list.

Each case: `run`, the folder of a run; `stage`; `folder`, where it trains; `training`, settings in place of the
recipe's; `stop_at`, a step after which it is stopped; `slow`, seconds that each step takes longer; `drawn`, whether
sample pictures are; `fed`, see `Fed`.
"""

import dataclasses
import json
import os
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import torch

from pipelines.ar_stage import ArTask
from pipelines.errors import Interrupted
from pipelines.hardware import step_generator
from pipelines.latent_stage import LatentTask, condition
from pipelines.loop import Loop
from pipelines.masked_stage import MdlmTask
from pipelines.runs import Run, reopen_run
from pipelines.stages import prepare_process
from pipelines.text.train import TextTask

TASKS = {"latent": LatentTask, "mdlm": MdlmTask, "ar": ArTask, "text_model": TextTask}


class Fed(LatentTask):
    """Times, noise and dropped captions of an item follow from its place in the batch of all processes."""

    def batches(self, cursor, rank, world):
        self.rank = rank
        for batch, after in super().batches(cursor, rank, world):
            yield {**batch, "cursor": cursor}, after
            cursor = after

    def loss(self, network, batch, generator):
        own, count = len(batch["key"]), self.training.batch
        drawn = step_generator(1, 0, batch["cursor"])
        z = torch.randn(count, *batch["latent"].shape[2:], generator=drawn)
        eps, t = torch.randn(z.shape, generator=drawn), torch.rand(count, generator=drawn)
        dropped = torch.rand(count, generator=drawn) < 0.3
        z, eps, t, dropped = (value[self.rank * own : (self.rank + 1) * own] for value in (z, eps, t, dropped))
        z = (batch["latent"][:, 0].float() + 0.1 * z - self.mean) / self.std
        return self.losses(network, condition(batch, z), z, t, eps, dropped).mean(), {}


def task_of(run: Run, case: dict, training):
    stage = dataclasses.replace(run.recipe.stage[case["stage"]], training=training)
    kind = Fed if case.get("fed") else TASKS[stage.kind]
    return kind(run, case["stage"], stage)


def train_case(case: dict) -> Loop:
    """Train to the end of a case, or to where it is stopped; leave the process' id beside it."""
    run = reopen_run(Path(case["run"]))
    changes = {key: tuple(value) if isinstance(value, list) else value for key, value in case["training"].items()}
    training = dataclasses.replace(run.recipe.stage[case["stage"]].training, **changes)
    Path(case["folder"]).mkdir(parents=True, exist_ok=True)
    (Path(case["folder"]) / f"pid-{os.environ.get('RANK', 0)}").write_text(str(os.getpid()))
    task = task_of(run, case, training)
    if not case.get("drawn"):  # pictures take longer than all else
        task.pictures = lambda network: {}
    loop = Loop(task, training, Path(case["folder"]), seed=3, name=case["stage"])
    step = loop._step

    def watched(batch, rank):
        time.sleep(case.get("slow", 0))
        loop.stop = loop.stop or loop.state.step == case.get("stop_at")
        return step(batch, rank)

    loop._step = watched
    with suppress(Interrupted) if "stop_at" in case else nullcontext():
        loop.run()
    return loop


if __name__ == "__main__":
    prepare_process()
    for each in json.loads(Path(sys.argv[1]).read_text()):
        train_case(each)
