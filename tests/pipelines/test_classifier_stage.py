"""A classifier in the pipeline: trained on a tiny cache, resumed, refused where it does not fit, and sampled with."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines import classifier_stage
from pipelines.classifier_stage import LEVELS, ClassifierTask
from pipelines.config import RecipeError, parse_recipe
from pipelines.data.scenes import write
from pipelines.errors import PalimpsestError
from pipelines.hardware import step_generator
from pipelines.loop import Interrupted, Loop
from pipelines.pipeline import Pipeline
from pipelines.runs import Run
from pipelines.stages import run_stage
from pipelines.sweep import guidances, settings_of_sweep

STEPS = 6
SMALL = {"steps": 2, "batch": 8, "compile": False, "bf16": False}
TOWERS = {"width": 4, "heads": 4, "text_width": 16, "text_layers": 1, "embed_dim": 16}
MODEL = {"kind": "dit", "dim": 16, "layers": 1, "heads": 2, "text_dim": 16, "text_heads": 2, "cond_dim": 16}
MATCH = {"dim": 16, "layers": 1, "heads": 2, "cond_dim": 16, "embed_dim": 16, "bank": 20}
VP = {"kind": "vp"}
SMALL_NETWORK = {"channels": 16, "encoder_blocks": 1, "decoder_blocks": 1}
STAGES = {
    "bpe": {"kind": "bpe", "length": 18},
    "vae": {"kind": "vae", "model": {"network": SMALL_NETWORK}, "training": SMALL},
    "vqvae": {
        "kind": "vqvae",
        "model": {"network": SMALL_NETWORK, "initial_vectors": 64,
                  "quantizer": {"codes": 8}},
        "training": SMALL,
    },
    "clip": {"kind": "clip", "needs": ["bpe"], "model": TOWERS, "training": SMALL},
    "judge": {"kind": "judge", "needs": ["bpe"], "model": TOWERS, "training": SMALL},
    "scene_judge": {"kind": "scene_judge", "widths": [8], "training": SMALL},
    "encode": {"kind": "encode", "needs": ["vae", "vqvae", "bpe", "clip"]},
    "latent": {"kind": "latent", "needs": ["encode"], "model": MODEL, "training": SMALL},
    "small": {"kind": "latent", "needs": ["encode"], "model": MODEL, "prediction": "v", "training": SMALL},
    "ddpm": {"kind": "latent", "needs": ["encode"], "model": MODEL, "schedule": VP, "training": SMALL},
    "match": {"kind": "classifier", "needs": ["encode"], "model": MATCH,
              "training": {**SMALL, "steps": STEPS, "ema": 0.5, "bf16": True}},
    "sweep": {"kind": "sweep", "needs": ["latent", "ddpm", "small", "match", "judge", "scene_judge"], "weak": "small"},
    "pictures": {"kind": "generate", "needs": ["latent", "match"], "steps": 3, "count": 4, "unseen": 0,
                 "guidance": 1.0, "latent": {"classifier": "match", "interval": [0.0, 0.9]}},
}  # fmt: skip
PROMPTS = ["a large red star on a sky background", "a small blue ring on a sand background"]


def recipe(**changes):
    """The recipe, with some values of some stages changed."""
    stages = {name: {**stage, **changes.get(name, {})} for name, stage in STAGES.items()}
    return parse_recipe({"name": "tiny", "data": {"kind": "scenes", "size": 32}, "stage": stages}, "tiny")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run in which all is made that a classifier and its pictures need."""
    folder = tmp_path_factory.mktemp("tiny")
    write(folder / "data", count=40, size=32, seed=0)
    run = Run(recipe=recipe(), folder=folder / "run", data=folder / "data")
    for name in ("bpe", "vae", "vqvae", "clip", "encode", "latent", "small", "match", "pictures"):
        run_stage(run, name)
    return run


def test_the_manifest_says_what_guidance_needs(tiny):
    made = tiny.manifest("match")
    assert made["schedule"] == {"kind": "flow", "sigma_min": 0.0}
    assert (made["model"]["bank"], made["model"]["channels"], made["model"]["pooled_width"]) == (20, 4, 16)
    assert made["cache"] == tiny.manifest("latent")["cache"]


