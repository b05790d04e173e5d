"""The ledger: what a run passes over is read once, counted once, kept with checkpoints and named in the manifest."""

import json

import pytest
from torch import nn

from pipelines.data.decode import image_and_caption
from pipelines.data.shards import open_split
from pipelines.data.stream import Stream
from pipelines.evaluate import left_out
from pipelines.hardware import seeded
from pipelines.ledger import Ledger, summary
from pipelines.loop import Interrupted, Loop
from pipelines.task import Task, Training

from .data.conftest import samples, tar

BROKEN, EMPTY = {3, 4, 11}, {7}


class Reading(Task):
    """Fit the mean of pictures, some of which are broken."""

    def __init__(self, folder, stop_at=None):
        self.split, self.stop_at = open_split(folder, "train"), stop_at
        self.network = seeded(0, lambda: nn.Linear(3, 3))
        self.decoded, self.seen = [], []

    def batches(self, cursor, rank, world):
        decode = image_and_caption(16)

        def noted(sample):
            self.decoded.append(sample.key)
            return decode(sample)

        stream = Stream(split=self.split, decode=noted, batch=4, seed=0, rank=rank, world=world)
        yield from self.ledger.watch("train", stream).batches(cursor)

    def loss(self, network, batch, generator):
        self.seen += batch["key"]
        self.loop.stop = self.loop.state.step == self.stop_at
        return (network(batch["image"].mean((2, 3))) - 1).square().mean(), {}


TRAINING = Training(steps=12, batch=4, bf16=False, validate_every=100)


def run(task, folder):
    task.loop = Loop(task, TRAINING, folder, seed=3, name="reading")
    return task.loop.run()


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    tar(tmp_path / "data" / "train.tar", samples(20, broken=BROKEN, empty=EMPTY))
    return tmp_path / "data"


def names(keys):
    return {f"s{number:03d}" for number in keys}


def test_a_resumed_run_reads_no_sample_again_that_it_passed_over_and_counts_it_once(data, tmp_path):
    whole, first, rest = Reading(data), Reading(data, stop_at=7), Reading(data)
    facts = run(whole, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(first, tmp_path / "parts")
    assert names(BROKEN | EMPTY) <= set(first.decoded)
    made = json.loads((tmp_path / "parts" / "checkpoints" / "000008" / "checkpoint.json").read_text())
    assert [row[0] for row in made["ledger"]["train"]] == sorted(BROKEN | EMPTY)
    assert run(rest, tmp_path / "parts")["passed_over"] == facts["passed_over"]
    assert not names(BROKEN | EMPTY) & set(rest.decoded)
    assert first.seen + rest.seen == whole.seen  # the order does not depend on it
    told = facts["passed_over"]["train"]
    assert (told["broken"], told["empty"], len(told["first"])) == (3, 1, 4)
    assert told["first"][0]["name"].startswith("s003") and "unreadable" in told["first"][0]["reason"]


def test_a_run_that_passes_nothing_over_says_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    tar(tmp_path / "data" / "train.tar", samples(20))
    assert "passed_over" not in run(Reading(tmp_path / "data"), tmp_path / "run")


def test_the_ledgers_of_two_processes_count_a_sample_once(data):
    split, both = open_split(data, "train"), []
    for rank in (0, 1):
        ledger = Ledger()
        stream = Stream(split=split, decode=image_and_caption(16), batch=4, seed=0, rank=rank, world=2)
        batches = ledger.watch("train", stream).batches()
        for _ in range(8):
            next(batches)
        both.append(json.loads(json.dumps(ledger.rows())))  # as it goes over the wire and through a checkpoint
    merged = Ledger()
    merged.restore(both)
    told = summary(merged.rows())["train"]
    assert (told["broken"], told["empty"]) == (3, 1)
    assert sum(len(rows["train"]) for rows in both) > 4  # both met some of them


def test_the_limit_counts_what_an_earlier_process_met(data):
    ledger = Ledger()
    ledger.restore([{"train": [[number, f"s{number}", "gone", False] for number in (0, 1, 2)]}])
    stream = Stream(split=open_split(data, "train"), decode=image_and_caption(16), batch=4, seed=0)
    with pytest.raises(Exception, match="6 of 20 samples of the train split are broken, more than the 5 allowed"):
        for _, _ in ledger.watch("train", stream).batches():
            pass


def test_the_report_names_what_each_stage_passed_over(data, tmp_path):
    facts = run(Reading(data), tmp_path / "run")
    said = left_out({"vae": facts, "bpe": {}})
    (line,) = said.values()
    assert list(said) == ["samples passed over while training vae"]
    assert line.startswith("3 broken and 1 empty of train: s003 in train.tar (unreadable picture")
    told = summary({"train": [[number, f"s{number}", "gone", False] for number in range(30)]})
    assert left_out({"vae": {"passed_over": told}})["samples passed over while training vae"].endswith("and 25 more")
