"""The whole pipeline on tiny models: a killed run, a killed stage, what stands in the folders, and the verbs."""

import dataclasses
import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pipelines
from eval.definitions import define
from eval.human.key import read_key
from eval.human.simulate import Truth, answer_pages
from pipelines.artefact import ArtefactError
from pipelines.config import dump_recipe, load_recipe, parse_recipe
from pipelines.evaluate import VAE_FIGURES, VQVAE_FIGURES
from pipelines.runs import RECIPE, open_run, reopen_run
from pipelines.sampling import generators
from pipelines.sampling_options import Settings
from scripts.kills import beside, newest, torture
from tests.conftest import ROOT, finish, start, wait_for

pytestmark = pytest.mark.slow


def without(smoke: Path, out: Path, *stages: str) -> Path:
    """A copy of the smoke run in which some stages have not begun."""
    folder = out / "smoke"
    shutil.copytree(smoke, folder, ignore=lambda where, names: stages if Path(where) == smoke else [])
    return folder


def test_the_resumed_run_has_every_promised_figure(smoke):
    report = json.loads((smoke / "eval" / "report.json").read_text())
    assert report["schema"] == 1
    names = ["vae.psnr", "vqvae.psnr", "vqvae.usage", "vqvae.patch_kmeans_psnr", "caption.scene.colour"]
    names += [f"vae.{name}" for name in VAE_FIGURES if name != "bits_per_dim"]  # its VAE has no law of pictures
    names += [f"vqvae.{name}" for name in VQVAE_FIGURES if name != "usage_at_10k"]
    assert "the 120 pictures hold 7,680" in report["figures"]["vqvae.usage_at_10k"]["reason"]
    for metric in ("fd", "featdist"):
        found = [name for name in report["figures"] if re.match(rf"recon\.\w+\.{metric}\[indomain.*split=test\]", name)]
        assert len(found) == 2 and all("not comparable" in report["figures"][name]["source"] for name in found)
        names += found
    names += ["text.nats_per_token", "text.exact_nats_per_token"]
    for embedder in ("indomain-openclip-unit", "random-conv"):
        for what in ("real.fd", "latent.fd", "recon.vae.fd"):
            found = [name for name in report["figures"] if name.startswith(f"{what}[{embedder}:")]
            assert len(found) == 1, (embedder, what)
            names += found
    assert any(re.match(r"latent\.clip_score\[.*\|slice=words:", name) for name in report["figures"])
    failed = {name: figure["value"] for name, figure in report["figures"].items() if "failures[not_finite]" in name}
    assert {"latent.failures[not_finite]", "latent.unseen.failures[not_finite]"} <= set(failed) and not any(
        failed.values()
    )
    for model in ("latent", "mdlm", "ddpm"):
        names += [f"{model}.scene.{attribute}" for attribute in ("background", "colour", "shape", "size", "relation")]
        names += [f"{model}.scene.colour.{part}" for part in ("one", "two", "unseen")]
    for name in names:
        figure = report["figures"][name]
        assert np.isfinite(figure["value"]) and figure["n"] > 0 and figure["source"], name
    share = report["figures"]["mdlm.scene.colour"]
    assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1
    bound, exact = report["figures"]["text.nats_per_token"], report["figures"]["text.exact_nats_per_token"]
    assert bound["value"] > exact["value"] > 0  # an untrained bound lies far above the entropy


def test_every_figure_of_the_report_is_defined_in_words(smoke):
    report = json.loads((smoke / "eval" / "report.json").read_text())
    assert [name for name in report["figures"] if define(name).better is None and define(name).label == name] == []


def test_the_report_says_how_it_can_be_made_again(smoke):
    made = json.loads((smoke / "eval" / "report.json").read_text())["provenance"]
    assert made["command"] == "palimpsest run recipes/smoke.toml"
    again = parse_recipe(made["resolved"], "report.json")
    assert dump_recipe(again) == dump_recipe(load_recipe(ROOT / "recipes" / "smoke.toml"))
    vae = json.loads((smoke / "vae" / "manifest.json").read_text())
    assert vae["earlier_seconds"] > 0, "the smoke run was killed while this stage trained"
    assert made["wall_time"]["vae"] >= vae["seconds"]


