"""Autoencoders that train on pictures in buckets: resumed as uninterrupted, remembered, planned, refused elsewhere."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipelines.artefact import ArtefactError
from pipelines.codebooks import check_start
from pipelines.config import RecipeError, parse_recipe
from pipelines.errors import PalimpsestError
from pipelines.loop import Interrupted, Loop
from pipelines.passes import players_of
from pipelines.runs import open_run
from pipelines.stage_one import VAETask, VQVAETask
from pipelines.stages import run_stage
from tokenizer.quantize import VQConfig
from tokenizer.vqvae import VQVAEConfig

from .data.conftest import tar
from .data.test_buckets import pictures
from .test_upscale import CODEC, STAGES, TRAINING

SIZES = ["16x16", "24x12", "12x24"]
LONGER = {**TRAINING, "steps": 12, "ema": 0.9, "save_seconds": 1e-9}
CRITIC = {"start": 0.3, "critic": {"channels": 8, "layers": 1}}
CODES = {**CODEC, "initial_vectors": 200, "quantizer": {"codes": 16}, "unquantised": 0.3, "revive_every": 2}
SHOWN = {
    "vae": {"kind": "vae", "model": CODEC, "training": LONGER, "adversarial": CRITIC},
    "vqvae": {"kind": "vqvae", "model": CODES, "training": LONGER, "flip": True},
}
TASKS = {"vae": VAETask, "vqvae": VQVAETask}


def recipe_of(buckets, stages=SHOWN, **data):
    return {"name": "bucketed", "data": {"kind": "shards", "size": 16, "buckets": buckets, **data}, "stage": stages}


@pytest.fixture
def folder(tmp_path):
    tar(tmp_path / "data" / "train.tar", pictures(square=30, tall=11, wide=20))
    tar(tmp_path / "data" / "test.tar", pictures(square=3, tall=2, wide=3))
    return tmp_path


def run_of(folder, buckets, out="runs"):
    path = folder / "bucketed.json"
    path.write_text(json.dumps({"recipe": recipe_of(buckets)}))
    return open_run(path, out=folder / out, data=folder / "data")


def trained(run, name, stop_at=None):
    """Train a stage, to its end or to a step; returns the shapes of its batches."""
    task, shapes = TASKS[name](run, name, run.recipe.stage[name]), []
    loop = Loop(task, run.recipe.stage[name].training, run.stage_folder(name), seed=0, name=name)
    inner = task.loss

    def loss(network, batch, generator):
        shapes.append(tuple(batch["image"].shape[-2:]))
        loop.stop = loop.state.step == stop_at
        return inner(network, batch, generator)

    task.loss = loss
    loop.run()
    return shapes


@pytest.mark.parametrize("name", ["vae", "vqvae"])
def test_a_resumed_training_in_buckets_ends_with_the_bits_of_an_uninterrupted_one(folder, name):
    whole, parts = run_of(folder, {"sizes": SIZES}), run_of(folder, {"sizes": SIZES}, out="parts")
    shapes = trained(whole, name)
    assert set(shapes) == {(16, 16), (24, 12), (12, 24)} and len(shapes) == 12
    with pytest.raises(Interrupted):
        trained(parts, name, stop_at=5)
    assert trained(parts, name) == shapes[6:]
    for file in ("model.safetensors", "ema.safetensors"):
        found, wanted = (load_file(run.stage_folder(name) / file) for run in (parts, whole))
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_stage_remembers_its_buckets_and_only_where_there_are_some(folder):
    run = run_of(folder, {"sizes": SIZES})
    assert run.settings("vae")["buckets"] == ["24x12", "16x16", "12x24"]
    run.begin("vae")
    with pytest.raises(ArtefactError, match=r"buckets was .* and is now \['16x16', '12x24'\]"):
        run_of(folder, {"sizes": SIZES[::2]})
    assert "buckets" not in run_of(folder, None, out="squares").settings("vae")


@pytest.mark.slow
def test_a_stage_in_buckets_finishes_with_figures_of_squares(folder):
    run = run_of(folder, {"pixels": 256, "multiple": 4})
    manifest = run_stage(run, "vae")
    assert len(manifest["latent_mean"]) == run.recipe.stage["vae"].model.latent_channels
    assert (run.stage_folder("vae") / "pictures").is_dir()


def test_a_plan_takes_the_bucket_of_most_pixels():
    recipe = parse_recipe(recipe_of({"sizes": [*SIZES, "28x16"]}), "planned")
    (player, critic) = players_of(recipe, "vae")
    assert player.run.shape == (28, 16) == recipe.largest and critic is not None
    assert parse_recipe(recipe_of(None), "squares").largest == (16, 16)


@pytest.mark.parametrize(
    ("buckets", "stages", "words"),
    [
        ({"sizes": ["16x18"]}, SHOWN, r"data.buckets has 16x18, but stage.vae needs sides that are multiples of 4"),
        ({"sizes": ["16x16", "32x4"]}, SHOWN, r"the shorter side of data.buckets, 32x4, is 4, but the critic of stage"),
        ({"sizes": ["16 by 16"]}, SHOWN, r"data.buckets.*'16 by 16', expected"),
        ({"pixel": 256}, SHOWN, r"unknown key data.buckets.pixel; did you mean 'pixels'"),
        ({"sizes": SIZES}, {"bpe": STAGES["bpe"]}, r"vae and vqvae that train, and of kind encode, and there is none"),
    ],
)
def test_buckets_that_cannot_be_used_are_refused_in_a_sentence(buckets, stages, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe(recipe_of(buckets, stages), "wrong")


def test_a_codebook_starts_from_what_the_smallest_bucket_has():
    config = VQVAEConfig(quantizer=VQConfig(codes=16), initial_vectors=64)
    with pytest.raises(PalimpsestError, match=r"1 training pictures of 24x8 pixels have 12 vectors"):
        check_start(config, 1, 24, 8)
