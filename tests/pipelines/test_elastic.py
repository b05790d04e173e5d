"""Two processes are stopped, killed and followed by one: the order of samples goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice

import pytest

from pipelines import stages
from pipelines.data.decode import image_and_caption
from pipelines.data.shards import open_split
from pipelines.data.stream import Stream
from pipelines.errors import PalimpsestError
from pipelines.stages import lock
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


def test_two_processes_stop_together_are_killed_and_one_goes_on_with_the_same_samples(tmp_path, monkeypatch):
    data, folder = tmp_path / "data", tmp_path / "stage"
    tar(data / "train.tar", samples(40, broken=BROKEN, empty={8}))
    monkeypatch.setattr(stages, "PATIENCE", 0)

    process = launched(2, data, folder)
    wait_beyond(0, folder, process)
    with pytest.raises(PalimpsestError, match="Another process is working on elastic"), lock(folder, "elastic"):
        pass
    os.kill(int((folder / "pid-1").read_text()), signal.SIGUSR1)  # one of them is asked
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "exitcode  : 75" in said, said
    stopped = [int((folder / f"stopped-{rank}").read_text()) for rank in (0, 1)]
    assert stopped[0] == stopped[1] == steps_of(folder)[-1] < STEPS  # at the same step, which is saved

    process = launched(2, data, folder)
    wait_beyond(stopped[0], folder, process)
    os.killpg(process.pid, signal.SIGKILL)
    for rank in (0, 1):  # the launcher gives each a group of its own
        try:
            os.kill(int((folder / f"pid-{rank}").read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.communicate()
    killed = steps_of(folder)[-1]
    assert killed < STEPS
    monkeypatch.setattr(stages, "PATIENCE", 5)
    with lock(folder, "elastic"):  # nothing blocks
        pass

    process = launched(1, data, folder)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said

    read = {}
    for rank in (0, 1):
        for line in (folder / f"order-{rank}.jsonl").read_text().splitlines():
            step, keys = json.loads(line)
            read.setdefault((step, rank, len(keys)), []).append(keys)
    assert all(keys == found[0] for found in read.values() for keys in found)  # steps taken twice read the same
    stream = Stream(split=open_split(data, "train"), decode=image_and_caption(16), batch=BATCH, seed=SEED)
    for step, (batch, _) in enumerate(islice(stream.batches(), STEPS)):
        if step >= killed:
            assert read[step, 0, BATCH] == [batch["key"]], step
        else:
            assert read[step, 0, BATCH // 2][0] + read[step, 1, BATCH // 2][0] == batch["key"], step
    made = json.loads((folder / "checkpoints" / f"{steps_of(folder)[-1]:06d}" / "checkpoint.json").read_text())
    assert [row[0] for row in made["ledger"]["train"]] == sorted({*BROKEN, 8}) and made["world"] == 1
