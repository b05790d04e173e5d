"""What a recipe would train, told without data, memory or training; and what cannot be, refused."""

import copy
import dataclasses
import re
import sys

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import load_file
from torch import nn

from pipelines.artefact import read_manifest
from pipelines.cli import main
from pipelines.config import load_recipe
from pipelines.dry import dry_run, memory
from pipelines.errors import PalimpsestError
from pipelines.optimizer import optimizers_of
from pipelines.runs import reopen_run
from pipelines.sketch import sketch
from pipelines.task import Training
from tests.conftest import ROOT
from tests.tokenizer.test_exchange import LEVELS

LARGE, SMOKE = ROOT / "recipes" / "t2i-256.toml", ROOT / "recipes" / "smoke.toml"


def rows(text: str) -> dict[str, list[str]]:
    """The cells of a table by the name of the stage; every column begins where its head does."""
    lines = text.split("\n\n")[0].split("\n")
    starts = [match.start() for match in re.finditer(r"\S+", lines[0])]
    cut = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines[1:]]
    return {cells[0]: cells for cells in cut}


def count(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_built_and_every_stage_that_trains_has_its_numbers(path):
    recipe = load_recipe(path)
    found = rows(dry_run(recipe))
    assert set(recipe.stage) <= set(found)
    for name, stage in recipe.stage.items():
        trained = getattr(stage, "training", None) is not None
        unknown = path.stem == "shakespeare"  # its characters are those of the text
        assert bool(found[name][2]) == trained
        assert not trained or unknown or (int(found[name][2].replace(",", "")) > 0 and found[name][6][-1] == "B")
        assert found[name][2] == "unknown" if trained and unknown else True
        assert found[name][7] == ", ".join(stage.needs)


def test_the_large_recipe_has_the_networks_that_its_header_names():
    """The f8 VAE has the parameters of diffusers' at the sizes of Stable Diffusion."""
    found = rows(dry_run(load_recipe(LARGE)))
    with torch.device("meta"):
        widths = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
        ends = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        theirs = AutoencoderKL(**widths, **ends)
    assert found["vae"][2] == count(theirs)
    assert found["vae"][5] == "4 x 32 x 32 latents" and found["vqvae"][5] == "16 x 16 codes of 16,384"
    assert found["vae"][4] == "128" and found["vae"][3] == "250,000 steps"
    assert rows(dry_run(load_recipe(LARGE, ["stage.vae.training.accumulate=2"])))["vae"][4] == "128 in 2 parts"
    assert found["latent"][5] == "256 tokens, patch 2"
    assert "vae critic" in found and "256 codes" in found["encode"][5]


@pytest.mark.parametrize("kind", ["mmdit", "dit"])
def test_the_size_of_the_large_recipe_s_latent_model_can_be_set(kind):
    small, large = (
        rows(dry_run(load_recipe(LARGE, [f"stage.latent.model.kind={kind}", f"stage.latent.model.size={size}"])))
        for size in "SL"
    )
    numbers = [int(found["latent"][2].replace(",", "")) for found in (small, large)]
    assert numbers[1] > 5 * numbers[0]


def test_the_networks_have_the_names_and_shapes_of_those_that_a_run_has_trained(smoke):
    """Given the vocabulary that the captions had words for, which is below the recipe's."""
    recipe, compared = reopen_run(smoke).recipe, set()
    vocabulary = read_manifest(smoke / "bpe")["vocab_size"]
    recipe.stage["bpe"] = dataclasses.replace(recipe.stage["bpe"], vocab_size=vocabulary)
    for name in recipe.stage:
        with torch.device("meta"):
            parts = sketch(recipe, name).parts
        for part in parts:
            assert part.network is not None
            files = [smoke / name / file for file in ("open_clip_model.safetensors", "model.safetensors")]
            trained = load_file(next(file for file in files if file.exists()))
            ours = {key: value.shape for key, value in part.network.named_parameters()}
            assert ours == {key: value.shape for key, value in trained.items() if key in ours}, name
            compared.add(name)
    assert compared == {name for name, stage in recipe.stage.items() if getattr(stage, "training", None)}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_memory_is_what_a_network_its_optimiser_and_its_average_hold_after_a_step(optimizer, ema):
    training = Training(steps=1, optimizer=optimizer, ema=ema)
    network = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3, bias=False))
    network[0].weight.requires_grad_(False)
    network(torch.arange(7)).sum().backward()
    held = [network, copy.deepcopy(network)] if ema else [network]
    tensors = [value for module in held for value in (*module.parameters(), *module.buffers())]
    for one in optimizers_of(network, training):
        one.step()
        tensors += [value for state in one.state.values() for value in state.values() if value.numel() > 1]
    assert memory(network, training) == sum(value.numel() * value.element_size() for value in tensors)


