"""Pretrained autoencoders as stages of a recipe, trained on from there, and written again for diffusers."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from pipelines.cli import application
from pipelines.errors import PalimpsestError
from pipelines.exchange import export, start_vae
from pipelines.models import load_vae, load_vqvae
from pipelines.runs import open_run
from pipelines.stages import run_stage
from tests.tokenizer.test_exchange import CLOSE, LEVELS, pictures, shaken
from tokenizer.prior import RealNVPConfig
from tokenizer.vae import VAEConfig

TRAINING = {"steps": 3, "batch": 8, "learning_rate": 1e-3, "compile": False, "bf16": False}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with pretrained autoencoders as they are and trained on, and the originals."""
    out = tmp_path_factory.mktemp("pretrained")
    vae = shaken(AutoencoderKL(latent_channels=4, scaling_factor=0.5, shift_factor=0.25, **LEVELS))
    vq = shaken(VQModel(latent_channels=4, vq_embed_dim=6, num_vq_embeddings=16, **LEVELS))
    vae.save_pretrained(out / "kl")
    vq.save_pretrained(out / "vq")
    stages = {
        "vae": {"kind": "vae", "pretrained": str(out / "kl")},
        "vqvae": {"kind": "vqvae", "pretrained": str(out / "vq")},
        "further": {"kind": "vae", "pretrained": str(out / "kl"), "training": TRAINING},
        "further_vq": {"kind": "vqvae", "pretrained": str(out / "vq"), "training": TRAINING},
        "bpe": {"kind": "bpe", "vocab_size": 300},
    }
    recipe = {"name": "tiny", "data": {"kind": "scenes", "size": 16, "count": 40}, "stage": stages}
    (out / "tiny.json").write_text(json.dumps({"recipe": recipe}))
    run = open_run(out / "tiny.json", out=out, data=None)
    for name in stages:
        run_stage(run, name)
    return run, vae, vq


@torch.no_grad()
def test_a_pretrained_vae_is_stage_one_with_its_scaling_in_the_manifest(made):
    run, theirs, _ = made
    ours, manifest, x = load_vae(run, "vae"), run.manifest("vae"), pictures()
    torch.testing.assert_close(ours.encode(x).mean, theirs.encode(x).latent_dist.mean, **CLOSE)
    assert manifest["latent_mean"] == [0.25] * 4 and manifest["latent_std"] == [2.0] * 4
    assert manifest["downsample"] == 4 and manifest["pretrained"].endswith("kl")


@torch.no_grad()
def test_a_pretrained_codebook_is_used_as_it_is(made):
    run, _, theirs = made
    ours, x = load_vqvae(run, "vqvae"), pictures()
    torch.testing.assert_close(ours.decode_codes(ours.codes(x), 16, 24), theirs(x).sample, **CLOSE)


@torch.no_grad()
def test_training_goes_on_from_the_pretrained_weights_and_measures_its_own_scaling(made):
    run, _, _ = made
    for before, after, load in (("vae", "further", load_vae), ("vqvae", "further_vq", load_vqvae)):
        old, new = load(run, before).state_dict(), load(run, after).state_dict()
        apart = [float((old[name].float() - new[name].float()).abs().max()) for name in old if "weight" in name]
        assert 0 < max(apart) < 0.02, (before, max(apart))  # three steps of AdamW, and no new start
        assert run.manifest(after)["steps"] == 3
    assert run.manifest("further")["latent_std"] != run.manifest("vae")["latent_std"]
    book = load_vqvae(run, "further_vq").quantizer.codebook - load_vqvae(run, "vqvae").quantizer.codebook
    assert 0 < book.abs().max() < 0.02  # k-means did not put it elsewhere


