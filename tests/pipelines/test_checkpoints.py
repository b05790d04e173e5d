"""Checkpoints: whole or not there, damaged ones set aside, a full disk survived, those that stay, older ones read."""

import dataclasses
import errno
import json
import os
import shutil
import threading

import pytest
import torch

from pipelines import checkpoints, training_files
from pipelines.artefact import ArtefactError, fingerprint
from pipelines.checkpoints import Checkpoints, drop
from pipelines.errors import Interrupted, PalimpsestError
from pipelines.loop import Loop
from pipelines.shared_checkpoints import SharedCheckpoints
from pipelines.training_files import Part
from tests.pipelines.test_loop import TRAINING, Judged, Line, run

EACH = dataclasses.replace(TRAINING, save_seconds=1e-9, keep_checkpoints=3)  # a checkpoint with every step


def flip(path, at=0.5):
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 1
    path.write_bytes(data)


def other_step(path):
    made = json.loads(path.read_text())
    path.write_text(json.dumps({**made, "step": made["step"] + 1}))


DAMAGE = {
    "a flipped byte in the tensors": (lambda at: flip(at / "state.pt"), "state.pt is not what was written"),
    "half a file": (lambda at: (at / "state.pt").write_bytes((at / "state.pt").read_bytes()[:500]), "has 500 bytes"),
    "no tensors": (lambda at: (at / "state.pt").unlink(), "state.pt is missing"),
    "no facts": (lambda at: (at / "checkpoint.json").unlink(), "checkpoint.json is missing"),
    "another step in the facts": (
        lambda at: other_step(at / "checkpoint.json"),
        "checkpoint.json is missing or damaged",
    ),
    "half the facts": (lambda at: (at / "checkpoint.json").write_text('{"step": 1'), "is missing or damaged"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, and one that was stopped after step 18 with the checkpoints of three steps."""
    folder = tmp_path_factory.mktemp("whole")
    run(Line(), folder / "whole")
    with pytest.raises(Interrupted):
        run(Line(stop_at=17), folder / "parts", EACH)
    return folder


def weights(folder):
    return (folder / "model.safetensors").read_bytes(), (folder / "ema.safetensors").read_bytes()


def steps_of(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_in_a_sentence_and_the_one_before_is_taken(whole, tmp_path, caplog, damage):
    shutil.copytree(whole / "parts", tmp_path / "parts")
    spoil, words = DAMAGE[damage]
    spoil(tmp_path / "parts" / "checkpoints" / "000018")
    task = Line()
    run(task, tmp_path / "parts", EACH)
    assert task.cursors[0] == 17 * 16
    (said,) = (record.getMessage() for record in caplog.records)
    assert "checkpoint of step 18 is not resumed from" in said and words in said and "damaged-000018" in said
    assert (tmp_path / "parts" / "checkpoints" / "damaged-000018").is_dir()
    assert weights(tmp_path / "parts") == weights(whole / "whole")


def test_a_vanished_or_half_written_checkpoint_costs_its_steps_alone(whole, tmp_path):
    shutil.copytree(whole / "parts", tmp_path / "parts")
    at = tmp_path / "parts" / "checkpoints"
    (at / "000018").rename(at / ".000018.77.tmp")  # as SIGKILL leaves it
    (at / ".000018.77.tmp" / "checkpoint.json").unlink()
    task = Line()
    run(task, tmp_path / "parts")
    assert task.cursors[0] == 17 * 16 and not list(at.glob(".*.tmp"))
    assert weights(tmp_path / "parts") == weights(whole / "whole")


def test_a_stage_with_damaged_checkpoints_alone_is_never_begun_anew(whole, tmp_path):
    shutil.copytree(whole / "parts", tmp_path / "parts")
    for path in (tmp_path / "parts" / "checkpoints").glob("[0-9]*"):
        flip(path / "state.pt")
    for _ in range(2):  # nor when they have been set aside before
        with pytest.raises(PalimpsestError, match=r"No checkpoint in .*parts can be resumed from.*delete that folder"):
            run(Line(), tmp_path / "parts")


class Full:
    """A disk that is full, or fails in another way, from the second write into the file of a checkpoint on."""

    def __init__(self, monkeypatch, code=errno.ENOSPC):
        self.full, self.code, self.write = True, code, training_files._Hashing.write
        monkeypatch.setattr(training_files._Hashing, "write", lambda file, data: self.take(file, data))

    def take(self, file, data):
        if self.full and file.count:
            raise OSError(self.code, os.strerror(self.code))
        return self.write(file, data)


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "No space left while writing"), (errno.EROFS, "Cannot write")]
)
def test_a_disk_that_fails_for_a_while_ends_no_training(whole, tmp_path, monkeypatch, caplog, code, words):
    shutil.copytree(whole / "parts", tmp_path / "parts")
    disk, task = Full(monkeypatch, code), Line(stop_at=24)
    folder = tmp_path / "parts"
    loop = task.loop = Loop(task, EACH, folder, seed=3, name="line")
    take, seen = loop._step, []

    def step(*given):
        if loop.state.step == 22:
            seen.append(steps_of(folder))
            disk.full = False
        return take(*given)

    loop._step = step
    with pytest.raises(Interrupted):
        loop.run()
    assert seen == [[16, 17, 18]]  # what was there before is intact
    said = {record.getMessage() for record in caplog.records}
    assert any(words in line and "Training goes on" in line for line in said), said
    assert steps_of(folder)[-1] == 25 and not list((folder / "checkpoints").glob(".*.tmp"))
    run(Line(), folder)
    assert weights(folder) == weights(whole / "whole")


def test_a_run_that_stops_on_a_full_disk_does_not_say_that_it_saved(whole, tmp_path, monkeypatch):
    shutil.copytree(whole / "parts", tmp_path / "parts")
    Full(monkeypatch)
    with pytest.raises(ArtefactError, match=r"No space left while writing .*000021; what was saved before is intact"):
        run(Line(stop_at=20), tmp_path / "parts")
    assert steps_of(tmp_path / "parts") == [16, 17, 18]


def test_an_older_checkpoint_that_cannot_be_deleted_ends_no_training(whole, tmp_path, monkeypatch, caplog):
    def busy(path):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    monkeypatch.setattr(checkpoints, "_remove", busy)
    shutil.copytree(whole / "parts", tmp_path / "parts")
    with pytest.raises(Interrupted):
        run(Line(stop_at=20), tmp_path / "parts", EACH)
    assert steps_of(tmp_path / "parts") == [16, 17, 18, 19, 20, 21]
    assert "an older checkpoint cannot be deleted: " in caplog.text and "000016: Device or resource busy" in caplog.text


def test_the_last_ones_stay_while_training_and_those_asked_for_stay_for_good(tmp_path):
    with pytest.raises(Interrupted):
        run(Line(stop_at=17), tmp_path, dataclasses.replace(EACH, keep_checkpoints=2, keep_every=5))
    assert steps_of(tmp_path) == [5, 10, 15, 17, 18]
    drop(tmp_path)
    assert steps_of(tmp_path) == [5, 10, 15]
    with pytest.raises(Interrupted):
        run(Line(stop_at=3), tmp_path / "other", EACH)
    drop(tmp_path / "other")
    assert not (tmp_path / "other" / "checkpoints").exists()


def test_a_checkpoint_says_where_it_stands(tmp_path):
    with pytest.raises(Interrupted):
        run(Line(stop_at=17), tmp_path)
    made = json.loads((tmp_path / "checkpoints" / "000018" / "checkpoint.json").read_text())
    assert (made["step"], made["cursor"], made["world"], made["skipped"]) == (18, 18 * 16, 1, 0)
    assert made["figures"].keys() == {"weight"} and made["ledger"] == {} and made["seconds"] > 0
    path = tmp_path / "checkpoints" / "000018" / "state.pt"
    assert made["files"] == {"state.pt": fingerprint(path)}


def test_what_is_written_is_the_state_at_its_step_whatever_training_does_meanwhile(tmp_path, monkeypatch):
    weight, gate = torch.ones(3), threading.Event()
    write = training_files.write
    monkeypatch.setattr(training_files, "write", lambda *rest: (gate.wait(10), write(*rest))[1])
    kept = Checkpoints(folder=tmp_path)
    kept.begin({"step": 1, "best": None}, {"network": {"weight": weight}, "list": [weight]})
    weight.zero_()
    kept.settle(wait=False)  # does not wait for it
    assert not steps_of(tmp_path)
    gate.set()
    kept.settle()
    kept.close()
    tensors = checkpoints.load(kept.newest()).tensors
    assert torch.equal(tensors["network"]["weight"], torch.ones(3)) and torch.equal(tensors["list"][0], torch.ones(3))


def test_the_best_weights_belong_to_the_checkpoint_that_names_them(tmp_path):
    training = dataclasses.replace(EACH, keep="best", validate_every=5, keep_checkpoints=6)
    with pytest.raises(Interrupted):
        run(Judged(stop_at=16), tmp_path / "parts", training)  # validated best at 10, then at 15
    flip(tmp_path / "parts" / ".best-15.safetensors", 0.9)
    task = Judged()
    run(task, tmp_path / "parts", training)
    assert task.cursors[0] == 14 * 16  # the newest of those before step 15
    run(Judged(), tmp_path / "whole", training)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


@pytest.mark.parametrize("torn", [False, True])
def test_a_checkpoint_of_the_version_before_is_resumed_from(whole, tmp_path, torn):
    for name, stop_at in (("checkpoint.previous.pt", 4), ("checkpoint.pt", 11)):
        task = Line(stop_at=stop_at)
        with pytest.raises(Interrupted):
            run(task, tmp_path / "parts")
        state, facts = task.loop.state, ("step", "cursor", "seconds", "skipped", "best")
        old = {**{name: getattr(state, name) for name in facts}, **state.tensors()}
        shutil.rmtree(tmp_path / "parts" / "checkpoints")
        torch.save(old, tmp_path / "parts" / name)
    if torn:
        path = tmp_path / "parts" / "checkpoint.pt"
        path.write_bytes(path.read_bytes()[:100])
    task = Line()
    run(task, tmp_path / "parts")
    assert task.cursors[0] == (5 if torn else 12) * 16
    assert weights(tmp_path / "parts") == weights(whole / "whole")
    drop(tmp_path / "parts")
    assert not list((tmp_path / "parts").glob("checkpoint*"))


def test_training_state_never_runs_code(tmp_path):
    """A pickle that would run code is not loaded."""

    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('pickle ran')",))

    torch.save({"x": Bomb()}, tmp_path / "state.pt")
    with pytest.raises(RuntimeError, match="cannot be read"):
        training_files.read(tmp_path)


def test_a_state_that_is_saved_twice_at_one_step_is_one_checkpoint(tmp_path):
    made = SharedCheckpoints(folder=tmp_path, part=Part(0, 1), main=True)
    facts = {"step": 7, "best": None}
    for _ in range(2):
        made.begin(facts, {"a": torch.ones(3)})
        made.settle()
    made.close()
    assert made.newest() == made.at(facts) and [path.name for path in made.root.iterdir()] == ["000007"]
