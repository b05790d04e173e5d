"""Two players in one loop: their gradients stay apart, micro-batches add up, bad steps are named, resume is exact."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from pipelines.descent import micro_batches, suspects
from pipelines.errors import PalimpsestError
from pipelines.hardware import seeded, step_generator
from pipelines.left_out import BAD_STEPS
from pipelines.loop import Interrupted, Loop
from pipelines.rehearsal import rehearse
from pipelines.task import Task, Training


class Duel(Task):
    """A map that makes numbers look like others, against a critic that tells them apart."""

    rival_start = 0.3

    def __init__(self, *, stop_at: int | None = None, bad: tuple[int, ...] = (), alone: bool = False) -> None:
        self.network = seeded(0, lambda: nn.Linear(2, 2))
        self.rival = None if alone else seeded(1, lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)))
        self.stop_at, self.bad, self.critic_steps = stop_at, bad, []
        self.loop: Loop | None = None

    def batches(self, cursor, rank, world):
        while True:
            x = torch.randn(16, 2, generator=step_generator(7, rank, cursor))
            if cursor // 16 in self.bad:
                x[5] = math.nan
            yield {"x": x, "key": [f"{cursor + i}" for i in range(16)], "cursor": cursor}, cursor + 16
            cursor += 16

    def loss(self, network, batch, generator):
        if self.loop is not None and batch["cursor"] // 16 == self.stop_at:
            self.loop.stop = True
        self.real, fake = batch["x"] * torch.tensor([1.0, 3.0]), network(batch["x"])
        self.fake = fake.detach()
        loss = (fake - batch["x"]).square().mean()
        if self.playing:
            self.rival.requires_grad_(False)
            loss = loss - self.rival(fake).mean()
            self.rival.requires_grad_(True)
        return loss, {"fake": fake.detach().mean()}

    def rival_loss(self, rival, generator):
        self.critic_steps.append(self.loop.state.step if self.loop else 0)
        loss = (1 - rival(self.real)).relu().mean() + (1 + rival(self.fake)).relu().mean()
        return loss, {"critic": loss.detach()}

    def rival_training(self, training):
        return dataclasses.replace(training, learning_rate=2 * training.learning_rate, betas=(0.5, 0.9))


TRAINING = Training(steps=20, batch=16, learning_rate=1e-2, bf16=False, clip=1e9)


def run(task: Duel, folder, training: Training = TRAINING):
    loop = task.loop = Loop(task, training, folder, seed=3, name="duel")
    return loop.run()


def flat(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in network.state_dict().values()])


def test_the_rival_plays_from_its_share_of_the_steps_on(tmp_path):
    task = Duel()
    before = flat(task.rival)
    run(task, tmp_path)
    assert task.critic_steps == list(range(6, 20))
    assert not torch.equal(before, flat(task.rival))


def test_a_rival_that_starts_late_in_a_short_run_still_plays(tmp_path):
    task = Duel()
    task.rival_start = 0.99
    run(task, tmp_path)
    assert task.critic_steps == [19]


def test_no_gradient_of_one_player_reaches_the_other(tmp_path):
    """With the other's loss taken away, each player's gradient is the same to the last bit, parameter by parameter."""
    found = {}
    for name in ("both", "network", "rival"):
        task = Duel()
        task.rival_start = 0.0
        loop = task.loop = Loop(task, dataclasses.replace(TRAINING, steps=1), tmp_path / name, seed=3, name="duel")
        if name == "network":
            loss = task.rival_loss
            task.rival_loss = lambda rival, generator, loss=loss: (0 * loss(rival, generator)[0], {})
        if name == "rival":
            loss = task.loss
            task.loss = lambda network, batch, generator, loss=loss: (0 * loss(network, batch, generator)[0], {})
        loop.run()
        found[name] = [[p.grad.clone() for p in player.parameters()] for player in (task.network, task.rival)]
    assert all(map(torch.equal, found["both"][0], found["network"][0])) and any(g.any() for g in found["both"][0])
    assert all(map(torch.equal, found["both"][1], found["rival"][1])) and any(g.any() for g in found["both"][1])
    assert not any(g.any() for g in found["network"][1]) and not any(g.any() for g in found["rival"][0])


@pytest.mark.parametrize("count", [2, 4])
def test_micro_batches_are_one_batch_for_both_players(tmp_path, count: int):
    ends = []
    for accumulate in (1, count):
        task = Duel()
        run(task, tmp_path / str(accumulate), dataclasses.replace(TRAINING, accumulate=accumulate))
        ends.append((flat(task.network), flat(task.rival)))
    for one, many in zip(*ends, strict=True):
        torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-4)


def test_the_interrupted_duel_equals_the_uninterrupted_one(tmp_path):
    whole = Duel()
    run(whole, tmp_path / "whole")
    for stop_at in (3, 11):
        with pytest.raises(Interrupted):
            run(Duel(stop_at=stop_at), tmp_path / "parts")
    parts = Duel()
    run(parts, tmp_path / "parts")
    assert torch.equal(flat(whole.network), flat(parts.network)) and torch.equal(flat(whole.rival), flat(parts.rival))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"alone": True}, {}, "it holds no state of a second player .*, and the stage asks for it"),
        ({}, {"alone": True}, "it holds state of a second player .*, and the stage has none"),
        ({}, {"ema": 0.9}, r"it holds no state of averaged weights \(training.ema\), and the stage asks for it"),
        ({"ema": 0.9}, {}, "it holds state of averaged weights .*, and the stage has none"),
        ({}, {"optimizer": "muon"}, "it holds state of 2 optimisers, and the stage has 4"),
        ({}, {"wide": True}, "size mismatch for weight"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_with_the_part_and_a_remedy(tmp_path, before, after, words):
    def loop_of(alone=False, wide=False, **changes):
        task = Duel(alone=alone)
        task.network = nn.Linear(2, 3) if wide else task.network
        task.loop = Loop(task, dataclasses.replace(TRAINING, **changes), tmp_path, seed=3, name="duel")
        return task.loop

    begun = loop_of(**before)
    begun.task.stop_at = 0
    with pytest.raises(Interrupted):
        begun.run()
    with pytest.raises(PalimpsestError, match=rf"(?s)000001 does not fit .*{words}.* delete .* anew"):
        loop_of(**after).run()


def test_the_rival_has_a_learning_rate_and_moments_of_its_own(tmp_path):
    task = Duel()
    loop = task.loop = Loop(task, TRAINING, tmp_path, seed=3, name="duel")
    loop.run()
    network, rival = (optimizer.param_groups[0] for optimizer in loop.state.optimizers)
    assert rival["lr"] == pytest.approx(2 * network["lr"])
    assert rival["betas"] == (0.5, 0.9) and network["betas"] == TRAINING.betas


def test_a_batch_that_is_not_finite_is_left_out_counted_and_its_samples_named(tmp_path, caplog):
    task = Duel(bad=(4, 9))
    facts = run(task, tmp_path, dataclasses.replace(TRAINING, accumulate=2))
    assert facts["skipped_steps"] == 2
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["keys"] for line in lines if line["split"] == "left_out"] == [[f"{4 * 16 + 5}"], [f"{9 * 16 + 5}"]]
    assert "duel: step 4 is left out, its loss is not finite. Samples: 69" in caplog.text
    assert flat(task.network).isfinite().all() and flat(task.rival).isfinite().all()


def test_a_run_with_too_many_bad_steps_ends_with_the_share_and_a_remedy(tmp_path):
    bad = tuple(range(0, 200, 2))  # never two in a row
    with pytest.raises(PalimpsestError, match=r"more than 1.0% of 200 .*max_skipped.*learning_rate") as caught:
        run(Duel(bad=bad), tmp_path, dataclasses.replace(TRAINING, steps=200))
    assert f"{BAD_STEPS + 1} of 21 steps" in str(caught.value)


def test_a_stage_whose_loss_compares_all_items_is_not_cut_into_parts(tmp_path):
    task = Duel()
    task.divisible = False
    with pytest.raises(PalimpsestError, match=r"accumulate is 2, but its loss compares all items"):
        Loop(task, dataclasses.replace(TRAINING, accumulate=2), tmp_path, seed=3, name="duel")


def test_the_budget_counts_steps_with_the_rival_and_without(tmp_path):
    facts = run(Duel(), tmp_path, Training(minutes=0.02, batch=16, bf16=False))
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["steps"] == facts["steps"] and plan["budget"] is None


def test_the_rehearsal_times_micro_batches_of_either_phase_and_leaves_no_trace(tmp_path):
    task = Duel()
    seen, loss = [], task.loss

    def watched(network, batch, generator):
        seen.append((task.playing, len(batch["x"])))
        return loss(network, batch, generator)

    task.loss = watched
    before = flat(task.network), flat(task.rival)
    training = Training(minutes=1, batch=16, accumulate=4, bf16=False)
    assert 0 < rehearse(task, training, torch.device("cpu"), 0.5, 1) < 1
    assert {size for _, size in seen} == {4} and {playing for playing, _ in seen} == {False, True}
    assert torch.equal(before[0], flat(task.network)) and torch.equal(before[1], flat(task.rival))


def test_parts_of_a_batch_are_all_of_it_in_order():
    batch = {"x": torch.arange(6), "key": list("abcdef"), "texts": torch.arange(12), "cursor": 3}
    parts = list(micro_batches(batch, 3))
    assert torch.equal(torch.cat([part["x"] for part in parts]), batch["x"])
    assert [key for part in parts for key in part["key"]] == batch["key"]
    assert [len(part["texts"]) for part in parts] == [4, 4, 4] and all(part["cursor"] == 3 for part in parts)
    with pytest.raises(PalimpsestError, match=r"accumulate is 4, but a batch .* 6 items"):
        list(micro_batches(batch, 4))


def test_all_samples_are_suspects_where_none_is_bad_itself():
    keys, x = ["a", "b"], torch.zeros(2, 3)
    assert suspects({"key": keys, "x": x}) == keys
    x[1, 2] = math.inf
    assert suspects({"key": keys, "x": x, "codes": torch.zeros(2, dtype=torch.int64)}) == ["b"]
