"""Two processes are stopped, killed, followed by one and by four: the order goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import islice

import pytest

from pipelines import stages
from pipelines.data.decode import image_and_caption
from pipelines.data.shards import open_split
from pipelines.data.stream import Stream
from pipelines.errors import PalimpsestError
from pipelines.stages import lock
from pipelines.stopping import STOPPED
from tests.conftest import ROOT
from tests.pipelines.elastic import BATCH, SEED

from .data.conftest import samples, tar

pytestmark = pytest.mark.slow
STEPS, BROKEN = 150, {2, 5, 11, 17}


def launched(count, *words):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)] if count > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "-m", "tests.pipelines.elastic", *map(str, words), str(STEPS)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def steps_of(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*"))


def wait_beyond(step, folder, process):
    until = time.monotonic() + 120
    while not any(found > step for found in steps_of(folder)):
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.02)


def read_by(folder):
    """What was read: {step: {rank: keys}} of every time that a step was taken."""
    found = {}
    for path in folder.glob("order-*.jsonl"):
        for line in path.read_text().splitlines():
            step, keys = json.loads(line)
            found.setdefault(step, {}).setdefault((int(path.stem.split("-")[1]), len(keys)), []).append(keys)
    return found


def test_processes_stop_together_are_killed_and_others_go_on_with_the_same_samples(tmp_path, monkeypatch):
    data, folder = tmp_path / "data", tmp_path / "stage"
    tar(data / "train.tar", samples(40, broken=BROKEN, empty={8}))
    monkeypatch.setattr(stages, "PATIENCE", 0)

    process = launched(2, data, folder, 2)
    wait_beyond(0, folder, process)
    with pytest.raises(PalimpsestError, match="Another process is working on elastic"), lock(folder, "elastic"):
        pass
    os.kill(int((folder / "pid-1").read_text()), signal.SIGUSR1)  # one of them is asked
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "exitcode  : 75" in said, said
    stopped = [int((folder / f"stopped-{rank}").read_text()) for rank in (0, 1)]
    assert stopped[0] == stopped[1] == steps_of(folder)[-1] < STEPS  # at the same step, which is saved

    process = launched(2, data, folder, 1)
    wait_beyond(stopped[0], folder, process)
    os.killpg(process.pid, signal.SIGKILL)
    for rank in (0, 1):  # the launcher gives each a group of its own
        with suppress(ProcessLookupError):
            os.kill(int((folder / f"pid-{rank}").read_text()), signal.SIGKILL)
    process.communicate()
    killed = steps_of(folder)[-1]
    assert killed < STEPS
    monkeypatch.setattr(stages, "PATIENCE", 5)
    with lock(folder, "elastic"):  # nothing blocks
        pass

    process = launched(1, data, folder, 0)
    wait_beyond(killed, folder, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    alone = steps_of(folder)[-1]
    assert process.returncode == STOPPED and killed < alone < STEPS, said

    process = launched(4, data, folder, 0)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said

    found = read_by(folder)
    stream = Stream(split=open_split(data, "train"), decode=image_and_caption(16), batch=BATCH, seed=SEED)
    for step, (batch, _) in enumerate(islice(stream.batches(), STEPS)):
        world = 2 if step < killed else 1 if step < alone else 4
        assert all(keys == times[0] for times in found[step].values() for keys in times)  # taken twice, read the same
        slices = [found[step][rank, BATCH // world][0] for rank in range(world)]
        assert [key for part in slices for key in part] == batch["key"], step
    made = json.loads((folder / "checkpoints" / f"{steps_of(folder)[-1]:06d}" / "checkpoint.json").read_text())
    assert [row[0] for row in made["ledger"]["train"]] == sorted({*BROKEN, 8}) and made["world"] == 4