def test_pretrained_autoencoders_are_as_large_as_their_folders_say(tmp_path):
    vae, vq = AutoencoderKL(latent_channels=6, **LEVELS), VQModel(latent_channels=4, num_vq_embeddings=40, **LEVELS)
    for name, model in (("kl", vae), ("vq", vq)):
        model.save_config(tmp_path / name)  # no weights: they are not read
    stages = (
        f'[data]\nkind = "scenes"\n[stage.vae]\nkind = "vae"\npretrained = "{tmp_path}/kl"\n'
        f'[stage.vqvae]\nkind = "vqvae"\npretrained = "{tmp_path}/vq"\n'
        '[stage.bpe]\nkind = "bpe"\n[stage.clip]\nkind = "clip"\nneeds = ["bpe"]\ntraining = { steps = 1 }\n'
        '[stage.encode]\nkind = "encode"\nneeds = ["vae", "vqvae", "bpe", "clip"]\n'
        '[stage.latent]\nkind = "latent"\nneeds = ["encode"]\ntraining = { steps = 1 }\n'
    )
    (tmp_path / "mine.toml").write_text(stages)
    found = rows(dry_run(load_recipe(tmp_path / "mine.toml")))
    assert found["vae"][2:4] == [count(vae), "none"] and found["vae"][5] == "6 x 8 x 8 latents"
    assert found["vqvae"][5] == "8 x 8 codes of 40"
    assert found["encode"][5].startswith("6 x 8 x 8 latents, 64 codes")
    (tmp_path / "kl" / "config.json").unlink()
    with pytest.raises(PalimpsestError, match=r"stage.vae cannot be built: .*has no config.json"):
        dry_run(load_recipe(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("path", "sets", "words"),
    [
        (SMOKE, ["stage.latent.model.patch=3"], "stage.latent cannot be built: the latents are 8 x 8.*multiples of 3"),
        (SMOKE, ["stage.ddpm.model.multipliers=[1,1,1,1,1]"], "stage.ddpm cannot be built: .*multiples of 16"),
        (SMOKE, ["stage.vae.training.optimizer=muon"], "stage.vae cannot be built: .*'muon'.*none learns"),
        (SMOKE, ["stage.match.model.patch=5"], "stage.match cannot be built: .*multiples of 5"),
        (LARGE, ["data.size=264"], "stage.vqvae reads pictures of 264 pixels"),
        (LARGE, ["stage.judge.model.patch_size=24"], "stage.judge cannot be built: image_size 256 .* stride 24"),
        (LARGE, ["stage.vae.perceptual.trunk=no.pth", "stage.vae.perceptual.heads=no.pth"],
         "stage.vae cannot be built: perceptual names the file 'no.pth'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_the_stage(path, sets, words):
    with pytest.raises(PalimpsestError, match=words):
        dry_run(load_recipe(path, sets))


def test_the_command_prints_the_table_and_runs_nothing_and_a_broken_recipe_ends_in_two(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["palimpsest", "run", str(SMOKE), "--dry"])
    main()
    assert rows(capsys.readouterr().out)["mdlm"][3] == "60 steps"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--set", "stage.latent.model.patch=3"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "stage.latent cannot be built" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
