"""A training over HTTP whose server dies: it saves, stops and goes on where the server is back, to the same weights."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pipelines.data.check import check
from pipelines.data.order import Shuffle
from pipelines.data.scenes import write
from pipelines.runs import RECIPE
from tests.conftest import ROOT, command
from tests.pipelines.data.server import serving

pytestmark = pytest.mark.slow
STEPS, SECRET = 24, "sig=sesame"
TRAINING = ("steps=24", "batch=4", "validate_every=1000", "picture_every=1000", "save_seconds=1000", "compile=false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards of four samples: more steps than fit into the blocks that are fetched at the start."""
    folder = tmp_path_factory.mktemp("set") / "data"
    write(folder, count=96, size=32, seed=3)
    split_into_small(folder)
    assert check(folder).ok
    return folder


def split_into_small(folder):
    from pipelines.data.shard_writer import SplitWriter
    from pipelines.data.shards import open_split

    split = open_split(folder, "train")
    records = [split[i].members for i in range(len(split))]
    (folder / "train-000000.tar").unlink()
    (folder / "manifest.json").unlink()
    with SplitWriter(folder, per_shard=4) as writer:
        for record in records:
            writer.add("train", record)


def words(out, data, *more, name="vae"):
    sets = [f"stage.{name}.training.{one}" for one in TRAINING]
    return [
        "train",
        name,
        "recipes/smoke.toml",
        "--out",
        str(out),
        "--data",
        str(data),
        "--set",
        *sets,
        "data.block=2",
        *more,
    ]


