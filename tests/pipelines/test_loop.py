import copy
import dataclasses
import json
import math
import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipelines.checkpoints import drop
from pipelines.data.patience import check_asked
from pipelines.errors import DataError, PalimpsestError
from pipelines.hardware import seeded, step_generator
from pipelines.left_out import BAD_STEPS
from pipelines.loop import Interrupted, Loop, train
from pipelines.optimizer import optimizers_of
from pipelines.plan import Plan
from pipelines.rehearsal import rehearse
from pipelines.supply import Supply
from pipelines.task import Task, Training, decay_at, update_average


class Line(Task):
    """Fit y = 2 x by a network that also keeps a running buffer; can ask to stop or give a bad loss at some steps."""

    def __init__(self, stop_at: int | None = None, bad_at: tuple[int, ...] = ()) -> None:
        self.network = seeded(0, lambda: nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)))
        self.stop_at, self.bad_at, self.cursors = stop_at, bad_at, []
        self.loop: Loop | None = None

    def batches(self, cursor, rank, world):
        while True:
            x = torch.randn(16, 1, generator=step_generator(7, rank, cursor))
            yield {"x": x, "cursor": cursor}, cursor + 16
            cursor += 16

    def loss(self, network, batch, generator):
        self.cursors.append(batch["cursor"])
        step = batch["cursor"] // 16
        if self.loop is not None and step == self.stop_at:
            self.loop.stop = True
        noise = 0.1 * torch.randn(batch["x"].shape, generator=generator)
        loss = (network(batch["x"] + noise) - 2 * batch["x"]).square().mean()
        return (loss * math.nan if step in self.bad_at else loss), {}

    def validate(self, network):
        return {"weight": float(network[2].weight.mean())}


