"""An autoregressive model of pictures as a stage: trained, interrupted, sampled, priced in the report, refused."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines.ar_sampler import ArSampler
from pipelines.ar_stage import ArTask
from pipelines.cache import open_cache
from pipelines.config import RecipeError, parse_recipe
from pipelines.errors import PalimpsestError
from pipelines.loop import Interrupted, Loop
from pipelines.pipeline import load
from pipelines.prior_cost import pair_cost
from pipelines.runs import open_run, reopen_run
from pipelines.sampling import generators
from pipelines.stages import run_stage
from tests.conftest import finish

pytestmark = pytest.mark.slow
PROMPTS = ["a red star on a sky background", "a blue circle on a black background", "a red star on a sky background"]
TRAINING = {"steps": 4, "batch": 8, "compile": False, "bf16": False}
TOWERS = {"width": 32, "text_width": 32, "layers": 1, "text_layers": 1, "embed_dim": 16}
CODEC = {"network": {"channels": 16, "encoder_blocks": 1, "decoder_blocks": 1}}
RESIDUAL = {"kind": "residual", "depth": 2, "level": {"codes": 12, "dim": 4}}
STAGES = {
    "bpe": {"kind": "bpe", "vocab_size": 300},
    "vae": {"kind": "vae", "model": CODEC, "training": TRAINING},
    "vqvae": {
        "kind": "vqvae",
        "model": {**CODEC, "initial_vectors": 256, "quantizer": RESIDUAL},
        "training": {**TRAINING, "steps": 12},
    },
    "clip": {"kind": "clip", "needs": ["bpe"], "model": TOWERS, "training": TRAINING},
    "encode": {"kind": "encode", "needs": ["vae", "vqvae", "bpe", "clip"]},
    "ar": {
        "kind": "ar",
        "needs": ["encode"],
        "model": {"dim": 32, "layers": 2, "heads": 2},
        "training": {**TRAINING, "steps": 12, "ema": 0.8, "validate_every": 3, "keep": "best", "learning_rate": 3e-3},
    },
    "pictures": {"kind": "generate", "needs": ["ar"], "count": 4, "unseen": 0, "masked": {"top_p": 0.95}},
    "eval": {"kind": "eval", "needs": ["pictures"], "reconstructions": 8},
}
DATA = {"kind": "scenes", "size": 16, "count": 80}


def recipe(**changes):
    """The recipe with some values of its stages changed: ar__caption_dropout=0.0."""
    stages = json.loads(json.dumps(STAGES))
    for key, value in changes.items():
        stage, name = key.split("__")
        stages[stage][name] = value
    return parse_recipe({"name": "tiny", "data": DATA, "stage": stages}, "tiny")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run whose pictures have two grids of codes."""
    out = tmp_path_factory.mktemp("ar")
    (out / "tiny.json").write_text(json.dumps({"recipe": {"name": "tiny", "data": DATA, "stage": STAGES}}))
    opened = open_run(out / "tiny.json", out=out, data=None)
    for name in opened.recipe.order():
        run_stage(opened, name)
    return opened