def started(out, data, cache, *more, name="vae", ranks=1, **environment):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    line = command(*words(out, data, *more, name=name))
    line = [sys.executable, *launcher, *line[1:]]
    own = {**os.environ, "OMP_NUM_THREADS": "1", "PALIMPSEST_CACHE": str(cache), **environment}
    return subprocess.Popen(line, cwd=ROOT, env=own, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(process, code):
    said, _ = process.communicate(timeout=200)
    assert process.returncode == code, said
    return said


def weights(out, name="vae"):
    return (out / "smoke" / name / "model.safetensors").read_bytes()


def saved(out, name="vae"):
    return max(int(path.name) for path in (out / "smoke" / name / "checkpoints").glob("[0-9]*"))


def spoil(server, fault):
    """Let all shards fail but those of the first two blocks that a training reads; returns a way to wait for that."""
    order = Shuffle([4] * 24, 0, 2)
    now, end = order.group(0)
    bad = [f"train-{shard:06d}.tar" for shard in set(range(24)) - {*now, *order.group(end)[0]}]
    server.faults = {name: [fault] * 1000 for name in bad}
    server.gets.clear()

    def wait(process):
        """Until one of them has been asked for, and nothing happens any more."""
        before = -1
        while before < sum(server.gets.values()) or not any(server.gets[name] for name in bad):
            assert process.poll() is None or pytest.fail(process.communicate()[0])
            before = sum(server.gets.values())
            time.sleep(3)

    return wait


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The run on the folder itself."""
    out = tmp_path_factory.mktemp("whole")
    ended(started(out, folder, out / "cache"), 0)
    return out


def test_a_run_whose_server_dies_saves_and_goes_on_when_it_is_back(folder, whole, tmp_path):
    out, cache = tmp_path / "out", tmp_path / "cache"
    with serving(folder, secret=SECRET) as server:
        port, reads = server.port, []
        process = started(out, f"{server.url}?{SECRET}", cache, PALIMPSEST_TRIES="2")
        while len(reads) < 9:  # the held-out shard, and blocks beyond those that are fetched at the start
            reads = sorted(server.read())
            assert process.poll() is None or pytest.fail(process.communicate()[0])
            time.sleep(0.01)
        server.always = 500
        said = ended(process, 2)
    assert "HTTP 500 Internal Server Error" in said and "after 2 tries" in said and "train-" in said
    assert "the same command goes on from there" in said and "Traceback" not in said
    step = saved(out)
    assert f"saved at step {step}:" in said and 0 < step < STEPS
    with serving(folder, port=port, secret=SECRET) as server:
        ended(started(out, f"{server.url}?{SECRET}", tmp_path / "another"), 0)
        first = list(dict.fromkeys(name for name, _ in server.starts if name.startswith("train")))[:4]
    order = Shuffle([4] * 24, 0, 2)
    now, end = order.group(4 * step)
    assert set(first) == {f"train-{shard:06d}.tar" for shard in [*now, *order.group(end)[0]]}  # not what was skipped
    assert weights(out) == weights(whole)
    kept = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"sesame" not in kept and "sesame" not in said
    assert json.loads((out / "smoke" / RECIPE).read_text())["data"] == server.url


@pytest.mark.parametrize("workers", [0, 2])
def test_who_waits_for_a_shard_saves_and_ends_at_once_when_it_is_asked_to(folder, tmp_path, workers):
    with serving(folder) as server:
        sets = f"data.workers={workers}"
        process = started(tmp_path, server.url, tmp_path / "cache", sets, PALIMPSEST_TIMEOUT="300")
        while len(server.read()) < 9:
            assert process.poll() is None
            time.sleep(0.01)
        server.always = "stall"
        while True:  # until it waits
            before = sum(server.gets.values())
            time.sleep(2)
            if sum(server.gets.values()) == before:
                break
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        said = ended(process, 75)
        assert time.monotonic() - begun < 20 and f"stopped at step {saved(tmp_path)} of {STEPS}" in said


def test_two_ranks_stop_at_the_same_step_whichever_cannot_read(folder, tmp_path):
    with serving(folder) as server:
        process = started(tmp_path, server.url, tmp_path / "cache", ranks=2, PALIMPSEST_TRIES="2")
        while len(server.read()) < 9:
            assert process.poll() is None or pytest.fail(process.communicate()[0])
            time.sleep(0.01)
        server.always = 500
        said = ended(process, 1)
        assert said.count(f"vae is saved at step {saved(tmp_path)}: the same command") == 2, said


CODES = ("stage.vqvae.model.unquantised=0.1", "stage.vqvae.model.revive_every=5")  # they start at step 2


def test_codes_whose_pictures_cannot_be_read_lose_no_step(folder, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    ended(started(whole, folder, tmp_path / "cache", *CODES, name="vqvae"), 0)
    with serving(folder) as server:
        port = server.port
        spoil(server, 500)
        said = ended(started(out, server.url, tmp_path / "cache", *CODES, name="vqvae", PALIMPSEST_TRIES="2"), 2)
        assert "vqvae is saved at step 2: the same command goes on" in said and "Traceback" not in said
        wait = spoil(server, "stall")
        process = started(out, server.url, tmp_path / "cache", *CODES, name="vqvae", PALIMPSEST_TIMEOUT="300")
        wait(process)
        process.send_signal(signal.SIGTERM)
        assert "vqvae: stopped at step 2 of 24; saved" in ended(process, 75)
    with serving(folder, port=port) as server:
        ended(started(out, server.url, tmp_path / "cache", *CODES, name="vqvae"), 0)
    assert weights(out, "vqvae") == weights(whole, "vqvae")


def test_a_pass_after_training_that_is_stopped_or_cannot_read_takes_no_step_again(folder, tmp_path):
    four, cache = "stage.vae.training.steps=4", tmp_path / "cache"
    with serving(folder) as server:
        port = server.port
        wait = spoil(server, "stall")
        process = started(tmp_path, server.url, cache, four, PALIMPSEST_TIMEOUT="300")
        wait(process)
        process.send_signal(signal.SIGTERM)
        assert "vae: stopped; what it has saved stays. The same command goes on" in ended(process, 75)
        assert saved(tmp_path) == 4
        spoil(server, 500)
        said = ended(started(tmp_path, server.url, cache, four, PALIMPSEST_TRIES="2"), 2)
        assert "after 2 tries" in said and "Traceback" not in said
        made = weights(tmp_path)
    with serving(folder, port=port) as server:
        ended(started(tmp_path, server.url, cache, four), 0)
    facts = json.loads((tmp_path / "smoke" / "vae" / "manifest.json").read_text())
    assert weights(tmp_path) == made and facts["steps"] == 4 and len(facts["latent_mean"]) == 4