def test_the_bank_holds_distinct_captions_of_the_training_split(tiny):
    task = ClassifierTask(tiny, "match", tiny.recipe.stage["match"])
    captions = {row for batch in [task.cache.batch("train", 40)] for row in batch["caption"]}
    bank = task._bank()
    assert len(set(bank)) == 20 and captions.issuperset(bank)
    kept = load_file(tiny.stage_folder("match") / "model.safetensors")["bank"]
    assert torch.equal(kept, task.text.rows(bank).pooled.float())


def test_where_there_are_few_captions_the_bank_lists_each_once(tiny, monkeypatch):
    task = ClassifierTask(tiny, "match", tiny.recipe.stage["match"])
    one, two, three = task.cache.batch("train", 3)["caption"]
    monkeypatch.setattr(classifier_stage, "some", lambda *_, **__: {"caption": [one, two, one, three, two]})
    task = ClassifierTask(tiny, "match", tiny.recipe.stage["match"])
    assert task._bank() == [one, two, three] and task.config.bank == len(task.network.bank) == 3


def test_the_interrupted_training_ends_with_the_same_weights(tiny, tmp_path):
    stage = tiny.recipe.stage["match"]

    def loop(stop_at):
        task = ClassifierTask(tiny, "match", stage)
        made, loss = Loop(task, stage.training, tmp_path, seed=tiny.recipe.seed + 2, name="match"), task.loss

        def watched(network, batch, generator):
            made.stop = made.state.step == stop_at
            return loss(network, batch, generator)

        task.loss = watched
        return made

    with pytest.raises(Interrupted):
        loop(2).run()
    loop(None).run()
    for name in ("model.safetensors", "ema.safetensors"):
        assert (tmp_path / name).read_bytes() == (tiny.stage_folder("match") / name).read_bytes()


def test_validation_counts_the_captions_that_are_found_at_every_level(tiny):
    lines = [json.loads(line) for line in (tiny.stage_folder("match") / "log.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "validation"][-1]
    assert all(0 <= last[f"match_t{level}"] <= 1 for level in LEVELS) and last["loss"] > 0
    task = ClassifierTask(tiny, "match", tiny.recipe.stage["match"])
    assert task.validate(task.network) == task.validate(task.network)


def test_training_lowers_the_loss_and_finds_captions(tiny):
    task = ClassifierTask(tiny, "match", tiny.recipe.stage["match"])
    batch, _ = next(task.batches(0, 0, 1))
    z = torch.randn(8, 4, 8, 8, generator=step_generator(0, 0, 0))  # a hardly trained VAE tells little
    batch["latent"] = torch.stack([task.mean + 2 * task.std * z, torch.full_like(z, -20.0)], 1)
    network, optimizer = task.network, torch.optim.Adam(task.network.parameters(), lr=1e-2)
    losses = []
    for step in range(80):
        loss, _ = task.loss(network, batch, step_generator(0, 0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < math.log(len(batch["key"])) - 0.5  # what one pays who knows nothing


def pictures(run, prompts, **changes):
    drawn = Pipeline(run).sample(prompts, model="latent", seed=1, **changes)
    return np.stack([np.asarray(picture, int) for picture in drawn])


def test_the_classifier_guides_where_the_interval_lets_it(tiny):
    plain = pictures(tiny, PROMPTS, classifier="", classifier_scale=1.0)
    assert np.array_equal(pictures(tiny, PROMPTS, classifier_scale=0.0), plain)
    assert np.abs(pictures(tiny, PROMPTS, classifier_scale=300.0) - plain).max() > 1
    late = pictures(tiny, PROMPTS, classifier_scale=300.0, interval=(0.0, 0.01))  # between the last step and the data
    assert np.array_equal(late, plain)


def test_a_guided_picture_does_not_depend_on_its_batch(tiny):
    together, alone = (pictures(tiny, prompts, classifier_scale=30.0) for prompts in (PROMPTS, PROMPTS[1:]))
    assert np.abs(together[1] - alone[0]).max() <= 1


def test_a_weak_model_guides_by_its_own_prediction(tiny):
    """At scale 0 the weak model is all that is left; it predicts v, the other one the velocity."""
    options = {"classifier": "", "classifier_scale": 1.0}
    weak = pictures(tiny, PROMPTS, weak="small", guidance=0.0, interval=(0.0, 1.0), **options)
    drawn = Pipeline(tiny).sample(PROMPTS, model="small", seed=1, steps=3, guidance=1.0)
    assert np.abs(weak - np.stack([np.asarray(picture, int) for picture in drawn])).max() <= 1
    assert np.abs(weak - pictures(tiny, PROMPTS, **options)).max() > 1


def test_pictures_tell_which_classifier_guided_them(tiny):
    made = json.loads(next(tiny.stage_folder("pictures").glob("test/*.json")).read_text())
    assert made["settings"]["latent"]["classifier"] == "match" and made["settings"]["guidance"] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"match": {"schedule": VP}}, "match knows the path VP.*latent is on Flow.*give both the same schedule"),
        ({"pictures": {"needs": ["latent"]}}, "classifier is 'match': add that stage to `needs`"),
        ({"pictures": {"latent": {"classifier": "match"}}}, "asked at t = 1, where Flow.*give interval = "),
        ({"pictures": {"latent": {"classifier": "latent"}}}, "latent is of kind 'latent', expected 'classifier'"),
        ({"pictures": {"latent": {"classifier_scale": 2}}}, "classifier_scale is 2.0, but no stage is named"),
        ({"pictures": {"latent": {"classifier": "match", "classifier_scale": -1}}}, "classifier_scale is -1.0"),
        ({"match": {"needs": ["vae"]}}, "needs a stage of kind 'encode'"),
        ({"sweep": {"weak": "match"}}, "match is of kind 'classifier', expected 'latent'"),
        ({"sweep": {"weak": "vae"}}, "weak is 'vae': add that stage"),
        ({"small": {"schedule": {"kind": "cosine"}}}, "small guides none of its models. small knows the path Cosine"),
        ({"match": {"schedule": {"kind": "cosine"}}, "pictures": {"latent": {}}}, "match guides none of its models"),
    ],
)  # fmt: skip
def test_a_guide_that_does_not_fit_is_refused_with_a_sentence(changes, words):
    with pytest.raises(RecipeError, match=words):
        recipe(**changes)