def validated(run):
    lines = [json.loads(line) for line in (run.stage_folder("ar") / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["split"] == "validation"}


def test_the_weights_that_are_kept_are_those_whose_codes_cost_least(run):
    found, manifest = validated(run), run.manifest("ar")
    assert list(found) == [3, 6, 9, 12]
    best = min(found, key=lambda step: found[step]["image_nats_per_token"])
    assert (manifest["chosen_step"], manifest["chosen_by"]) == (best, "image_nats_per_token")
    assert found[12]["image_nats_per_token"] < math.log(24) < 1.5 * found[3]["image_nats_per_token"]
    sampler, task = ArSampler.load(run, "ar"), ArTask(run, "ar", run.recipe.stage["ar"])
    again = task.validate(sampler.network)
    assert {key: pytest.approx(value, rel=1e-4) for key, value in again.items()}.items() <= found[best].items()
    assert again["image_nats_per_token"] != again["image_nats_per_token_alone"]
    assert list((run.stage_folder("ar") / "pictures").glob("samples-*.png"))


def test_the_interrupted_training_equals_the_uninterrupted_one(run, tmp_path):
    class Stopped(ArTask):
        stop_at = None

        def loss(self, network, batch, generator):
            if self.loop.state.step == self.stop_at:
                self.loop.stop = True
            return super().loss(network, batch, generator)

    def train(stop_at=None):
        stage = run.recipe.stage["ar"]
        task = Stopped(run, "ar", stage)
        task.stop_at = stop_at
        task.loop = Loop(task, stage.training, tmp_path, seed=run.recipe.seed + 1, name="ar")
        return task.loop.run()

    for stop_at in (2, 7):
        with pytest.raises(Interrupted):
            train(stop_at)
    assert train()["steps"] == 12
    for name in ("model.safetensors", "ema.safetensors"):
        made, kept = load_file(tmp_path / name), load_file(run.stage_folder("ar") / name)
        assert made.keys() == kept.keys() and all(torch.equal(made[key], kept[key]) for key in made), name


def test_the_command_draws_what_the_python_door_draws_whatever_the_batch(run, tmp_path):
    pipeline = load(run.folder)
    together = pipeline.sample(PROMPTS, seed=3)  # the only model of pictures is the one by default
    alone = pipeline.sample(PROMPTS[:1], seed=3, model="ar")[0]
    assert [image.size for image in together] == [(16, 16)] * 3
    assert together[0].tobytes() == alone.tobytes() != together[2].tobytes()  # equal prompts have draws of their own
    finish("sample", "image", PROMPTS[0], "--run", run.folder, "--seed", "3", "--scale", "1", "--out", tmp_path)
    (path,) = tmp_path.glob("*.json")
    made = json.loads(path.read_text())
    assert (made["sampler"], made["guidance"], made["masked"]["top_p"]) == ("autoregressive", 2.0, 0.95)
    assert path.with_suffix(".png").exists()


def test_guidance_and_sharpening_act_and_nearly_greedy_draws_heed_no_seed(run):
    pipeline = load(run.folder)

    def drawn(**changes):
        return [image.tobytes() for image in pipeline.sample(PROMPTS, **{"seed": 1, "top_p": 1.0, **changes})]

    assert drawn() != drawn(guidance=6.0) and drawn() != drawn(temperature=0.5) and drawn() != drawn(top_k=2)
    assert drawn(top_k=1) == drawn(top_k=1, seed=2) == drawn(temperature=1e-6, seed=5)


def test_the_report_prices_held_out_pairs_exactly(run):
    figures = json.loads((run.stage_folder("eval") / "report.json").read_text())["figures"]
    image, bits, pair, text = (
        figures[f"ar.{name}"]
        for name in ("image_nats_per_token", "code_bits_per_dim", "pair_nats", "text_nats_per_token")
    )
    assert all(one["n"] == 8 and one["low"] < one["value"] < one["high"] for one in (image, bits, pair, text))
    assert bits["value"] == pytest.approx(32 * image["value"] / math.log(2) / (3 * 16 * 16))
    sampler, cache = ArSampler.load(run, "ar"), open_cache(run, "ar")
    batch = cache.batch("test", 8)
    x = sampler.vocabulary.layout.join(batch["text"], batch["codes"].long())
    cost = pair_cost(sampler.network, x, sampler.vocabulary.bpe.pad_id)
    words = np.array([len(caption.split()) for caption in batch["caption"]])
    assert (cost.tokens.numpy() > words).all()  # the end is a token, padding is none
    assert image["value"] == pytest.approx(cost.image_per_token)
    assert text["value"] == pytest.approx(cost.text_per_token)
    assert pair["value"] == pytest.approx(float((cost.text + cost.image).mean()))
    page = (run.stage_folder("eval") / "report.html").read_text()
    assert "autoregressive, guidance 2, seed 0" in page and "codes given its caption under" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 12}, "steps: no use to ar, which draws one code after the other"),
        ({"eta": 0.1}, "eta: no use to ar"),
        ({"caption_guidance": 3.0}, "caption_guidance: no use to ar"),
        ({"sampler": "confidence"}, "by the sampler 'autoregressive' alone, not by 'confidence'"),
        ({"rule": "projected"}, "rule: an autoregressive model knows no such thing"),
        ({"interval": (0.2, 0.8)}, "interval: no use to ar"),
    ],
)
def test_what_would_not_be_heeded_is_refused_at_the_door(run, changes, message):
    with pytest.raises(PalimpsestError, match=message):
        load(run.folder).sample(PROMPTS[:1], **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures__steps": 12}, "stage.pictures: steps: no use to the sampler 'autoregressive'"),
        ({"pictures__caption_guidance": 3.0}, "stage.pictures: caption_guidance: no use"),
        ({"pictures__masked": {"block": 4}}, "stage.pictures: block: no use"),
        ({"pictures__latent": {"rule": "projected"}}, "options of latent models, but its model is an autoregressive"),
        ({"pictures__sampler": "confidence"}, "'confidence', which its model cannot use; it can use autoregressive"),
        ({"ar__caption_dropout": 0.0, "pictures__guidance": 2.0}, "stage.pictures: guidance 2 needs an unconditional"),
        ({"ar__caption_dropout": 1.0}, "caption_dropout is 1.0, expected a share below 1"),
        ({"ar__text_weight": -1.0}, "text_weight is -1.0, expected 0"),
        ({"ar__needs": ["bpe"]}, r"stage.ar \(ar\) needs a stage of kind 'encode'"),
    ],
)
def test_a_wrong_recipe_says_what_and_how(changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe(**changes)


def test_a_model_without_a_null_branch_is_drawn_without_guidance_and_refuses_it(run):
    assert recipe(ar__caption_dropout=0.0).settings_for("ar").guidance == 1.0
    assert recipe().settings_for("ar").guidance == 2.0
    bare = dataclasses.replace(load(run.folder).run, recipe=recipe(ar__caption_dropout=0.0))
    with pytest.raises(PalimpsestError, match="ar: guidance 3 needs an unconditional branch"):
        dataclasses.replace(load(run.folder), run=bare).settings("ar", guidance=3.0)


def test_a_network_in_training_and_the_stage_draw_with_the_same_tokenizers(run):
    loaded = ArSampler.load(reopen_run(run.folder), "ar")
    given = ArSampler.load(run, "ar", loaded.network)
    settings = run.recipe.settings_for("ar")
    drawn = [one.pictures(PROMPTS, generators(PROMPTS, 0), settings) for one in (loaded, given)]
    assert [image.tobytes() for image in drawn[0]] == [image.tobytes() for image in drawn[1]]