def test_a_run_remembers_what_was_asked_for(tmp_path):
    wished = ("stage.vae.training.steps=5", "seed=3")
    run = open_run(
        ROOT / "recipes" / "smoke.toml", out=tmp_path, data=tmp_path, overrides=wished, budget=9.5,
        scale=lambda recipe, minutes: recipe,
    )  # fmt: skip
    asked = run.command()
    assert asked.endswith("recipes/smoke.toml --data DIR --budget 9.5 --set stage.vae.training.steps=5 seed=3")
    assert open_run(run.folder / RECIPE, out=tmp_path, data=tmp_path).command() == asked


def test_a_stage_keeps_the_plan_that_it_began_with_and_says_so(tmp_path, caplog):
    minutes = ("stage.vae.training.minutes=2", "stage.vqvae.training.minutes=2")
    arguments = {"out": tmp_path, "data": tmp_path}
    run = open_run(ROOT / "recipes" / "smoke.toml", overrides=minutes, **arguments)
    asked = run.command()
    run.stage_folder("vae").mkdir()
    (run.stage_folder("vae") / "plan.json").write_text("{}")
    again = open_run(ROOT / "recipes" / "smoke.toml", overrides=tuple(m + "0" for m in minutes), **arguments)
    assert again.recipe.stage["vae"].training.minutes == 2 and again.recipe.stage["vqvae"].training.minutes == 20
    assert "vae keeps its plan of 2 minutes, not 20: delete" in caplog.text and again.command() == asked
    assert reopen_run(run.folder).recipe == again.recipe


def test_the_report_is_one_file_without_network(smoke):
    page = (smoke / "eval" / "report.html").read_text()
    assert "Rate and distortion" in page and "by PSNR" in page
    assert "Content-Security-Policy" in page
    assert 'src="http' not in page and 'href="http' not in page


@pytest.mark.parametrize("stage", ["vae", "vqvae", "clip", "scene_judge", "latent", "reflow", "match", "mdlm", "ar"])
def test_a_stage_that_is_killed_twice_ends_with_the_same_weights(smoke, tmp_path, stage):
    """SIGKILL at two random moments, resume, and compare bit for bit with the stage as it was made before."""
    found = torture(smoke, tmp_path, stage, kills=2, seed=stage)
    manifest = json.loads((smoke / stage / "manifest.json").read_text())
    assert len(found) == 2
    folder = tmp_path / "smoke" / stage
    assert manifest["hash"] == json.loads((folder / "manifest.json").read_text())["hash"]
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)  # no point of the curve is drawn twice
    assert not (folder / "checkpoints").exists()


