"""Steps whose gradient norm is many times the recent median are left out, counted, logged; resume is exact."""

import dataclasses
import json
import statistics

import pytest
import torch

from pipelines.errors import PalimpsestError
from pipelines.left_out import BAD_STEPS
from pipelines.loop import Interrupted
from pipelines.spikes import LEAST, WINDOW, Norms
from pipelines.task import Training
from tests.pipelines.test_loop import TRAINING, Line, run

SPIKY = dataclasses.replace(TRAINING, steps=60, spike=8.0)


class Spiking(Line):
    """A line whose loss is a thousand times itself at some steps."""

    def __init__(self, spikes=(), **options):
        super().__init__(**options)
        self.spikes = spikes

    def loss(self, network, batch, generator):
        loss, more = super().loss(network, batch, generator)
        return loss * (1000 if batch["cursor"] // 16 in self.spikes else 1), more


def test_a_spike_is_a_norm_above_the_limit_times_the_median_of_the_window():
    norms, generator, seen = Norms(), torch.Generator().manual_seed(0), []
    for step in range(400):
        norm = float(torch.rand((), generator=generator)) + 0.5
        norm *= 9 if step % 50 == 49 else 1
        expected = len(seen) >= LEAST and norm > 4 * statistics.median(seen[-WINDOW:])
        assert bool(norms.judge({"gradient_norm": norm}, 4.0)) == expected, step
        seen.append(norm)
    assert len(norms.recent["gradient_norm"]) == WINDOW


def test_norms_survive_a_checkpoint_bit_for_bit():
    norms = Norms()
    for value in torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist():
        norms.judge({"gradient_norm": value, "rival_gradient_norm": value / 3}, 5.0)
    assert Norms.of(json.loads(json.dumps(norms.values()))) == norms


def test_a_change_that_lasts_is_learned_within_half_a_window():
    norms = Norms()
    for _ in range(WINDOW):
        norms.judge({"gradient_norm": 1.0}, 5.0)
    said = [bool(norms.judge({"gradient_norm": 10.0}, 5.0)) for _ in range(WINDOW)]
    assert sum(said) == WINDOW // 2 and not any(said[WINDOW // 2 + 1 :])


def test_a_spike_changes_no_weight_and_is_counted_and_its_samples_named(tmp_path, caplog):
    spiking = Spiking(spikes=(40, 45))
    facts = run(spiking, tmp_path / "spiking", SPIKY)
    assert facts["skipped_steps"] == 2
    bad = Line(bad_at=(40, 45))  # the same steps left out for another reason
    run(bad, tmp_path / "bad", dataclasses.replace(SPIKY, spike=None))
    one, other = (tmp_path / name / "model.safetensors" for name in ("spiking", "bad"))
    assert one.read_bytes() == other.read_bytes()
    assert "line: step 40 is left out, its gradient norm of" in caplog.text and "times the recent median" in caplog.text
    lines = [json.loads(line) for line in (tmp_path / "spiking" / "log.jsonl").read_text().splitlines()]
    left = [line for line in lines if line["split"] == "left_out"]
    assert [line["step"] for line in left] == [41, 46] and "recent median" in left[0]["reason"]
    assert left[0]["keys"] == ["a sample without a key"]
    run(Spiking(spikes=(40, 45)), tmp_path / "off", dataclasses.replace(SPIKY, spike=None))
    assert one.read_bytes() != (tmp_path / "off" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("stop_at", [20, 40, 44])
def test_a_run_interrupted_around_a_spike_equals_the_uninterrupted_one(tmp_path, stop_at):
    spikes = (36, 40, 45)
    facts = run(Spiking(spikes=spikes), tmp_path / "whole", SPIKY)
    with pytest.raises(Interrupted):
        run(Spiking(spikes=spikes, stop_at=stop_at), tmp_path / "parts", SPIKY)
    assert run(Spiking(spikes=spikes), tmp_path / "parts", SPIKY)["skipped_steps"] == facts["skipped_steps"] == 3
    one, other = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()


def test_steps_left_out_in_a_row_end_a_run_whether_it_was_interrupted_or_not(tmp_path):
    training = dataclasses.replace(SPIKY, steps=100)
    spikes = tuple(range(40, 100))
    with pytest.raises(Interrupted):
        run(Spiking(spikes=spikes, stop_at=44), tmp_path, training)
    task = Spiking(spikes=spikes)
    with pytest.raises(PalimpsestError, match=rf"{BAD_STEPS} steps in a row .*recent median.*raise training\.spike"):
        run(task, tmp_path, training)
    assert len([cursor for cursor in task.cursors if cursor // 16 in spikes]) == BAD_STEPS - 5


def test_too_many_spikes_end_a_run(tmp_path):
    training = dataclasses.replace(SPIKY, steps=100, max_skipped=0.0)
    with pytest.raises(PalimpsestError, match=r"11 of 63 steps were left out, more than 0.0% of 100"):
        run(Spiking(spikes=tuple(range(42, 100, 2))), tmp_path, training)


@pytest.mark.parametrize("spike", [1.0, 0.0, -3.0, float("inf")])
def test_a_limit_that_would_leave_out_usual_steps_is_refused(spike):
    with pytest.raises(ValueError, match=r"training\.spike = .*above 1"):
        Training(steps=1, spike=spike)
