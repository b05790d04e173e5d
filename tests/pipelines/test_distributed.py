"""Two processes (gloo, on the CPU) train a stage as one process does: the same samples, the mean of both gradients."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.runs import reopen_run
from tests.conftest import ROOT, finish

pytestmark = pytest.mark.slow
TINY = """
[data]
kind = "scenes"
size = 16
count = 40
[stage.codes]
kind = "vqvae"
model = { network = { channels = 16, encoder_blocks = 1, decoder_blocks = 1 }, quantizer = { kind = "lfq", bits = 4 } }
training = { minutes = 0.02, batch = 8, compile = false, bf16 = false }
[stage.levels]
kind = "vqvae"
training = { steps = 8, batch = 8, accumulate = 2, compile = false, bf16 = false, ema = 0.9 }
[stage.levels.model]
network = { channels = 16, encoder_blocks = 1, decoder_blocks = 1 }
quantizer = { codes = 16 }
top = { channels = 16, blocks = 1, quantizer = { codes = 8 } }
initial_vectors = 160
unquantised = 0.3
revive_every = 2
[stage.levels.adversarial]
start = 0.5
critic = { channels = 8, layers = 1, spectral = true, lecam = 0.1 }
[stage.latents]
kind = "vae"
training = { steps = 6, batch = 8, accumulate = 2, compile = false, bf16 = false }
[stage.latents.model]
network = { channels = 16, encoder_blocks = 1, decoder_blocks = 1 }
variance = "learned"
prior = { kind = "realnvp", layers = 2, channels = 8 }
[stage.latents.adversarial]
start = 0.0
critic = { channels = 8, layers = 1, kind = "wasserstein" }
"""
ALMOST_UNQUANTISED = ("stage.vqvae.training.steps=12", "stage.vqvae.model.unquantised=0.99")
CRITIC = ("stage.vqvae.adversarial.start=0.3", "stage.vqvae.adversarial.critic={channels=8, layers=1, lecam=0.1}")


def on_two_ranks(*words: str | Path, of: str = "pipelines.cli") -> str:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", of, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_processes_take_the_steps_of_one(smoke, tmp_path):
    data = reopen_run(smoke).data
    weights = {}
    for name, command in (("one", finish), ("two", on_two_ranks), ("other", finish)):
        sets = (*ALMOST_UNQUANTISED, *CRITIC, *(("stage.vqvae.training.batch=8",) if name == "other" else ()))
        command(
            "train", "vqvae", ROOT / "recipes" / "smoke.toml", "--out", tmp_path / name, "--data", data, "--set", *sets
        )
        folder = tmp_path / name / "smoke" / "vqvae"
        assert json.loads((folder / "manifest.json").read_text())["steps"] == 12
        state = load_file(folder / "model.safetensors")
        weights[name] = torch.cat([v.flatten() for k, v in sorted(state.items()) if k.startswith("encoder")])
    apart = (weights["one"] - weights["two"]).norm()
    assert apart < 0.1 * (weights["one"] - weights["other"]).norm()  # half the batch goes elsewhere


def test_two_processes_finish_a_stage_with_noise_and_averages(smoke, tmp_path):
    folder = tmp_path / "smoke"
    folder.mkdir()
    for stage in ("bpe", "vae", "vqvae", "clip", "encode", "cache", "recipe.json"):
        (folder / stage).symlink_to(smoke / stage)
    on_two_ranks("train", "latent", smoke / "recipe.json", "--out", tmp_path, "--data", reopen_run(smoke).data,
                 "--set", "stage.latent.training.steps=10", "stage.latent.training.keep_every=5")  # fmt: skip
    manifest = json.loads((folder / "latent" / "manifest.json").read_text())
    assert [path.name for path in sorted((folder / "latent" / "checkpoints").iterdir())] == ["000005", "000010"]
    assert manifest["steps"] == 10 and {"model.safetensors", "ema.safetensors"} <= manifest["files"].keys()
    assert all(v.isfinite().all() for v in load_file(folder / "latent" / "ema.safetensors").values())


def test_one_process_times_steps_whose_loss_is_about_the_batches_of_both(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    on_two_ranks("train", "codes", tmp_path / "tiny.toml", "--out", tmp_path)
    manifest = json.loads((tmp_path / "tiny" / "codes" / "manifest.json").read_text())
    assert manifest["steps"] > 0 and manifest["skipped_steps"] == 0


@pytest.mark.parametrize("name", ["levels", "latents"])
def test_two_processes_train_two_players_over_micro_batches(tmp_path, name):
    """Levels of codes that start, revive and settle, penalties and a learned prior, each with a critic."""
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    on_two_ranks("train", name, tmp_path / "tiny.toml", "--out", tmp_path)
    folder = tmp_path / "tiny" / name
    assert json.loads((folder / "manifest.json").read_text())["skipped_steps"] == 0
    assert all(value.isfinite().all() for value in load_file(folder / "model.safetensors").values())
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    (last,) = (line for line in lines if line["split"] == "train")
    assert last["rival_gradient_norm"] > 0 and last["adversarial_weight"] > 0