def test_other_averages_of_a_stage_refuse_what_was_built_on_it_until_they_are_taken_back(smoke, tmp_path):
    folder = without(smoke, tmp_path, "eval")
    before = reopen_run(folder).manifest("latent")
    told = finish("ema", folder, "latent", "--length", "0.08", "0.12")
    assert "length 0.08  loss" in told and "length 0.12  loss" in told
    assert "refused from now on until they are made anew: student" in told and "latent_pictures" in told
    run = reopen_run(folder)
    now = run.manifest("latent")
    assert now["ema_length"] in (0.08, 0.12) and now["hash"] != before["hash"]
    assert now["files"]["model.safetensors"] == before["files"]["model.safetensors"]
    best = min(now["ema_compared"], key=lambda length: now["ema_compared"][length]["loss"])
    assert float(best) == now["ema_length"] and now["ema_error"] < 0.05
    with pytest.raises(ArtefactError, match=r"student does not match the recipe: needs\.latent was"):
        run.manifest("student")
    assert "are those that training left" in finish("ema", folder, "latent")
    again = reopen_run(folder)
    assert again.manifest("latent")["hash"] == before["hash"] and again.manifest("student")
    assert "has no snapshots" in finish("ema", folder, "ddpm", "--length", "0.1", code=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_asked_to_stop_has_saved_and_says_so_by_its_exit_code(smoke, tmp_path, number):
    folder = beside(smoke, tmp_path, "vae")
    (folder / "encode").unlink()
    data = reopen_run(smoke).data
    verb = ("run",) if number == signal.SIGTERM else ("train", "vae")
    process = start(*verb, folder / "recipe.json", "--out", tmp_path, "--data", data)
    wait_for(folder / "vae" / "checkpoints" / "[0-9]*", process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "saved. The same command goes on from there" in output and "Traceback" not in output
    assert newest(folder / "vae") > 0 and not (folder / "vae" / "manifest.json").exists()


def test_a_finished_run_is_skipped_and_another_recipe_is_refused(smoke):
    output = finish("run", smoke / "recipe.json", "--out", smoke.parent)
    assert "finished before, skipped" in output
    refused = finish("run", "recipes/smoke.toml", "--out", smoke.parent, "--set", "stage.vae.training.batch=8", code=2)
    assert "stage.training.batch was 16 and is now 8" in refused
    assert "Traceback" not in refused
    assert reopen_run(smoke).recipe.stage["vae"].training.batch == 16  # the folder keeps the recipe that made it


def test_a_stage_refuses_a_forerunner_that_changed(smoke, tmp_path):
    folder = without(smoke, tmp_path, "latent")
    weights = folder / "vae" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    output = finish(
        "train", "latent", folder / "recipe.json", "--out", tmp_path, "--data", reopen_run(smoke).data, code=2
    )
    assert "vae/model.safetensors is not the file that was trained" in output
    assert "Traceback" not in output


def test_a_stage_without_its_forerunner_names_it(smoke, tmp_path):
    folder = without(smoke, tmp_path, "latent", "encode")
    output = finish(
        "train", "latent", folder / "recipe.json", "--out", tmp_path, "--data", reopen_run(smoke).data, code=2
    )
    assert "encode holds no finished stage" in output and "palimpsest train encode" in output


def test_a_picture_does_not_depend_on_its_batch(smoke):
    pipeline = pipelines.load(smoke)
    prompts = ["a large red star on a sky background", "a small blue ring on a sand background", "a big white cross"]
    for model in ("latent", "mdlm", "ar"):
        together = pipeline.sample(prompts, seed=3, model=model)
        alone = pipeline.sample([prompts[2]], seed=3, model=model)[0]
        other = pipeline.sample([prompts[2]], seed=4, model=model)[0]
        difference = np.abs(np.asarray(together[2], int) - np.asarray(alone, int))
        assert difference.max() <= 1, model  # another batch size may round differently
        assert np.abs(np.asarray(other, int) - np.asarray(alone, int)).max() > 1, model


def test_equal_prompts_give_different_pictures(smoke):
    first, second = pipelines.load(smoke).sample(["a red star"] * 2, seed=0)
    assert np.abs(np.asarray(first, int) - np.asarray(second, int)).max() > 1


def test_the_sampling_verbs_write_what_they_say(smoke, tmp_path):
    output = finish("sample", "image", "a large red star on a sky background", "--run", smoke, "--out", tmp_path)
    picture = Path(output.strip().splitlines()[-1])
    made = json.loads(picture.with_suffix(".json").read_text())
    assert Image.open(picture).size == (256, 256)
    assert made["prompt"] == "a large red star on a sky background" and made["seed"] == 0
    assert {"hash", "sampler", "guidance", "steps", "model"} <= made.keys()
    assert len(finish("sample", "text", "--run", smoke, "--count", "2").strip().splitlines()) >= 1
    finish("sample", "caption", picture, "--run", smoke)
    filled = finish(
        "sample", "infill", picture, "--caption", "a [mask] star", "--run", smoke, "--out", tmp_path / "filled.png"
    )
    assert "star" in filled and (tmp_path / "filled.png").exists()
    made = json.loads((tmp_path / "filled.json").read_text())
    assert made["prompt"] == "a [mask] star" and "star" in made["caption"] and made["box"] == [0.5, 0.0, 1.0, 1.0]


def test_the_data_verbs_render_check_and_import(tmp_path):
    finish("data", "scenes", tmp_path / "scenes", "--count", "30", "--size", "16")
    assert "safe to train on" in finish("data", "check", tmp_path / "scenes")
    finish("data", "import", tmp_path / "scenes", tmp_path / "again", "--size", "8")
    assert "30 train" in finish("data", "check", tmp_path / "again")
    shard = next((tmp_path / "again").glob("train-*.tar"))
    shard.write_bytes(shard.read_bytes()[:-5000])
    assert "not safe to train on" in finish("data", "check", tmp_path / "again", code=1)


def test_encode_and_eval_can_be_asked_for_alone(smoke, tmp_path):
    folder = without(smoke, tmp_path, "encode", "cache", "eval", "latent", "mdlm", "ddpm")
    words = (folder / "recipe.json", "--out", tmp_path, "--data", reopen_run(smoke).data)
    finish("encode", *words)
    assert reopen_run(folder).manifest("encode")["hash"] == reopen_run(smoke).manifest("encode")["hash"]
    whole = without(smoke, tmp_path / "again", "eval")
    words = (whole / "recipe.json", "--out", tmp_path / "again", "--data", reopen_run(smoke).data)
    finish("eval", *words, "--against", smoke)
    assert "No figure differs beyond chance." in (whole / "eval" / "report.html").read_text()
    reports = [json.loads((run / "eval" / "report.json").read_text())["figures"] for run in (smoke, whole)]
    assert reports[0].keys() == reports[1].keys()
    for name, figure in reports[0].items():  # an evaluation repeats itself, but for the last bits of linear algebra
        for part, value in figure.items():
            close = pytest.approx(value, rel=1e-6, abs=1e-9) if isinstance(value, float) else value
            assert reports[1][name][part] == close, name


def test_an_empty_prompt_is_refused_and_a_long_one_is_cut_with_a_word(smoke, tmp_path):
    assert "The prompt is empty" in finish("sample", "image", " ", "--run", smoke, code=2)
    long = "a red star " * 900
    assert "longer than the 18 tokens" in finish("sample", "image", long, "--run", smoke, "--out", tmp_path)


def test_infilling_keeps_what_is_known(smoke):
    sampler = pipelines.load(smoke).masked
    x = torch.zeros(1, 3, 32, 32)
    codes = sampler.encode(x).flatten(1)
    hidden = sampler.hidden_box((0.5, 0.0, 1.0, 1.0))
    assert int(hidden.sum()) == len(hidden) // 2
    settings = Settings(sampler="confidence", steps=4, guidance=1.0)
    seen = []
    watched = dataclasses.replace(sampler)
    object.__setattr__(watched, "decode", lambda found: seen.append(found) or sampler.decode(found))
    _, words = watched.infill(x, "a red star", (0.5, 0.0, 1.0, 1.0), generators(["x"], 0), settings)
    assert words == "a red star"
    assert torch.equal(seen[0][0, ~hidden], codes[0, ~hidden])
    with pytest.raises(ValueError, match="0 <= left < right <= 1"):
        sampler.hidden_box((0.5, 0.0, 0.4, 1.0))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sample", "image", "x", "--run", "nowhere"), "nowhere is no run"),
        (("sample", "caption", "no.png", "--run", "SMOKE"), "There is no picture at no.png"),
        (("sample", "image", "x", "--run", "SMOKE", "--model", "vae"), "draws no pictures"),
        (("sample", "image", "x", "--run", "SMOKE", "--steps", "0"), "steps is 0, expected at least 1"),
        (("run", "recipes/none.toml"), "no recipe at"),
        (("run", "recipes/openmoji.toml", "--out", "OUT"), "--data DIR"),
        (("run", "recipes/openmoji.toml", "--out", "OUT", "--data", "OUT"), "No train shards|no shards|No .*train"),
        (("train", "nothing", "SMOKE/recipe.json", "--out", "OUT"), "has no stage 'nothing'"),
        (("data", "check", "OUT"), "No shards in .*palimpsest data scenes"),
    ],
)
def test_bad_input_is_a_sentence_not_a_traceback(smoke, tmp_path, words, said):
    places = {"SMOKE": str(smoke), "OUT": str(tmp_path)}
    filled = [re.sub("SMOKE|OUT", lambda found: places[found.group()], word) for word in words]
    code = 1 if words[:2] == ("data", "check") else 2
    process = start(*filled)
    output, _ = process.communicate(timeout=300)
    assert process.returncode in (code, 2), output
    assert re.search(said, output), output
    assert "Traceback" not in output