class Judged(Line):
    """A line whose weights are chosen by a figure that is known beforehand, by its step."""

    criterion = "figure"
    figures = (math.nan, 3.0, 1.0, 2.0, 1.0, 5.0)  # after 5, 10, ... 30 steps

    def validate(self, network):
        assert self.loop is not None
        step = self.loop.state.step
        if step == 15:
            self.best = copy.deepcopy(network.state_dict())
        return {"figure": self.figures[step // 5 - 1]}


TRAINING = Training(steps=30, batch=16, learning_rate=1e-2, ema=0.9, validate_every=10, bf16=False)


def run(task, folder, training=TRAINING):
    loop = task.loop = Loop(task, training, folder, seed=3, name="line")
    return loop.run()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_interrupted_run_equals_the_uninterrupted_one(tmp_path, optimizer):
    training = dataclasses.replace(TRAINING, optimizer=optimizer)
    whole = Line()
    run(whole, tmp_path / "whole", training)
    for stop_at in (4, 17):
        with pytest.raises(Interrupted, match="saved"):
            run(Line(stop_at=stop_at), tmp_path / "parts", training)
    parts = Line()
    run(parts, tmp_path / "parts", training)
    for name in ("model.safetensors", "ema.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    logs = [(tmp_path / folder / "log.jsonl").read_text().splitlines() for folder in ("whole", "parts")]
    points = [
        [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "waiting")} for line in log] for log in logs
    ]
    assert points[0] == points[1]


def test_the_weights_that_validated_best_are_kept_whenever_the_run_was_interrupted(tmp_path):
    training = dataclasses.replace(TRAINING, keep="best", validate_every=5)
    whole = Judged()
    facts = run(whole, tmp_path / "whole", training)
    assert (facts["chosen_step"], facts["chosen_by"], facts["steps"]) == (15, "figure", 30)  # the first of two equals
    kept = load_file(tmp_path / "whole" / "ema.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in whole.best.items())
    for stop_at in (11, 17, 22, 27):
        with pytest.raises(Interrupted):
            run(Judged(stop_at=stop_at), tmp_path / "parts", training)
    again = run(Judged(), tmp_path / "parts", training)
    assert again["chosen_step"] == 15
    assert (tmp_path / "parts" / "ema.safetensors").read_bytes() == (
        tmp_path / "whole" / "ema.safetensors"
    ).read_bytes()
    drop(tmp_path / "parts")
    assert not list((tmp_path / "parts").glob(".best*"))


def test_muon_turns_the_gradient_of_a_matrix_into_a_rotation_and_leaves_the_rest_to_adamw():
    network = nn.ModuleList([nn.Embedding(5, 6), nn.Linear(6, 4), nn.Linear(4, 4).requires_grad_(False)])
    network.double()
    generator = torch.Generator().manual_seed(0)
    before = copy.deepcopy(network)
    training = Training(steps=1, optimizer="muon", learning_rate=0.01)
    optimizers = optimizers_of(network, training)
    assert [sum(len(group["params"]) for group in optimizer.param_groups) for optimizer in optimizers] == [2, 1]
    gradient = {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in network.named_parameters()
    }
    for name, value in network.named_parameters():
        value.grad = gradient[name] if value.requires_grad else None
    for optimizer in optimizers:
        optimizer.step()
    moved = {name: (value - before.get_parameter(name)).detach() for name, value in network.named_parameters()}
    u, _, v = np.linalg.svd(gradient["1.weight"].numpy(), full_matrices=False)
    rotation, step = u @ v, moved["1.weight"].numpy()
    assert -(rotation * step).sum() > 0.97 * np.linalg.norm(rotation) * np.linalg.norm(step)
    assert np.linalg.svd(step, compute_uv=False) == pytest.approx(0.01 * 0.2 * 6**0.5, rel=0.35)  # 0.2 root mean square
    torch.testing.assert_close(moved["0.weight"], -0.01 * gradient["0.weight"].sign(), rtol=1e-5, atol=0)
    torch.testing.assert_close(moved["1.bias"], -0.01 * gradient["1.bias"].sign(), rtol=1e-5, atol=0)
    assert not moved["2.weight"].any()


def test_the_best_weights_need_a_figure_to_choose_by(tmp_path):
    with pytest.raises(PalimpsestError, match="keep is 'best', but its kind validates by no figure"):
        run(Line(), tmp_path, dataclasses.replace(TRAINING, keep="best"))


def test_a_bad_loss_changes_no_weight(tmp_path):
    task = Line(bad_at=tuple(range(5)))
    before = copy.deepcopy(task.network.state_dict())
    facts = run(task, tmp_path, Training(steps=5, batch=16, bf16=False))
    assert facts["skipped_steps"] == 5
    after = task.network.state_dict()  # running statistics too, which move in the forward pass
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_goes_on_where_its_pictures_cannot_be_drawn(tmp_path, caplog):
    whole, blind = Line(), Line()

    def pictures(network):
        raise PalimpsestError("guidance 9 needs a branch")

    blind.pictures = pictures
    for name, task in (("whole", whole), ("blind", blind)):
        run(task, tmp_path / name)
    assert "line: no sample pictures at step 30: guidance 9 needs a branch" in caplog.text
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "blind" / "model.safetensors"
    ).read_bytes()


def test_bad_losses_in_a_row_stop_the_run_with_a_remedy(tmp_path):
    with pytest.raises(PalimpsestError, match=f"{BAD_STEPS} steps in a row .* not finite.*learning_rate"):
        run(Line(bad_at=tuple(range(100))), tmp_path)


def test_minutes_become_steps_once(tmp_path):
    training = Training(minutes=0.02, batch=16, bf16=False)
    with pytest.raises(Interrupted):
        run(Line(stop_at=15), tmp_path, training)
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.first >= 20
    facts = run(Line(), tmp_path, Training(minutes=5, batch=16, bf16=False))
    assert facts["steps"] == Plan.load(tmp_path / "plan.json").at(10**9)
    assert facts["seconds"] < 60  # it keeps to the first budget


def test_a_plan_is_held_against_the_clock(tmp_path):
    plan = Plan(tmp_path / "plan.json", first=1000, budget=100.0)
    for step in range(1, 1000):
        plan.hold_against(step, 0.2 * step)  # each step takes twice what the rehearsal said
    assert [steps for _, steps in plan.revisions] == pytest.approx([500, 500], abs=9)
    assert plan.at(0) == 1000 and plan.at(plan.revisions[0][0]) == plan.revisions[0][1]
    assert Plan.load(tmp_path / "plan.json") == plan
    given = Plan(tmp_path / "given.json", first=10)
    given.hold_against(5, 1e9)
    assert given.at(10) == 10


def test_a_busy_start_does_not_end_the_training_early(tmp_path):
    plan, step, seconds = Plan(tmp_path / "plan.json", first=30, budget=100.0), 0, 0.0  # timed at 3.3 s a step
    while step < plan.at(step):
        step, seconds = step + 1, seconds + (3.0 if step < 2 else 0.1)
        plan.hold_against(step, seconds)
    assert 80 < seconds < 120, (step, seconds)


def test_steps_that_ran_ahead_do_not_put_off_the_first_look(tmp_path):
    plan = Plan(tmp_path / "plan.json", first=30, budget=100.0)
    for step in range(1, 140):
        plan.hold_against(step, 0.01 * min(step, 12) + 0.1 * max(0, step - 12))
    assert plan.looks == 1 and plan.at(139) == pytest.approx(1000, rel=0.2)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_plan_without_its_looks_took_one_for_each_revision(tmp_path, count: int):
    old = {"steps": 9, "budget": 50.0, "revisions": [[3, 8], [5, 7]][:count]}
    (tmp_path / "plan.json").write_text(json.dumps(old), encoding="utf-8")
    assert Plan.load(tmp_path / "plan.json").looks == count


def test_the_rehearsal_leaves_no_trace(tmp_path):
    task = Line()
    before = copy.deepcopy(task.network.state_dict())
    seconds = rehearse(task, Training(minutes=1, batch=16, bf16=False), torch.device("cpu"), 1.0, 1)
    assert 0 < seconds < 1
    after = task.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_average_is_the_exponential_mean_of_the_weights():
    network = nn.Linear(2, 2)
    average = copy.deepcopy(network)
    expected = network.weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            network.weight.normal_(generator=step_generator(0, 0, step))
        decay = decay_at(0.9, step)
        expected = decay * expected + (1 - decay) * network.weight.detach()
        update_average(average, network, decay)
    torch.testing.assert_close(average.weight.detach(), expected)
    assert decay_at(0.9, 0) == pytest.approx(0.1) and decay_at(0.9, 10_000) == 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_average_of_weights_of_few_bits_is_kept_in_float32(tmp_path, dtype):
    """Steps of 2^-12 of a weight in bf16 that is 1 vanish in an average of its own type."""
    task = Line()
    task.network.to(dtype)
    loop = Loop(task, TRAINING, tmp_path, seed=3, name="line")
    average = loop.state.average
    assert all(value.dtype == torch.float32 for value in average.state_dict().values() if value.is_floating_point())
    with torch.no_grad():
        for mine, theirs in zip(average.parameters(), task.network.parameters(), strict=True):
            mine.fill_(1.0)
            theirs.fill_(1 + 2**-7)
    for _ in range(100):
        update_average(average, task.network, 0.999)
    expected = 1 + 2**-7 * (1 - 0.999**100)
    assert all(value.detach().numpy() == pytest.approx(expected, abs=1e-5) for value in average.parameters())


def test_the_first_average_forgets_the_initial_weights(tmp_path):
    assert math.prod(decay_at(0.9999, step) for step in range(100)) < 1e-6


@pytest.mark.parametrize(("error", "match"), [(DataError, r"no shard\. line is saved at step 7"), (KeyError, "no")])
def test_a_run_that_cannot_read_on_saves_and_goes_on_later(tmp_path, error, match):
    run(Line(), tmp_path / "whole")

    class Unread(Line):
        def batches(self, cursor, rank, world):
            for batch, after in super().batches(cursor, rank, world):
                if after > 16 * 7:
                    raise error("no shard.")
                yield batch, after

    for _ in range(2):  # a server that is still away changes nothing
        with pytest.raises(error, match=match):
            run(Unread(), tmp_path / "parts")
    run(Line(), tmp_path / "parts")
    whole, parts = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_a_run_that_cannot_read_its_first_batch_begins_later(tmp_path):
    run(Line(), tmp_path / "whole")

    class Nothing(Line):
        def batches(self, cursor, rank, world):
            raise DataError("no shard.")
            yield

    with pytest.raises(DataError, match="saved at step 0"):
        run(Nothing(), tmp_path / "parts")
    run(Line(), tmp_path / "parts")
    whole, parts = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_who_waits_for_a_batch_stops_at_once_when_asked_to(tmp_path):
    class Waiting(Line):
        def batches(self, cursor, rank, world):
            yield next(super().batches(cursor, rank, world))
            while True:
                check_asked()
                time.sleep(0.01)
                self.loop.stop |= self.loop.state.step == 1

    begun = time.monotonic()
    with pytest.raises(Interrupted, match="stopped at step 1 of 30; saved"):
        run(Waiting(), tmp_path)
    assert time.monotonic() - begun < 5


class Beside(Line):
    """A line that reads beside its batch at one step, and moves a weight by it."""

    def beside(self, step, first, steps):
        return self.read() if step == 7 else None

    def read(self):
        yield {"x": torch.full((1,), 0.5)}

    def before(self, step, first, steps, generator, read):
        assert [float(batch["x"]) for batch in read] == ([0.5] if step == 7 else [])
        for batch in read:
            self.network[0].weight.data.add_(batch["x"])
        return ()


def test_what_a_step_reads_beside_its_batch_fails_before_the_step_and_is_read_again(tmp_path):
    class Unread(Beside):
        def read(self):
            yield from super().read()
            raise DataError("no shard.")

    class Waiting(Beside):
        def read(self):
            yield from super().read()
            self.loop.stop = True
            while True:
                check_asked()
                time.sleep(0.01)

    run(Beside(), tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(DataError, match=r"no shard\. line is saved at step 7:"):
            run(Unread(), tmp_path / "parts")
    with pytest.raises(Interrupted, match="stopped at step 7 of 30; saved"):
        run(Waiting(), tmp_path / "parts")
    run(Beside(), tmp_path / "parts")
    whole, parts = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_a_budget_whose_rehearsal_cannot_read_plans_nothing(tmp_path):
    class Nothing(Line):
        def batches(self, cursor, rank, world):
            yield from islice(super().batches(cursor, rank, world), 3)
            raise DataError("no shard.")

    training = Training(minutes=0.02, batch=16, bf16=False)
    with pytest.raises(DataError, match="no shard"):
        run(Nothing(), tmp_path, training)
    assert not (tmp_path / "plan.json").exists()


def test_a_finished_training_is_saved_for_what_follows(tmp_path):
    run(Line(), tmp_path)
    again = Line()
    assert run(again, tmp_path)["steps"] == 30 and not again.cursors  # no step is taken again


def test_a_supply_keeps_order_passes_errors_on_and_leaves_no_thread_behind():
    before = threading.active_count()
    with Supply(iter(range(10))) as supply:
        assert [supply.take() for _ in range(10) if supply.wait(5)] == list(range(10))

    def broken():
        yield 1
        raise ValueError("broken batch")

    with Supply(broken()) as supply:
        assert supply.wait(5) and supply.error is None and supply.take() == 1
        assert supply.wait(5) and str(supply.error) == "broken batch"
        with pytest.raises(ValueError, match="broken batch"):
            supply.take()
    read = []
    with Supply((read.append(number) or number for number in range(100)), depth=2) as supply:
        assert supply.wait(5)
    assert threading.active_count() == before
    assert len(read) <= 4  # the one that was seen, what was ahead of it, and the next that found no room


@pytest.mark.parametrize(("making", "using", "share"), [(0.03, 0.0, 1.0), (0.0, 0.03, 0.0), (0.03, 0.03, 0.1)])
def test_the_share_of_time_that_is_waited_for_batches(making, using, share):
    def slow():
        while True:
            time.sleep(making)
            yield 0

    with Supply(slow()) as supply:
        for _ in range(20):
            assert supply.wait(5)
            supply.take()
            time.sleep(using)
        assert supply.waiting == pytest.approx(share, abs=0.2)


def test_draws_are_keyed_by_seed_rank_and_step():
    draws = {
        torch.randn(4, generator=step_generator(*key)).numpy().tobytes()
        for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (10, 0, 0)]
    }
    assert len(draws) == 5
    assert torch.equal(
        torch.randn(4, generator=step_generator(1, 2, 3)), torch.randn(4, generator=step_generator(1, 2, 3))
    )


def test_building_a_network_leaves_global_randomness_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = seeded(1, lambda: nn.Linear(4, 4))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.weight, seeded(1, lambda: nn.Linear(4, 4)).weight)


def test_training_goes_through_one_door(tmp_path):
    assert train(Line(), TRAINING, tmp_path, seed=3, name="line")["steps"] == 30
