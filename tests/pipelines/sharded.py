"""Real stages of finished runs on any number of processes: -m tests.pipelines.sharded CASES, a JSON file of a list.

Each case: `run`, the folder of a run; `stage`; `folder`, where it trains; `training`, settings in place of the
recipe's; `stop_at`, a step after which it is stopped; `slow`, seconds that each step takes longer; `drawn`, whether
sample pictures are; `fed`, see `Fed`; `spoiled`, by what the latents of the second process are multiplied, by step;
`hosts`, the machine of each process; `unwritten`, what the disk says to a checkpoint, by step, of a sharded state to
the part of the second process, and what it says to the weights; `fails`, how the training then ends on all processes;
`left`, the steps of the checkpoints then.
"""

import dataclasses
import errno
import json
import os
import socket
import sys
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pipelines import artefact, training_files
from pipelines.ar_stage import ArTask
from pipelines.cli import end_with
from pipelines.errors import Interrupted, PalimpsestError
from pipelines.hardware import step_generator
from pipelines.latent_stage import LatentTask, condition
from pipelines.loop import Loop
from pipelines.masked_stage import MdlmTask
from pipelines.rows import local
from pipelines.runs import Run, reopen_run
from pipelines.spikes import LEAST, Norms
from pipelines.stages import prepare_process
from pipelines.text.train import TextTask
from pipelines.upscale_stage import UpscaleTask

TASKS = {"latent": LatentTask, "mdlm": MdlmTask, "ar": ArTask, "text_model": TextTask, "upscale": UpscaleTask}
RANK = int(os.environ.get("RANK", 0))


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


def faults(case: dict) -> ExitStack:
    """The disks and the machines of a case."""
    stack, unwritten = ExitStack(), case.get("unwritten", {})
    write, save = training_files.write, artefact.save_file

    def written(folder, copy, part=None):
        said = unwritten.get(str(int(folder.name.split(".")[1])))  # .000002.PROCESS.tmp
        if said and (part is None or RANK == 1):
            (folder / "half").write_bytes(b"half")
            raise OSError(getattr(errno, said), os.strerror(getattr(errno, said)), str(folder / "half"))
        return write(folder, copy, part)

    def saved(tensors, path):
        save(tensors, path)
        if "weights" in unwritten:
            raise OSError(getattr(errno, unwritten["weights"]), "")

    stack.enter_context(mock.patch.object(training_files, "write", written))
    stack.enter_context(mock.patch.object(artefact, "save_file", saved))
    if "hosts" in case:  # as under Slurm, which does not say how many processes of a run a node has
        stack.enter_context(mock.patch.dict(os.environ))
        del os.environ["LOCAL_WORLD_SIZE"]
        stack.enter_context(mock.patch.object(socket, "gethostname", lambda: case["hosts"][RANK]))
    return stack


def end_of(case: dict) -> AbstractContextManager:
    """How a case is expected to end."""
    if "fails" in case:
        return pytest.raises(PalimpsestError, match=case["fails"])
    return suppress(Interrupted) if "stop_at" in case else nullcontext()


def held(loop: Loop) -> list[Tensor]:
    """Copies of all tensors that this process holds."""
    return [local(value).clone() for value in tree_leaves(loop.state.tensors()) if isinstance(value, Tensor)]


def train_case(case: dict) -> Loop:
    """Train to the end of a case, or to where it is stopped; leave the process' id beside it."""
    run = reopen_run(Path(case["run"]))
    changes = {key: tuple(value) if isinstance(value, list) else value for key, value in case["training"].items()}
    training = dataclasses.replace(run.recipe.stage[case["stage"]].training, **changes)
    Path(case["folder"]).mkdir(parents=True, exist_ok=True)
    (Path(case["folder"]) / f"pid-{RANK}").write_text(str(os.getpid()))
    task = task_of(run, case, training)
    if not case.get("drawn"):  # pictures take longer than all else
        task.pictures = lambda network: {}
    with faults(case):
        loop = Loop(task, training, Path(case["folder"]), seed=3, name=case["stage"])
        if training.spike is not None:
            loop.state.norms = Norms.of({"gradient_norm": [1.0] * LEAST})  # a step is judged from there on
        step = loop._step

        def watched(batch, beside, rank):
            time.sleep(case.get("slow", 0))
            loop.stop = loop.stop or loop.state.step == case.get("stop_at")
            times = case.get("spoiled", {}).get(str(loop.state.step))
            if times is None:
                return step(batch, beside, rank)
            before = held(loop)
            spoiled = {**batch, "latent": batch["latent"].float() * times} if rank == 1 else batch
            taken = step(spoiled, beside, rank)
            assert taken.left_out and all(map(torch.equal, held(loop), before))
            return taken

        loop._step = watched
        with end_of(case):
            loop.run()
    if "left" in case:
        assert [int(path.name) for path in sorted(loop.checkpoints.root.glob("[0-9]*"))] == case["left"]
    return loop


def main(cases: Path) -> None:
    """Train one case after the other."""
    prepare_process()
    for case in json.loads(cases.read_text()):
        train_case(case)


if __name__ == "__main__":
    end_with(lambda: main(Path(sys.argv[1])))
