"""Every sampler and guidance of a recipe on a trained (tiny) latent model, and its students."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import pipelines
from latent import sample
from latent.schedule import DDPM
from pipelines.errors import PalimpsestError
from pipelines.latent_sampler import LatentSampler
from pipelines.runs import reopen_run
from pipelines.samplers import grid_of, steps_within
from pipelines.sampling import generators
from pipelines.sampling_options import LATENT_SAMPLERS, SIGNAL_SAMPLERS, LatentOptions, Settings
from tests.conftest import finish

pytestmark = pytest.mark.slow
PROMPTS = ["a red star on a sky background", "a blue circle on a sand background", "a red star on a sky background"]


@pytest.fixture(scope="module")
def latent(smoke):
    return LatentSampler.load(reopen_run(smoke), "latent")


def draw(sampler, settings, prompts=PROMPTS, seed=0):
    return sampler.draw(prompts, generators(prompts, seed), settings)


def settings(sampler="dpmpp_2m", steps=3, guidance=2.0, **options):
    return Settings(sampler=sampler, steps=steps, guidance=guidance, latent=LatentOptions(**options))


def test_every_sampler_of_the_package_can_be_named_in_a_recipe():
    named = {name.removesuffix("_large") for name in LATENT_SAMPLERS}
    assert named == set(sample.__all__)


@pytest.mark.parametrize("name", LATENT_SAMPLERS)
def test_every_sampler_keeps_its_budget_of_evaluations_and_its_items_apart(latent, name):
    start = 0.999 if name in SIGNAL_SAMPLERS else 1.0
    chosen = settings(name, steps_within(name, 6, 2), start=start, langevin_steps=2, tolerance=0.1)
    drawn = draw(latent, chosen)
    assert latent.decode(drawn.z).isfinite().all()
    if name == "dormand_prince":  # its steps suit the whole batch
        return
    assert drawn.evaluations <= 6
    assert drawn.evaluations >= 4
    alone = latent.draw(PROMPTS[1:2], generators(PROMPTS[1:2], 0), chosen)
    torch.testing.assert_close(drawn.z[1:2], alone.z, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SIGNAL_SAMPLERS)
def test_a_sampler_that_needs_signal_says_where_to_start(latent, name):
    with pytest.raises(PalimpsestError, match=r"start = 0\.999 under `latent` in a recipe or --start 0\.999"):
        draw(latent, settings(name))


@pytest.mark.parametrize("grid", ["uniform", "karras", "log_snr", "levels"])
@pytest.mark.parametrize("rule", ["plain", "rescaled", "projected", "zero_star"])
def test_every_grid_and_rule_draws(latent, grid, rule):
    plain, drawn = draw(latent, settings(grid=grid, guidance=1.0)), draw(latent, settings(grid=grid, rule=rule))
    assert latent.decode(drawn.z).isfinite().all()
    assert not torch.allclose(plain.z, drawn.z)


def test_a_negative_prompt_stands_in_for_the_null_condition(latent):
    towards, away = draw(latent, settings()), draw(latent, settings(negative="a green ring on a night background"))
    same = draw(latent, settings(negative=PROMPTS[0]), PROMPTS[:1])
    plain = draw(latent, settings(guidance=1.0), PROMPTS[:1])
    assert not torch.allclose(towards.z, away.z)
    torch.testing.assert_close(same.z, plain.z, rtol=1e-3, atol=1e-4)  # away from what it is asked for: no guidance


def test_a_weaker_model_guides_in_place_of_the_null_condition(latent):
    itself = draw(latent, settings(weak="latent"))
    plain = draw(latent, settings(guidance=1.0))
    torch.testing.assert_close(itself.z, plain.z, rtol=1e-3, atol=1e-4)


def test_guidance_outside_its_interval_is_the_model_alone(latent):
    plain, nowhere = draw(latent, settings(guidance=1.0)), draw(latent, settings(interval=(0.0, 0.01)))
    torch.testing.assert_close(plain.z, nowhere.z, rtol=1e-3, atol=1e-4)


def test_a_threshold_bounds_the_latents(latent):
    assert draw(latent, settings(guidance=8.0)).z.abs().max() > 1.0
    assert draw(latent, settings(guidance=8.0, threshold=0.5)).z.abs().max() <= 0.5 + 1e-5


def test_a_negative_prompt_without_a_second_branch_is_refused(smoke, latent):
    with pytest.raises(PalimpsestError, match="does nothing at guidance 1: give more guidance"):
        draw(latent, settings(guidance=1.0, negative="a ring"))
    with pytest.raises(PalimpsestError, match="draw with its teacher"):
        pipelines.load(smoke).sample(PROMPTS[:1], model="student", negative="a ring")


def test_guidance_of_a_model_without_an_unconditional_branch_is_refused(latent):
    bare = dataclasses.replace(latent, origin=dataclasses.replace(latent.origin, caption_dropout=0.0))
    with pytest.raises(PalimpsestError, match="needs an unconditional branch"):
        draw(bare, settings())
    draw(bare, settings(guidance=1.0))


def test_an_unknown_setting_or_rule_lists_those_there_are(smoke):
    with pytest.raises(PalimpsestError, match=r"guidence: no setting of sampling; there are .*guidance"):
        pipelines.load(smoke).sample(PROMPTS[:1], guidence=3)
    said = finish("sample", "image", "a red star", "--run", smoke, "--rule", "apg", code=2)
    assert "rule is 'apg', expected one of plain, rescaled, projected, zero_star" in said


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_cfg_zero_star_with_few_steps_moves_from_the_start(latent, steps):
    drawn = draw(latent, settings("euler", steps, rule="zero_star"))
    assert (drawn.z - drawn.eps).abs().amax((1, 2, 3)).min() > 0.1


def test_the_levels_of_a_discrete_model_are_those_it_was_trained_on():
    found = grid_of(settings(steps=4, grid="levels"), DDPM(levels=100), 1.0)
    torch.testing.assert_close(100 * found, torch.tensor([99.0, 74.0, 50.0, 25.0, 0.0], dtype=torch.float64))


def test_latent_options_of_a_masked_model_are_refused(smoke):
    with pytest.raises(PalimpsestError, match="negative: a masked model knows no such thing"):
        pipelines.load(smoke).sample(PROMPTS[:1], model="mdlm", negative="a ring")


def test_an_unknown_sampler_lists_those_there_are(latent):
    with pytest.raises(PalimpsestError, match=r"samples with one of euler, heun.*not 'eular'"):
        draw(latent, settings("eular"))


def test_the_command_takes_samplers_and_guidance(smoke, tmp_path):
    words = ("--sampler", "unipc", "--steps", 3, "--guidance", 2, "--rule", "projected", "--interval", 0.1, 0.9)
    finish("sample", "image", "a red star", "--run", smoke, "--out", tmp_path, *words, "--negative", "a blue ring")
    made = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert (made["sampler"], made["steps"], made["guidance"]) == ("unipc", 3, 2)
    assert made["latent"] | {"rule": "projected", "interval": [0.1, 0.9], "negative": "a blue ring"} == made["latent"]


def test_a_student_remembers_its_teacher_and_is_sampled_as_it_was_trained(smoke):
    run = reopen_run(smoke)
    manifest = run.manifest("student")
    assert manifest["teacher"] == {"stage": "latent", "hash": run.manifest("latent")["hash"], "guidance": 3.0}
    pipeline = pipelines.load(smoke)
    assert pipeline.settings("grandstudent").sampler == "consistency"
    picture = pipeline.sample(PROMPTS[:1], model="reflow")[0]
    assert np.asarray(picture).shape == (32, 32, 3)
    assert not (smoke / "reflow" / "pairs.safetensors").exists()


def test_the_report_compares_samplers_guidance_and_students(smoke):
    report = json.loads((smoke / "eval" / "report.json").read_text())
    names = [name for name in report["figures"] if ".sweep.kd[" in name]
    for curve in (*LATENT_SAMPLERS[:-1], "plain", "rescaled", "projected", "zero_star"):
        assert any(f": {curve}|" in name for name in names), curve
    assert any(name.startswith("grandstudent.sweep.kd[students") for name in names)
    assert all(report["figures"][name]["n"] == (64 if "[usual: " in name else 20) for name in names)
    assert any(name.startswith("latent.sweep.kd[ema: averages|") and "|length=0.15|" in name for name in names)
    (line,) = [name for name in report["figures"] if ".sweep.fd-infinity[" in name]
    assert line.startswith("latent.sweep.fd-infinity[usual: ") and "|n=64/" in line
    lines = (smoke / "eval" / "sweep.csv").read_text(encoding="utf-8").splitlines()
    swept = [(smoke / f"{name}_sweep" / "sweep.jsonl").read_text().splitlines() for name in ("latent", "mdlm")]
    assert len(lines) == 1 + sum(map(len, swept))
    page = (smoke / "eval" / "report.html").read_text()
    assert "Best sampler within a number of evaluations" in page
