"""A VAE with a learned prior as a stage of a recipe: trained, loaded again, and drawn from."""

import json

import numpy as np
import pytest
import torch

from pipelines.cli import main
from pipelines.config import RecipeError, load_recipe
from pipelines.errors import PalimpsestError
from pipelines.models import load_vae
from pipelines.pipeline import load
from pipelines.runs import open_run
from pipelines.stages import run_stage
from tests.conftest import ROOT, finish
from tokenizer.vae import VAE

pytestmark = pytest.mark.slow
TRAINING = {"steps": 24, "batch": 8, "learning_rate": 3e-3, "compile": False, "bf16": False, "validate_every": 12}
CODEC = {"network": {"kind": "folded", "channels": 16, "encoder_blocks": 1, "decoder_blocks": 1}}
SMALL = {"layers": 2, "channels": 16}
PRIORS = {
    "coupled": {"kind": "realnvp", **SMALL},
    "ordered": {"kind": "autoregressive", **SMALL},
    "behind": {"kind": "realnvp", **SMALL, "detached": True},
}


def vae(prior, **more):
    model = {**CODEC, "variance": "learned", "kl_weight": 1.0, "prior": prior, **more}
    return {"kind": "vae", "model": model, "training": {**TRAINING, "ema": 0.9}}


STAGES = {
    "plain": vae({"kind": "normal"}),
    **{name: vae(prior) for name, prior in PRIORS.items()},
    "weighed": vae(PRIORS["coupled"], variance="none", kl_weight=2e-3, kl_warmup=0.5),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a finished run with a VAE for each prior."""
    out = tmp_path_factory.mktemp("priors")
    recipe = {"name": "tiny", "data": {"kind": "scenes", "size": 16, "count": 40}, "stage": STAGES}
    (out / "tiny.json").write_text(json.dumps({"recipe": recipe}))
    run = open_run(out / "tiny.json", out=out, data=None)
    for name in run.recipe.order():
        run_stage(run, name)
    return out / "tiny"


def lines(folder, name, split):
    rows = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


@pytest.mark.parametrize("name", [*PRIORS, "weighed"])
def test_the_bound_falls_and_the_cost_of_latents_is_logged(folder, name):
    found = lines(folder, name, "validation")
    assert all(0 < line["prior_nats"] < 5 for line in found)
    assert ("bits_per_dim" in found[-1]) == (name != "weighed")
    if name != "weighed":
        assert 0 < found[-1]["bits_per_dim"] < found[0]["bits_per_dim"]
    assert {"kl", "prior_nats", "reconstruction"} <= set(lines(folder, name, "train")[-1])
    assert (folder / name / "pictures" / "prior-000024.png").exists()


def test_a_normal_prior_has_no_cost_of_its_own_to_log(folder):
    assert "prior_nats" not in lines(folder, "plain", "validation")[-1]
    assert not (folder / "plain" / "pictures" / "prior-000024.png").exists()


def test_a_detached_prior_leaves_the_training_of_the_autoencoder_nearly_alone(folder):
    """Only the clipping of the gradient sees both, so the pictures stay as good as those of the plain one."""
    psnr = [lines(folder, name, "validation")[-1]["psnr"] for name in ("plain", "behind")]
    assert psnr[0] == pytest.approx(psnr[1], abs=0.3)


@pytest.mark.parametrize("name", STAGES)
def test_pictures_depend_on_the_seed_and_their_number_alone(folder, name):
    run = load(folder)
    first, more = run.prior(2, seed=3, model=name), run.prior(5, seed=3, model=name)
    assert [picture.size for picture in more] == [(16, 16)] * 5
    for one, other in zip(first, more, strict=False):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1  # a batch of another size may round
    assert np.asarray(first[0]).tolist() != np.asarray(first[1]).tolist()
    assert np.asarray(run.prior(1, seed=4, model=name)[0]).tolist() != np.asarray(first[0]).tolist()


def test_a_prior_is_loaded_with_its_weights(folder):
    model = load_vae(load(folder).run, "ordered")
    assert any(parameter.any() for name, parameter in model.prior.named_parameters() if "last" in name)
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.prior.inverse(model.prior(z)[0]), z, rtol=1e-4, atol=1e-4)


def test_the_command_draws_from_a_prior_and_says_how(folder, tmp_path):
    words = ("sample", "prior", "--run", folder, "--model", "ordered", "--count", "3", "--scale", "2")
    finish(*words, "--out", tmp_path)
    made = sorted(tmp_path.glob("*.png"))
    assert len(made) == 3
    notes = [json.loads(path.with_suffix(".json").read_text()) for path in made]
    assert sorted(note["number"] for note in notes) == [0, 1, 2] and {note["model"] for note in notes} == {"ordered"}


def test_what_has_no_prior_is_refused(folder):
    run = load(folder)
    with pytest.raises(PalimpsestError, match="count is 0, expected at least 1 picture"):
        run.prior(0)
    with pytest.raises(PalimpsestError, match="no stage 'latent'"):
        run.prior(1, model="latent")


def test_a_scale_that_leaves_nothing_is_refused_before_anything_is_drawn(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(VAE, "sample", lambda *_: pytest.fail("it drew"))
    with pytest.raises(PalimpsestError, match="scale is 0, expected at least 1"):
        load(folder).save_prior(1, tmp_path / "out", seed=0, scale=0)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_a_folder_is_one_line_and_exit_code_2(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").write_text("mine")
    words = ["sample", "prior", "--run", str(folder), "--count", "1", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["palimpsest", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err.strip().split("\n")
    assert ended.value.code == 2 and (tmp_path / "out").read_text() == "mine"
    expected = f"palimpsest: {tmp_path / 'out'} is a file where a folder is expected"
    assert len(said) == 1 and said[0].startswith(expected)


def test_a_recipe_with_a_learned_prior_and_free_bits_says_what_to_do():
    path = "stage.vae.model"
    with pytest.raises(RecipeError, match=r"Use 0, or prior\.detached = true"):
        load_recipe(ROOT / "recipes" / "smoke.toml", [f"{path}.prior.kind=realnvp", f"{path}.free_bits=0.1"])
