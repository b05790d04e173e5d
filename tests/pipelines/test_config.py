import dataclasses

import pytest

from pipelines.config import RecipeError, dump_recipe, load_recipe, parse_recipe
from pipelines.run import makespan, minutes_of, path_minutes, within_budget
from tests.conftest import ROOT

SMOKE = ROOT / "recipes" / "smoke.toml"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.name)
def test_every_recipe_is_valid_and_survives_json(path):
    recipe = load_recipe(path)
    assert parse_recipe(dump_recipe(recipe), "json") == recipe


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage.vae.training.stepz=3", "unknown key stage.vae.training.stepz; did you mean 'steps'"),
        ("stage.vae.model.chanels=3", "unknown key stage.vae.model.chanels; did you mean 'channels'"),
        ("sede=3", "unknown key sede; did you mean 'seed'"),
        ("stage.vae.training.steps=-3", "training.steps = -3, expected a number above 0"),
        ("stage.vae.training.steps='many'", "stage.vae.training.steps.*valid integer.*'many'"),
        ("stage.latent.needs=['encodr']", "stage.latent needs 'encodr'.*did you mean 'encode'"),
        ("stage.encode.needs=['vae']", "stage.encode \\(encode\\) needs a stage of kind 'vqvae'"),
        ("stage.bpe.needs=['eval']", "circle"),
        ("stage.vae.training.minutes=nan", "expected a number above 0"),
        ("stage.mdlm_pictures.sampler='euler'", "sampler is 'euler', which its model cannot use; it can use"),
        ("stage.latent_pictures.needs=['vae']", "name a stage of kind latent or distill or"),
        ("stage.student.needs=['encode']", "learns from a model: name a stage of kind latent or distill"),
        ("stage.grandstudent.guidance=3.0", "its teacher is a student itself.*write guidance = 1"),
        ("stage.grandstudent.steps=1", "consistency between 1 levels, expected at least 2"),
        ("stage.reflow.pairs=0", "pairs is 0, expected at least 1"),
        ("stage.joint.prediction='score'", "prediction 'score' with DDPM.*t = 1.0"),
        ("stage.joint.shift=0.0", "shift is 0.0, expected a factor above 0"),
        ("stage.joint.gamma=-1.0", "gamma is -1.0, expected gamma > 0"),
        ("stage.joint.model.size='XXL'", "stage.joint.model.size.*'XXL'"),
        ("stage.latent.model={dim=64}", "stage.latent.model: add kind ="),
        ("stage.joint_pictures.latent.interval=[0.7, 0.2]", "stage.joint_pictures.latent: guidance interval"),
        ("stage.joint_pictures.latent.start=0.0", "start is 0.0, expected a time above 0"),
        ("stage.joint_pictures.latent.threshold=-1.0", "threshold is -1.0, expected a size above 0"),
        ("stage.joint_pictures.latent.weak='latent'", "negative and weak are two ways to guide"),
        ("stage.student_pictures.latent.weak='student'", "expected a latent stage in `needs`"),
        ("stage.mdlm_pictures.latent.rule='projected'", "options of latent models, but its model is a masked one"),
        ("stage.latent_sweep.samplers=['eulr']", "'eulr'.* are unknown; there are euler"),
        ("stage.latent_sweep.evaluations=[0]", "expected at least 1 each"),
        ("stage.latent_pictures.count=0", "count is 0, expected at least 1"),
        ("name='../elsewhere'", "recipe name"),
        ("stage.vae.kind='vea'", "stage.vae.*'vae'"),
        ("stage.vae", "lacks a value"),
    ],
)
def test_a_wrong_recipe_says_what_and_how(override, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe(SMOKE, [override])


def test_a_missing_or_broken_recipe_is_a_sentence(tmp_path):
    with pytest.raises(RecipeError, match="no recipe at"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(tmp_path / "broken.toml")


def test_eps_on_a_path_that_ends_in_pure_noise_is_refused():
    with pytest.raises(RecipeError, match="prediction 'eps' with Flow"):
        load_recipe(SMOKE, ["stage.latent.prediction=eps"])


def test_order_puts_every_stage_behind_its_needs():
    recipe = load_recipe(SMOKE)
    order = recipe.order()
    assert sorted(order) == sorted(recipe.stage)
    assert all(order.index(need) < order.index(name) for name, stage in recipe.stage.items() for need in stage.needs)


def test_makespan_lies_between_its_bounds():
    recipe = load_recipe(ROOT / "recipes" / "scenes.toml")
    work = sum(map(minutes_of, recipe.stage.values()))
    longest = max(path_minutes(recipe).values())
    assert makespan(recipe, 1) == pytest.approx(work)
    assert max(longest, work / 2) - 1e-9 <= makespan(recipe, 2) <= work
    assert makespan(recipe, 99) == pytest.approx(longest)


def test_a_budget_is_met_and_too_little_is_refused():
    recipe = load_recipe(ROOT / "recipes" / "scenes.toml")
    halved = within_budget(recipe, 12.0, 2)
    assert makespan(halved, 2) == pytest.approx(12.0, abs=0.1)
    shares = {
        n: s.training.minutes / recipe.stage[n].training.minutes
        for n, s in halved.stage.items()
        if hasattr(s, "training")
    }
    assert max(shares.values()) == pytest.approx(min(shares.values()), rel=0.02)
    with pytest.raises(Exception, match="too little"):
        within_budget(recipe, 0.5, 2)


def test_one_measure_of_training_replaces_the_other():
    training = load_recipe(SMOKE, ["stage.vae.training.minutes=3"]).stage["vae"].training
    assert (training.steps, training.minutes) == (None, 3.0)


def test_a_recipe_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_recipe(SMOKE).seed = 3