def test_a_manifest_that_names_another_layout_is_refused(smoke, tmp_path):
    folder = without(smoke, tmp_path)
    manifest = json.loads((folder / "mdlm" / "manifest.json").read_text())
    manifest["layout"]["text_vocab"] += 1
    (folder / "mdlm" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="vocabulary layout"):
        _ = pipelines.load(folder).masked


def test_a_study_of_two_stages_goes_out_blinded_and_comes_back(smoke, tmp_path):
    file, out = tmp_path / "guidance.toml", tmp_path / "out"
    stages = {"flow": "latent_pictures", "ddpm": "ddpm_pictures"}
    tables = "".join(f'[model.{name}]\nrun = "{smoke}"\nstage = "{stage}"\n' for name, stage in stages.items())
    head = "raters = 2\nblock = 12\n[prompts]\ncount = 6\nextra = 'leave'\n"
    file.write_text(head + tables)
    told = finish("study", "export", file, "--out", out)
    assert "keep sealed" in told and "no controls" not in told
    page = (out / "bundle" / "pages" / "block-01.html").read_text()
    assert not re.search(r"latent_pictures|ddpm|\bflow\b", page)
    key = read_key(out / "key.sealed.json")
    assert set(key.models) == set(stages) and any(item.first == "gold:right" for item in key.items.values())
    file.write_text(head.replace("raters = 2", "raters = 4") + tables)
    assert "belongs to another study" in finish("study", "export", file, "--out", out, code=2)
    truth = Truth(strengths=(2.0, -2.0), noise=0)
    files = []
    for made in answer_pages(key, truth, np.random.default_rng(0)):
        files.append(tmp_path / f"{made['rater']}.json")
        files[-1].write_text(json.dumps(made))
    assert "raters from 2 files" in finish("study", "import", *files, "--study", out)
    told = finish("study", "report", out, "--figures", smoke / "eval" / "report.json")
    assert "preference   flow over ddpm" in told and (out / "report.html").exists()
    metrics = json.loads((out / "study.json").read_text())["metrics"]
    assert {fit["metric"] for fit in metrics if fit["over"] == "models"} >= {"scene.colour", "scene.shape"}
    singly = {fit["metric"] for fit in metrics if fit["over"] == "prompts"}
    assert "scene.colour" in singly and any(metric.startswith("clip_score[") for metric in singly)


def test_a_setting_that_is_newer_than_a_run_counts_as_its_default(smoke):
    run = reopen_run(smoke)
    made = run.manifest("latent")["identity"]
    older = json.loads(json.dumps(made))
    del older["stage"]["shift"], older["stage"]["model"]["activation"]
    run.check_identity("latent", older, made)
    shifted = dataclasses.replace(run.recipe.stage["latent"], shift=2.0)
    recipe = dataclasses.replace(run.recipe, stage=run.recipe.stage | {"latent": shifted})
    changed = dataclasses.replace(run, recipe=recipe)
    with pytest.raises(ArtefactError, match=r"stage\.shift was None and is now 2\.0"):
        changed.check_identity("latent", older, changed.settings("latent"))
