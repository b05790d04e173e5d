import dataclasses

import pytest

from backbone.folded import FoldedConfig
from backbone.pyramid import PyramidConfig
from pipelines.config import RecipeError, dump_recipe, load_recipe, parse_recipe, read_config
from pipelines.run import makespan, minutes_of, path_minutes, within_budget
from pipelines.sampling_options import LatentOptions
from tests.conftest import ROOT
from tokenizer.quantize import LFQConfig, VQConfig
from tokenizer.vae import VAEConfig
from tokenizer.vqvae import VQVAEConfig

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
        ("stage.vqvae.model={network={factor=5}}", "stage.vqvae reads pictures of 32 pixels.*write data.size = 30, or"),
        (
            "stage.vqvae.model={network={factor=32}, top={}}",
            "multiples of 64: write data.size = 64, or leave model.top out",
        ),
        (
            "stage.vqvae.model={top={quantizer={kind='vq', code=3}}}",
            "top.quantizer.code in a table of kind 'vq'; did you mean 'codes'",
        ),
        ("stage.latent.needs=['encodr']", "stage.latent needs 'encodr'.*did you mean 'encode'"),
        ("stage.encode.needs=['vae']", "stage.encode \\(encode\\) needs a stage of kind 'bpe'"),
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
        ("stage.student_pictures.latent.weak='student'", "expected another latent stage in `needs`"),
        ("stage.mdlm_pictures.latent.rule='projected'", "options of latent models, but its model is a masked one"),
        ("stage.mdlm_pictures.masked.eta=0.3", "stage.mdlm_pictures: eta: no use to the sampler"),
        (["stage.mdlm_pictures.sampler='cached'", "stage.mdlm.model.time=true"], "stage.mdlm.model.time is true"),
        ("stage.student_pictures.guidance=3.0", "student is a student.*use guidance 1 without a negative prompt"),
        ("stage.student_pictures.latent.negative='a ring'", "student is a student.*draw with its teacher"),
        ("stage.match_pictures.latent.negative='a ring'", "does nothing at guidance 1: give more guidance"),
        ("stage.latent.caption_dropout=0.0", "caption_dropout = 0 and has no unconditional branch"),
        ("stage.latent_pictures.sampler='euler_maruyama'", "needs some signal.*start = 0.999 under `latent`"),
        ("stage.latent_pictures.guidance=nan", "guidance is nan, expected a number"),
        ("stage.latent_pictures.latent.start=inf", "start is inf, expected a time above 0"),
        ("stage.joint_pictures.latent.start=0.5", "the grid 'log_snr' has a start of its own"),
        ("stage.student.guidance=inf", "guidance is inf, expected a number"),
        ("stage.latent_sweep.scales=[nan]", "scales are .*expected numbers"),
        ("stage.latent_sweep.evaluations=[]", "expected at least 1 each"),
        ("stage.latent_sweep.samplers=['eulr']", "'eulr'.* are unknown; there are euler"),
        ("stage.latent_sweep.evaluations=[0]", "expected at least 1 each"),
        ("stage.latent_sweep.ema_lengths=[0.3]", "ema_lengths has 0.3, expected shares above 0, up to 0.289"),
        ("stage.latent_sweep.needs=['ddpm', 'judge', 'scene_judge']", "no snapshots are kept of ddpm: set training"),
        ("stage.latent_sweep.line=3", "line 3: expected .* at least 32 pictures"),
        ("stage.latent_sweep.checkpoints=-1", "checkpoints is -1 .*expected 0"),
        ("stage.mdlm_sweep.temperatures=[0.0]", "temperatures are .*expected numbers above 0"),
        ("stage.mdlm_sweep.needs=['latent', 'judge', 'scene_judge']", "add a stage of kind 'mdlm' or 'ar'"),
        ("stage.latent_pictures.count=0", "count is 0, expected at least 1"),
        ("name='../elsewhere'", "recipe name"),
        ("stage.vae.kind='vea'", "stage.vae.*'vae'"),
        ("stage.vae", "lacks a value"),
    ],
)
def test_a_wrong_recipe_says_what_and_how(override, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe(SMOKE, [override] if isinstance(override, str) else override)


QUANTIZER = "stage.vqvae.model.quantizer"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"{QUANTIZER}={{bits=5}}", f"unknown key {QUANTIZER}.bits in a table of kind 'vq'"),
        (f"{QUANTIZER}={{kind='lfg', bits=5}}", f"{QUANTIZER}.kind is 'lfg'; did you mean 'lfq'? There are vq, resid"),
        (f"{QUANTIZER}={{kind=['vq']}}", f"{QUANTIZER}.kind is ['vq']; did you mean 'vq'? There are vq, residual"),
        (f"{QUANTIZER}={{kind='lfq', bits=50}}", f"{QUANTIZER}: bits is 50, expected 1 to 24"),
        (f"{QUANTIZER}={{kind='residual', level={{dim='a'}}}}", f"{QUANTIZER}.level.dim: Input should be a valid int"),
        (
            f"{QUANTIZER}='lfq'",
            f"{QUANTIZER}: expected a table with a kind, of vq, residual, sim, fsq, lfq (given 'lfq",
        ),
        (
            "stage.vae.model.network.chanels=32",
            "unknown key stage.vae.model.network.chanels in a table of kind 'folded'; did you mean 'channels'?",
        ),
        ("stage.latent.schedule={kind='flowe'}", "stage.latent.schedule.kind is 'flowe'; did you mean 'flow'? There"),
        ("stage.latent.schedule={}", 'stage.latent.schedule: add kind = "...", one of flow, vp'),
        ("data.kind='scene'", "data.kind is 'scene'; did you mean 'scenes'? There are scenes, shards, text"),
    ],
)
def test_a_mistake_in_a_union_is_one_line_about_the_member_that_was_meant(override, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe(SMOKE, [override])
    (line,) = str(caught.value).splitlines()[1:]
    assert line.strip().startswith(words)


def test_mistakes_in_several_tables_are_a_line_each():
    with pytest.raises(RecipeError) as caught:
        load_recipe(SMOKE, ["stage.vae.model.network.factor='x'", f"{QUANTIZER}.codes=0", "stage.bpe.vocab_size=[]"])
    assert len(str(caught.value).splitlines()) == 4


def test_a_table_without_kind_is_one_of_the_default_of_its_field():
    model = load_recipe(SMOKE, [f"{QUANTIZER}={{dim=3}}"]).stage["vqvae"].model
    assert model.quantizer == VQConfig(dim=3) and isinstance(model.network, FoldedConfig)
    model = load_recipe(SMOKE, ["stage.vqvae.model={quantizer={kind='lfq', bits=3}}"]).stage["vqvae"].model
    assert model.quantizer == LFQConfig(bits=3)


def test_a_manifest_is_read_by_the_same_rules():
    assert read_config(VAEConfig, {"network": {"factor": 2}}, "here").network == FoldedConfig(factor=2)
    made = read_config(VAEConfig, {"network": {"kind": "pyramid", "channels": [32, 64]}}, "here")
    assert made.network == PyramidConfig(channels=(32, 64))
    with pytest.raises(
        RecipeError,
        match=r"here was made by another version: unknown key quantizer\.bits in a table of kind 'vq'\. Train",
    ):
        read_config(VQVAEConfig, {"quantizer": {"bits": 5}}, "here")


def test_a_missing_or_broken_recipe_is_a_sentence(tmp_path):
    with pytest.raises(RecipeError, match="no recipe at"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(tmp_path / "broken.toml")


def test_an_unknown_grid_lists_those_there_are():
    with pytest.raises(ValueError, match="grid is 'karas', expected one of uniform, karras, log_snr, levels"):
        LatentOptions(grid="karas")


def with_bare(*more):
    """The recipe with a latent model that has no unconditional branch, and overrides."""
    table = {"kind": "latent", "needs": "['encode']", "caption_dropout": 0.0, "model.kind": "dit"}
    table |= {"training.steps": 1, "training.batch": 2}
    return load_recipe(SMOKE, [*(f"stage.bare.{key}={value}" for key, value in table.items()), *more])


def test_a_weak_model_guides_a_model_without_branches():
    more = ["stage.more.kind=generate", "stage.more.needs=['bare', 'latent']", "stage.more.latent.weak=latent"]
    assert with_bare(*more).stage["more"].guidance == 3.0
    with pytest.raises(RecipeError, match="weak does nothing at guidance 1"):
        with_bare(*more, "stage.more.guidance=1.0")


def test_a_sweep_over_a_model_without_an_unconditional_branch_is_refused():
    with pytest.raises(RecipeError, match=r"compares guidance, but ddpm has caption_dropout = 0"):
        load_recipe(
            SMOKE, ["stage.ddpm.caption_dropout=0.0", "stage.latent_sweep.needs=['ddpm', 'judge', 'scene_judge']"]
        )


def test_guidance_of_a_model_without_an_unconditional_branch_is_refused():
    with pytest.raises(RecipeError, match=r"guidance 3 needs an unconditional branch, but ddpm.*use guidance 1"):
        load_recipe(SMOKE, ["stage.ddpm.caption_dropout=0.0", "stage.ddpm_pictures.guidance=3.0"])


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("latent", ("ancestral_large", 12, 3.0)),
        ("mdlm", ("masked_ancestral", 12, 2.5)),
        ("ar", ("autoregressive", 1, 2.0)),
        ("student", ("ddim", 2, 1.0)),
        ("reflow", ("euler", 1, 1.0)),
        ("grandstudent", ("consistency", 2, 1.0)),
    ],
)
def test_a_generate_stage_that_says_nothing_draws_as_its_model_usually_does(model, wanted):
    recipe = load_recipe(SMOKE, ["stage.more.kind=generate", f"stage.more.needs=['{model}']"])
    found = recipe.stage["more"].settings()
    assert (found.sampler, found.steps, found.guidance) == wanted


def test_a_model_without_an_unconditional_branch_is_usually_drawn_without_guidance():
    assert with_bare().settings_for("bare").guidance == 1.0


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
