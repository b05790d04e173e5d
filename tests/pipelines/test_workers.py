"""Trainings whose batches are read ahead by processes: the same bits, whatever happens to the processes."""

import os
import signal
import subprocess
import time

import pytest

from pipelines.errors import PalimpsestError
from pipelines.runs import open_run
from tests.conftest import ROOT, command, wait_for
from tests.pipelines.data.test_ahead import descendants, gone

SETS = ("data.count=300", "stage.vae.training.steps=90", "stage.vae.training.batch=8")


def run_of(out, *overrides):
    return open_run(ROOT / "recipes" / "smoke.toml", out=out, data=None, overrides=overrides)


def test_workers_are_no_part_of_what_a_stage_is(tmp_path):
    run_of(tmp_path).check_settings()
    assert run_of(tmp_path / "a", "data.workers=4").settings("vae") == run_of(tmp_path / "b").settings("vae")


def test_fewer_workers_than_none_are_refused(tmp_path):
    with pytest.raises(PalimpsestError, match="workers is -1, expected how many processes read ahead: 0 for none"):
        run_of(tmp_path, "data.workers=-1")


def started(out, workers):
    """A training in a group of its own, as a terminal or a queue starts it."""
    words = command("train", "vae", "recipes/smoke.toml", "--out", out, "--set", *SETS, f"data.workers={workers}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def trains(out, workers):
    process = started(out, workers)
    wait_for(out / "smoke" / "vae" / "checkpoints" / "[0-9]*", process)
    return process


def ended(process, code):
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "Traceback" not in said
    return said


def weights(out):
    return (out / "smoke" / "vae" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of a training without workers that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    ended(started(out, 0), 0)
    return weights(out)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_group_that_is_asked_to_stop_saves_and_goes_on_without_workers_to_the_same_bits(whole, tmp_path, asked):
    process = trains(tmp_path, 2)
    os.killpg(process.pid, asked)
    said = ended(process, 75)
    assert "vae: stopped at step" in said and "saved. The same command goes on" in said
    ended(started(tmp_path, 0), 0)
    assert weights(tmp_path) == whole


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_training_in_a_sentence_and_nothing_is_lost(whole, tmp_path):
    process = trains(tmp_path, 2)
    os.kill(int(descendants(process.pid)[-1]), signal.SIGKILL)  # children come before grandchildren
    said = ended(process, 2)
    assert "A process that reads ahead ended by SIGKILL, as when memory or shared memory runs out" in said
    assert "lower data.workers" in said and "vae is saved at step" in said
    ended(started(tmp_path, 2), 0)
    assert weights(tmp_path) == whole


@pytest.mark.slow
def test_a_training_that_is_killed_leaves_no_worker_behind(tmp_path):
    process = trains(tmp_path, 2)
    everybody = descendants(process.pid)
    assert len(everybody) >= 4  # two workers, their server, and who tidies up behind them
    begun = time.monotonic()
    process.kill()
    process.wait()
    assert all(gone(pid) for pid in everybody), time.monotonic() - begun