def test_a_prior_that_the_folder_has_not_starts_as_a_function_of_the_seed_alone(made):
    run, _, _ = made
    stage = dataclasses.replace(run.recipe.stage["further"], model=VAEConfig(prior=RealNVPConfig(layers=2, channels=8)))
    before, found = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        model, _ = start_vae(stage, seed) or (None, None)
        found.append(model.prior.steps[1].conditioner.first.weight)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_an_exported_stage_is_what_diffusers_reads(made, tmp_path):
    run, _, _ = made
    x = pictures()
    said = export(run, "further", tmp_path / "kl")
    assert "AutoencoderKL.from_pretrained" in said
    theirs = AutoencoderKL.from_pretrained(tmp_path / "kl").eval()
    torch.testing.assert_close(theirs.encode(x).latent_dist.mean, load_vae(run, "further").encode(x).mean, **CLOSE)
    scaled = [std / theirs.config.scaling_factor for std in theirs.config.latents_std]
    assert scaled == pytest.approx(run.manifest("further")["latent_std"])
    application().cli(args=["export", str(run.folder), "further_vq", str(tmp_path / "vq")])
    model = load_vqvae(run, "further_vq")
    torch.testing.assert_close(
        VQModel.from_pretrained(tmp_path / "vq").eval()(x).sample, model.decode_codes(model.codes(x), 16, 24), **CLOSE
    )


def test_a_stage_is_not_the_same_once_its_folder_holds_other_weights(made):
    run, _, _ = made
    folder = Path(run.recipe.stage["vae"].pretrained)
    assert run.finished("vae")
    kept = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
    try:
        other = shaken(AutoencoderKL(latent_channels=4, **LEVELS))
        other.decoder.conv_out.bias.data += 1
        other.save_pretrained(folder.parent / "other")
        other_weights = (folder.parent / "other" / "diffusion_pytorch_model.safetensors").read_bytes()
        (folder / "diffusion_pytorch_model.safetensors").write_bytes(other_weights)
        with pytest.raises(PalimpsestError, match=r"does not match the recipe: files\..*safetensors was"):
            run.finished("vae")
    finally:
        (folder / "diffusion_pytorch_model.safetensors").write_bytes(kept)
    assert run.finished("vae")


def test_what_cannot_be_exported_is_said(made, tmp_path):
    run, _, _ = made
    with pytest.raises(PalimpsestError, match="'bpe' is of kind 'bpe', expected vae or vqvae"):
        export(run, "bpe", tmp_path / "bpe")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(PalimpsestError, match="not empty"):
        export(run, "vae", tmp_path / "full")


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"kind": "vae"}, "needs .training., pretrained = FOLDER, or both"),
        ({"kind": "vae", "pretrained": "x", "model": {"latent_channels": 8}}, "come from `pretrained`: leave them out"),
        ({"kind": "vqvae", "pretrained": "x", "model": {"quantizer": {"kind": "fsq"}}}, "come from `pretrained`"),
        ({"kind": "vqvae", "pretrained": "x", "model": {"top": {}}}, "and top come from `pretrained`"),
        ({"kind": "vqvae", "pretrained": "x", "model": {"unquantised": 0.2}}, "codebook comes from `pretrained`"),
        ({"kind": "vqvae", "pretrained": "x", "revive_until": 0.5}, "revive_until do nothing without"),
        ({"kind": "vqvae", "pretrained": "x", "flip": True}, "flip = true does nothing without .training."),
        ({"kind": "vae", "pretrained": "x", "model": {"variance": "learned"}}, "does nothing without .training."),
        ({"kind": "vqvae", "revive_until": -3.0, "training": TRAINING}, "revive_until is -3.0, expected a share"),
    ],
)
def test_a_stage_says_where_its_networks_come_from_once(tmp_path, stage, words):
    recipe = {"name": "tiny", "data": {"kind": "scenes", "size": 16, "count": 40}, "stage": {"codec": stage}}
    (tmp_path / "tiny.json").write_text(json.dumps({"recipe": recipe}))
    with pytest.raises(PalimpsestError, match=words):
        open_run(tmp_path / "tiny.json", out=tmp_path, data=None)
