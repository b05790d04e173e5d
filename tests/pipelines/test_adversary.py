"""Autoencoders against a critic: every form trains, gradients stay apart, micro-batches add up, resume is exact."""

import dataclasses
import json

import pytest
import torch

from pipelines.adversary import AdversarialConfig
from pipelines.errors import PalimpsestError
from pipelines.hardware import step_generator
from pipelines.loop import Interrupted, Loop
from pipelines.runs import open_run
from pipelines.stage_one import VAETask, VQVAETask
from pipelines.stages import run_stage
from tokenizer.discriminator import CriticConfig

TRAINING = {"steps": 8, "batch": 8, "learning_rate": 1e-3, "compile": False, "bf16": False, "validate_every": 4}
NETWORK = {"channels": 16, "encoder_blocks": 1, "decoder_blocks": 1}
CRITICS = {
    "hinge": {"kind": "hinge", "lecam": 0.01},
    "spectral": {"kind": "hinge", "spectral": True},
    "non_saturating": {"kind": "non_saturating", "penalty": 1.0},
    "wasserstein": {"kind": "wasserstein"},
}
SMALL = {"channels": 8, "layers": 1}
PLAYERS = [("vae", VAETask), ("vqvae", VQVAETask)]


def adversarial(critic):
    return {"start": 0.5, "critic": {**SMALL, **critic}}


STAGES = {
    "bpe": {"kind": "bpe", "vocab_size": 300},
    "clip": {
        "kind": "clip",
        "needs": ["bpe"],
        "model": {"width": 32, "text_width": 32, "layers": 2, "text_layers": 1, "embed_dim": 16},
        "training": TRAINING,
    },
    **{
        f"{kind}_{name}": {
            "kind": kind,
            "needs": ["clip"],
            "model": {"network": NETWORK, **({} if kind == "vae" else {"initial_vectors": 256})},
            "training": TRAINING,
            "perceptual": {"weight": 0.5},
            "adversarial": adversarial(critic),
        }
        for kind in ("vae", "vqvae")
        for name, critic in CRITICS.items()
    },
}
STAGES = {
    name: {**stage, "model": {**stage["model"], "quantizer": {"kind": "vq", "codes": 16, "dim": 4}}}
    if stage["kind"] == "vqvae"
    else stage
    for name, stage in STAGES.items()
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of scenes whose towers are trained."""
    out = tmp_path_factory.mktemp("duel")
    recipe = {"name": "tiny", "data": {"kind": "scenes", "size": 16, "count": 40}, "stage": STAGES}
    (out / "tiny.json").write_text(json.dumps({"recipe": recipe}))
    run = open_run(out / "tiny.json", out=out, data=None)
    for name in ("bpe", "clip"):
        run_stage(run, name)
    return run


def task_of(run, kind, make, **changes):
    """The task of a stage, its critic from the first step on unless told otherwise."""
    stage = run.recipe.stage[f"{kind}_hinge"]
    settings = {"start": 0.0, **changes}
    config = dataclasses.replace(stage.adversarial, **settings)
    training = dataclasses.replace(stage.training, clip=1e9)
    model = dataclasses.replace(stage.model, unquantised=0.0) if kind == "vqvae" else stage.model
    return make(run, f"{kind}_hinge", dataclasses.replace(stage, adversarial=config, training=training, model=model))


def values(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("kind", ["vae", "vqvae"])
def test_every_form_of_critic_trains_with_every_autoencoder(run, kind, critic):
    name = f"{kind}_{critic}"
    assert run_stage(run, name)["steps"] == 8
    lines = [json.loads(line) for line in (run.stage_folder(name) / "log.jsonl").read_text().splitlines()]
    (last,) = (line for line in lines if line["split"] == "train" and line["step"] == 8)
    assert {"perceptual", "adversarial", "adversarial_weight", "critic_total", "rival_gradient_norm"} <= last.keys()
    assert last["adversarial_weight"] > 0 and last["rival_gradient_norm"] > 0
    assert (last["critic_penalty"] > 0) == (critic in ("non_saturating", "wasserstein"))
    assert (last["critic_lecam"] > 0) == (critic == "hinge")
    (shown,) = (line for line in lines if line["split"] == "validation" and line["step"] == 8)
    assert shown["perceptual"] > 0 and shown["psnr"] > 5


@pytest.mark.parametrize(("kind", "make"), PLAYERS)
def test_the_gradients_of_the_two_players_never_mix(run, tmp_path, kind, make):
    """With either loss taken away the other player's gradients stay the same, parameter by parameter."""
    found = {}
    for name in ("both", "autoencoder", "critic"):
        task = task_of(run, kind, make, adaptive=False)
        stage = dataclasses.replace(task.stage.training, steps=1)
        if name == "autoencoder":
            loss = task.rival_loss
            task.rival_loss = lambda rival, generator, loss=loss: (0 * loss(rival, generator)[0], {})
        if name == "critic":
            loss = task.loss
            task.loss = lambda network, batch, generator, loss=loss: (0 * loss(network, batch, generator)[0], {})
        Loop(task, stage, tmp_path / name, seed=0, name=name).run()
        found[name] = [
            {key: value.grad.clone() for key, value in player.named_parameters() if value.grad is not None}
            for player in (task.network, task.rival)
        ]
    for player, alone in ((0, "autoencoder"), (1, "critic")):
        both, single = found["both"][player], found[alone][player]
        assert both.keys() == single.keys() and any(value.any() for value in both.values())
        assert all(torch.equal(both[key], single[key]) for key in both)
    assert not any(value.any() for value in found["critic"][0].values())
    assert not any(value.any() for value in found["autoencoder"][1].values())


def test_the_adversarial_term_reaches_the_autoencoder(run):
    task = task_of(run, "vae", VAETask, adaptive=False)
    batch, _ = next(task.batches(0, 0, 1))
    gradients = []
    for playing in (False, True):
        task.playing = playing
        task.network.zero_grad()
        task.loss(task.network, batch, step_generator(0, 0, 0))[0].backward()
        gradients.append(next(task.model().decoder.parameters()).grad.clone())
    assert not torch.allclose(*gradients)
    assert all(parameter.grad is None for parameter in task.rival.parameters())


@pytest.mark.parametrize(("kind", "make"), PLAYERS)
def test_steps_of_micro_batches_are_steps_of_whole_batches_for_both_players(run, tmp_path, kind, make):
    """With the adaptive weight, LeCam's averages and spectral vectors, all of which move once a step."""
    ends = []
    for count in (1, 2):
        task = task_of(run, kind, make, critic=CriticConfig(**SMALL, spectral=True, lecam=0.1, lecam_decay=0.5))
        training = dataclasses.replace(task.stage.training, steps=4, accumulate=count)
        Loop(task, training, tmp_path / str(count), seed=0, name=kind).run()
        ends.append((values(task.network), values(task.rival)))
    for whole, parts in zip(*ends, strict=True):
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, atol=2e-4, rtol=1e-3)
    assert ends[0][1]["adaptive"] > 0


