"""Schedules of the learning rate against their closed forms and the library's."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from transformers import optimization

from pipelines.config import RecipeError, parse_recipe
from pipelines.plan import Plan
from pipelines.rates import WSD, Constant, Cosine, InverseSqrt, Linear, cosine, inverse_sqrt, linear, share, wsd
from pipelines.task import Training, learning_rate

STEPS, WARM = 200, 20
ALL = [Cosine(final=0.1), Linear(final=0.2), Constant(), WSD(decay=0.25, final=0.05), InverseSqrt(reference=50)]


def theirs(make, **options):
    """The rates of a schedule of transformers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return make(optimizer, **options).lr_lambdas[0]


@pytest.mark.parametrize("step", [0, 1, 57, 100, 199])
def test_cosine_line_and_their_ends_are_the_library_s(step):
    line = theirs(optimization.get_linear_schedule_with_warmup, num_warmup_steps=0, num_training_steps=STEPS)
    wave = theirs(optimization.get_cosine_schedule_with_warmup, num_warmup_steps=0, num_training_steps=STEPS)
    assert linear(step, STEPS) == pytest.approx(line(step), abs=1e-12)
    assert cosine(step, STEPS) == pytest.approx(wave(step), abs=1e-12)
    final = theirs(optimization.get_cosine_with_min_lr_schedule_with_warmup, num_warmup_steps=0,
                   num_training_steps=STEPS, min_lr_rate=0.1)  # fmt: skip
    assert cosine(step, STEPS, 0.1) == pytest.approx(final(step), abs=1e-12)


@pytest.mark.parametrize("final", [0.0, 0.05])
def test_warm_up_stable_decay_is_the_library_s(final):
    found = theirs(optimization.get_wsd_schedule, num_warmup_steps=0, num_stable_steps=150, num_decay_steps=50,
                   decay_type="linear", min_lr_ratio=final)  # fmt: skip
    for step in (0, 1, 149, 150, 151, 180, 199):
        assert wsd(step, STEPS, 0.25, final) == pytest.approx(found(step), abs=1e-12)


def test_the_inverse_square_root_halves_with_four_times_the_steps_and_knows_no_end():
    assert [inverse_sqrt(step, 50) for step in (0, 49, 50, 200, 800)] == pytest.approx([1, 1, 1, 0.5, 0.25])
    assert share(InverseSqrt(reference=50), 70, 100) == share(InverseSqrt(reference=50), 70, 10**6)


@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: schedule.kind)
def test_each_schedule_warms_up_never_rises_again_and_ends_at_its_share(schedule):
    training = Training(steps=STEPS, learning_rate=2.0, warmup=WARM, schedule=schedule)
    rates = [learning_rate(training, step, STEPS) for step in range(STEPS)]
    assert rates[: WARM - 1] == pytest.approx(
        [2 * (step + 1) / WARM * share(schedule, step, STEPS) for step in range(WARM - 1)]
    )
    assert all(a >= b > 0 for a, b in pairwise(rates[WARM:]))
    ends = {"cosine": 0.1, "linear": 0.2, "constant": 1.0, "wsd": 0.05, "inverse_sqrt": 0.5}[schedule.kind]
    assert share(schedule, STEPS, STEPS) == pytest.approx(ends)


@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: schedule.kind)
def test_a_plan_that_was_revised_gives_a_resumed_run_the_same_rates(tmp_path, schedule):
    training = Training(minutes=1, schedule=schedule)

    def rates(plan, steps, seconds):
        found = []
        for step in steps:
            found.append(learning_rate(training, step, plan.at(step)))
            plan.hold_against(step + 1, seconds * (step + 1))
        return found

    plan = Plan(tmp_path / "plan.json", first=100, budget=100.0)
    plan.save()
    whole = rates(plan, range(45), 1.7)
    assert plan.revisions and plan.at(44) != 100
    again = Plan.load(tmp_path / "plan.json")
    assert rates(again, range(20, 45), 0.2) == whole[20:]  # another clock revises no step that was taken
    assert all(0 < rate <= training.learning_rate and math.isfinite(rate) for rate in whole)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (
            {"kind": "constant", "final": 0.1},
            "unknown key stage.a.training.schedule.final in a table of kind 'constant'",
        ),
        ({"kind": "cosine", "decay": 0.1}, "unknown key stage.a.training.schedule.decay"),
        ({"kind": "inverse_sqrt"}, "stage.a.training.schedule.reference"),
        ({"kind": "wsd", "decay": 0}, "schedule.decay = 0.0, expected a share"),
        ({"kind": "linear", "final": 2}, "schedule.final = 2.0, expected a share"),
        ({"kind": "step"}, "There are cosine, linear, constant, wsd, inverse_sqrt"),
    ],
)
def test_a_setting_that_a_schedule_makes_no_use_of_is_refused(schedule, words):
    stage = {"kind": "scene_judge", "training": {"steps": 5, "schedule": schedule}}
    with pytest.raises(RecipeError, match=words):
        parse_recipe({"name": "a", "data": {"kind": "scenes", "size": 32}, "stage": {"a": stage}}, "a")


def test_a_schedule_that_is_newer_than_a_run_counts_as_cosine(tmp_path):
    from pipelines.artefact import ArtefactError
    from pipelines.runs import Run

    stage = {"kind": "scene_judge", "training": {"steps": 5}}
    plain = {"name": "a", "data": {"kind": "scenes", "size": 32}, "stage": {"a": stage}}
    run = Run(recipe=parse_recipe(plain, "a"), folder=tmp_path, data=tmp_path)
    older = run.settings("a")
    del older["stage"]["training"]["schedule"]
    run.check_identity("a", older, run.settings("a"))
    for schedule in (WSD(), Linear()):  # though all their values are defaults
        training = dataclasses.replace(run.recipe.stage["a"].training, schedule=schedule)
        changed = dataclasses.replace(run.recipe.stage["a"], training=training)
        other = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, stage={"a": changed}))
        with pytest.raises(ArtefactError, match=r"stage\.training\.schedule\.\w+ was None and is now"):
            other.check_identity("a", older, other.settings("a"))