def test_a_classifier_of_other_latents_is_refused():
    other = {**STAGES, "other": STAGES["encode"]}
    stages = {**other, "match": {**STAGES["match"], "needs": ["other"]}}
    with pytest.raises(RecipeError, match="match reads the latents of other, but latent those of encode"):
        parse_recipe({"name": "tiny", "data": {"kind": "scenes"}, "stage": stages}, "tiny")


def test_a_classifier_without_latents_is_refused_wherever_it_stands_in_the_recipe():
    stages = {**{n: s for n, s in STAGES.items() if n != "match"}, "match": {**STAGES["match"], "needs": ["vae"]}}
    with pytest.raises(RecipeError, match=r"match \(classifier\) needs a stage of kind 'encode'"):
        parse_recipe({"name": "tiny", "data": {"kind": "scenes"}, "stage": stages}, "tiny")


def test_sampling_refuses_what_the_recipe_could_not_see(tiny):
    for classifier, words in (("vae", "vae is of kind 'vae', expected 'classifier'"), ("no", "has no stage 'no'")):
        with pytest.raises(PalimpsestError, match=words):
            pictures(tiny, PROMPTS, classifier=classifier)
    with pytest.raises(ValueError, match=r"alpha = 0.*start sampling below"):
        pictures(tiny, PROMPTS, interval=(0.0, 1.0))


def test_a_sweep_has_a_curve_for_every_way_to_guide_that_fits_its_model():
    made = recipe()
    curves = {model: dict(guidances(made, model, made.stage["sweep"])) for model in ("latent", "ddpm")}
    both = ["plain", "rescaled", "projected", "zero_star", "interval", "thresholded"]
    assert list(curves["latent"]) == [*both, "autoguidance", "classifier"]
    assert list(curves["ddpm"]) == both  # the other path's guides are no use to it
    rows = list(settings_of_sweep(made, made.stage["sweep"]))
    assert len({row.key for row in rows}) == len(rows)
    classified = [row for row in rows if row.curve == "classifier"]
    assert [row.scale for row in classified] == list(made.stage["sweep"].scales)
    assert {row.settings.guidance for row in classified} == {1.0}
    assert not [row for row in rows if row.model == "small"]