def test_an_interrupted_duel_goes_on_exactly(run, tmp_path):
    def trained(folder, stop_at=None):
        task = task_of(run, "vqvae", VQVAETask, start=0.3)
        loop = Loop(task, task.stage.training, folder, seed=0, name="vqvae")
        if stop_at is not None:
            before = task.before

            def stopping(step, *rest):
                loop.stop = loop.stop or step == stop_at
                return before(step, *rest)

            task.before = stopping
        loop.run()
        return task

    whole = trained(tmp_path / "whole")
    for stop_at in (1, 4):
        with pytest.raises(Interrupted):
            trained(tmp_path / "parts", stop_at)
    parts = trained(tmp_path / "parts")
    for player in ("network", "rival"):
        first, second = values(getattr(whole, player)), values(getattr(parts, player))
        assert all(torch.equal(value, second[name]) for name, value in first.items()), player


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage.vae_hinge.adversarial.start": 1.0}, "start is 1.0, expected a share .*after the last step"),
        ({"stage.vae_hinge.adversarial.critic.layers": 3}, "critic of stage.vae_hinge needs 24 pixels.*critic.layers"),
        ({"stage.vae_hinge.model.network.factor": 5}, "vae_hinge .* multiples of 5: write data.size = 15"),
        ({"stage.vae_hinge.needs": []}, "perceptual has no files and no tower"),
        ({"stage.vae_hinge.adversarial.betas": [0.5, 1.0]}, r"adversarial.betas = \[0.5, 1.0\], expected two decays"),
        ({"stage.vae_hinge.training.betas": [-0.1, 0.9]}, r"training.betas = \[-0.1, 0.9\], expected two decays"),
        ({"stage.vae_hinge.training.warmup": -5}, "training.warmup = -5, expected 0"),
        ({"stage.vae_hinge.training.weight_decay": -0.1}, "training.weight_decay = -0.1, expected 0"),
        ({"stage.vae_hinge.model.prior": {"kind": "autoregressive", "channels": 3}},
         "prior.channels is 3, expected at least the 4 channels of the latents. Try 32"),
        ({"stage.vae_hinge.perceptual": {"trunk": "a.pth", "heads": "b.pth", "net": "alex"}},
         "data.size is 16, but LPIPS of stage.vae_hinge needs 31 pixels with net = 'alex'"),
        ({"stage.vae_hinge.training": None, "stage.vae_hinge.pretrained": "x", "stage.vae_hinge.model": {}},
         "perceptual. does nothing without .training"),
    ],
)  # fmt: skip
def test_what_cannot_play_is_refused_when_the_recipe_is_read(run, tmp_path, changes, words):
    recipe = json.loads(json.dumps({"name": "tiny", "data": {"kind": "scenes", "size": 16}, "stage": STAGES}))
    for path, value in changes.items():
        *tables, last = path.split(".")
        table = recipe
        for part in tables:
            table = table[part]
        table[last] = value
    (tmp_path / "tiny.json").write_text(json.dumps({"recipe": recipe}))
    with pytest.raises(PalimpsestError, match=words):
        open_run(tmp_path / "tiny.json", out=tmp_path, data=None)


@pytest.mark.parametrize("change", [{"weight": 0.0}, {"start": -0.1}, {"learning_rate": 0.0}])
def test_settings_of_a_critic_out_of_range_are_named_with_a_remedy(change):
    (name,) = change
    with pytest.raises(ValueError, match=rf"{name} is .*expected .*\. (Use|Leave)"):
        AdversarialConfig(**change)
