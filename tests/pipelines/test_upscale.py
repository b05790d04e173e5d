"""Cascades on tiny models: 16 -> 32 by a diffusion, 32 -> 64 by a flow from picture to picture."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from eval.definitions import define
from pipelines.artefact import ArtefactError
from pipelines.config import RecipeError, load_recipe, parse_recipe
from pipelines.data.decode import image_and_caption, two_sizes
from pipelines.data.scenes import render, scene, write
from pipelines.errors import DataError, PalimpsestError
from pipelines.judging import Judges
from pipelines.loop import Interrupted, Loop
from pipelines.pictures import enlarged, from_pil, grid, to_pil
from pipelines.pipeline import Pipeline
from pipelines.runs import open_run
from pipelines.sampling import generators
from pipelines.sampling_options import LatentOptions, Settings
from pipelines.sets import data_place
from pipelines.stages import run_stage
from pipelines.upscale_sampler import Cascade, Upscaler, ending, tell
from pipelines.upscale_stage import UpscaleTask
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
PROMPTS = ["a red star on a sky background", "a blue circle on a sand background", "a red star on a sky background"]
TRAINING = {"steps": 2, "batch": 8, "compile": False, "bf16": False}
TOWERS = {"width": 32, "text_width": 32, "layers": 1, "text_layers": 1, "embed_dim": 16}
CODEC = {"network": {"channels": 16, "encoder_blocks": 1, "decoder_blocks": 1}}
UNET = {"width": 8, "blocks": 1, "multipliers": [1, 1], "head_width": 8, "text_dim": 16, "text_heads": 2, "patch": 2}
UPSCALE = {"kind": "upscale", "model": UNET, "training": {**TRAINING, "steps": 6, "ema": 0.9, "save_seconds": 1e-9}}
STAGES = {
    "bpe": {"kind": "bpe", "vocab_size": 300},
    "vae": {"kind": "vae", "model": CODEC, "training": TRAINING},
    "vqvae": {
        "kind": "vqvae",
        "model": {**CODEC, "initial_vectors": 256, "quantizer": {"codes": 16}},
        "training": TRAINING,
    },
    "clip": {"kind": "clip", "needs": ["bpe"], "model": TOWERS, "training": TRAINING},
    "judge": {"kind": "judge", "needs": ["bpe"], "model": TOWERS, "training": TRAINING},
    "scene_judge": {"kind": "scene_judge", "widths": [8, 8], "training": TRAINING},
    "encode": {"kind": "encode", "needs": ["vae", "vqvae", "bpe", "clip"]},
    "latent": {
        "kind": "latent",
        "needs": ["encode"],
        "model": {"kind": "dit", "dim": 32, "layers": 1, "heads": 2},
        "training": TRAINING,
    },
    "up32": {**UPSCALE, "needs": ["encode", "latent"], "source": 16, "size": 32},
    "up64": {
        **UPSCALE,
        "needs": ["encode", "up32"],
        "source": 32,
        "size": 64,
        "start": "pair",
        "prediction": "velocity",
    },
    "pictures": {"kind": "generate", "needs": ["up64"], "count": 8, "unseen": 0, "steps": 2, "guidance": 1.5},
    "eval": {
        "kind": "eval",
        "needs": ["vae", "vqvae", "judge", "scene_judge", "pictures", "up32", "up64"],
        "reconstructions": 8,
    },
}
DATA = {"kind": "scenes", "size": 16, "count": 40, "render": 64}


def recipe(data=DATA, **changed):
    """The recipe with fields of some stages changed, and only those stages that the last one stands on."""
    stages = {name: {**stage, **changed.get(name, {})} for name, stage in STAGES.items()}
    return {"name": "tiny", "data": data, "stage": stages}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the recipe."""
    out = tmp_path_factory.mktemp("cascade")
    (out / "tiny.json").write_text(json.dumps({"recipe": recipe()}))
    run = open_run(out / "tiny.json", out=out, data=None)
    for name in run.recipe.order():
        run_stage(run, name)
    return run


@pytest.fixture(scope="module")
def low(run):
    """Held-out pictures of 32 pixels."""
    task = UpscaleTask(run, "up64", run.recipe.stage["up64"])
    return task.held_out["low"][:3]


def settings(sampler="dpmpp_2m", guidance=1.5, **options):
    return Settings(sampler=sampler, steps=3, guidance=guidance, latent=LatentOptions(**options))


def untrained(run, name):
    """The upscaler as it was before its training: its output is zero."""
    return Upscaler.load(run, name, UpscaleTask(run, name, run.recipe.stage[name]).network.eval())


@pytest.mark.parametrize(("start", "prediction"), [*(("pair", p) for p in ("x", "v", "velocity")), ("noise", "x")])
def test_an_untrained_model_returns_the_enlarged_picture(run, low, start, prediction):
    upscaler = untrained(run, "up64")
    stage = dataclasses.replace(upscaler.stage, start=start, prediction=prediction)
    upscaler = dataclasses.replace(upscaler, stage=stage)
    for name in ("euler", "heun", "ddim", "dpmpp_2m", "unipc"):
        found = upscaler.enlarge(low, PROMPTS, generators(PROMPTS, 0), settings(name, level=0.0))
        expected = torch.nn.functional.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda words, name=name: name + words)


def test_an_untrained_model_keeps_the_contrast_of_what_it_is_told_with_noise(run, low):
    captions = PROMPTS[:1] * 40
    found = untrained(run, "up32").enlarge(
        low[:1, :, ::2, ::2].expand(40, -1, -1, -1), captions, generators(captions, 0), settings(level=0.5)
    )
    torch.testing.assert_close(found.mean((0, 2, 3)), low[0, :, ::2, ::2].mean((1, 2)), rtol=0, atol=0.02)


@pytest.mark.parametrize(("start", "prediction"), [("pair", "x"), ("pair", "velocity"), ("noise", "x")])
def test_an_untrained_model_errs_by_how_far_the_enlarged_picture_is(run, start, prediction):
    stage = dataclasses.replace(run.recipe.stage["up64"], level=0.0, start=start, prediction=prediction)
    task = UpscaleTask(run, "up64", stage)
    batch, _ = next(task.batches(0, 0, 1))
    loss, _ = task.loss(task.network, batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, (enlarged(batch["low"], 64) - batch["image"]).square().mean())


def test_a_pair_starts_from_the_picture_and_a_diffusion_from_noise(run, low):
    for name, size in (("up32", 32), ("up64", 64)):
        upscaler = Upscaler.load(run, name)
        text = upscaler.embed(PROMPTS)
        cond = tell(text, enlarged(low, upscaler.stage.source), size, torch.full((3,), 0.2), generators(PROMPTS, 0))
        x_1 = ending(upscaler.stage, cond, generators(PROMPTS, 1))
        assert torch.equal(x_1, cond.image) == (name == "up64")
        first, second = (
            upscaler.enlarge(low[..., ::2, ::2] if name == "up32" else low, PROMPTS, generators(PROMPTS, seed),
                             settings(level=0.0))
            for seed in (0, 1)
        )  # fmt: skip
        assert torch.equal(first, second) == (name == "up64")


def test_the_told_picture_is_noised_along_the_straight_path_each_item_by_its_level(low):
    many = low[:1].expand(200, -1, -1, -1)
    level = torch.tensor([0.0, 0.5]).repeat_interleave(100)
    text = (torch.zeros(200, 2, 3), torch.ones(200, 2, dtype=torch.bool), torch.zeros(200, 3))
    cond = tell(text, many, 64, level, torch.Generator().manual_seed(0))
    large = enlarged(many, 64)
    assert torch.equal(cond.image[:100], large[:100]) and torch.equal(cond.level, level)
    noise = cond.image[100:] - 0.5 * large[100:]
    assert noise.mean().abs() < 2e-3 and noise.std() == pytest.approx(0.5, rel=0.01)
    assert cond.image.dtype == low.dtype


def test_the_level_is_none_unless_it_is_given(run, low):
    upscaler = untrained(run, "up64")
    captions, draws = PROMPTS[:3], lambda: generators(PROMPTS[:3], 0)
    plain, clean = (upscaler.enlarge(low, captions, draws(), chosen) for chosen in (settings(), settings(level=0.0)))
    noisy = upscaler.enlarge(low, captions, draws(), settings(level=0.1))
    torch.testing.assert_close(plain, clean, rtol=0, atol=0)
    assert (noisy - plain).std() > 0.05


def test_base_and_upscalers_compose(run):
    pipeline = Pipeline(run)
    base = pipeline.sampler("up32").pictures(PROMPTS, generators(PROMPTS, 5), settings())
    assert {picture.size for picture in base} == {(32, 32)}
    cascade = Cascade(pipeline.sampler("up32"), settings(), untrained(run, "up64"))
    found = cascade.pictures(PROMPTS, generators(PROMPTS, 5), settings(level=0.0))
    expected = to_pil(enlarged(from_pil(base), 64))
    assert all(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1 for a, b in zip(found, expected, strict=True))
    assert pipeline.sampler("up64").base_settings == run.recipe.settings_for("up32")
    assert {picture.size for picture in pipeline.sample(PROMPTS, model="up64")} == {(64, 64)}


def test_pictures_of_a_cascade_are_tied_to_how_the_models_below_were_drawn(run):
    made = json.loads(next(run.stage_folder("pictures").glob("*/*.json")).read_text())
    assert {name: found["sampler"] for name, found in made["base_settings"].items()} == {
        "up32": "dpmpp_2m",
        "latent": "ancestral_large",
    }
    small = {"kind": "generate", "needs": ["latent"], "sampler": "euler", "steps": 5}
    other = recipe()
    other["stage"]["small"] = small
    changed = dataclasses.replace(run, recipe=parse_recipe(other, "tiny"))
    with pytest.raises(ArtefactError, match=r"below\.latent\.sampler was 'ancestral_large' and is now 'euler'"):
        changed.finished("pictures")


@pytest.mark.parametrize("name", ["up32", "up64"])
def test_a_picture_does_not_depend_on_its_batch(run, name):
    pipeline = Pipeline(run)
    together = pipeline.sample(PROMPTS, model=name, seed=3)
    alone = pipeline.sample(PROMPTS[:2], model=name, seed=3, batch=1)
    for a, b in zip(together, alone, strict=False):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 2  # bases may round differently
    difference = np.abs(np.asarray(together[0], int) - np.asarray(together[2], int))
    assert difference.max() > 2  # equal prompts draw different pictures


def test_guidance_leaves_out_the_text_and_keeps_the_picture(run, low):
    upscaler = Upscaler.load(run, "up64")
    cond = tell(upscaler.embed(PROMPTS), low, 64, torch.zeros(3), generators(PROMPTS, 0))
    null = upscaler._null(cond, "")
    assert torch.equal(null.image, cond.image) and not torch.equal(null.tokens, cond.tokens)
    plain = upscaler.enlarge(low, PROMPTS, generators(PROMPTS, 0), settings(guidance=1.0))
    itself = upscaler.enlarge(low[:1], PROMPTS[:1], generators(PROMPTS[:1], 0), settings(negative=PROMPTS[0]))
    torch.testing.assert_close(itself, plain[:1], rtol=1e-4, atol=1e-5)  # away from itself: no guidance


def test_the_interrupted_training_equals_the_uninterrupted_one(run, tmp_path):
    class Stopped(UpscaleTask):
        stop_at = None

        def loss(self, network, batch, generator):
            if self.loop.state.step == self.stop_at:
                self.loop.stop = True
            return super().loss(network, batch, generator)

    def train(stop_at=None):
        stage = run.recipe.stage["up32"]
        task = Stopped(run, "up32", stage)
        task.stop_at, task.loop = stop_at, Loop(task, stage.training, tmp_path, seed=0, name="up32")
        return task.loop.run()

    for stop_at in (1, 3):
        with pytest.raises(Interrupted):
            train(stop_at)
    assert train()["steps"] == 6
    for weights in ("model.safetensors", "ema.safetensors"):
        assert (tmp_path / weights).read_bytes() == (run.stage_folder("up32") / weights).read_bytes()


def test_training_shows_small_result_and_truth_side_by_side(run):
    sheet = Image.open(next((run.stage_folder("up64") / "pictures").glob("enlarged-*.png")))
    task = UpscaleTask(run, "up64", run.recipe.stage["up64"])
    assert sheet.size == grid([Image.new("RGB", (64, 64))] * 18, columns=3).size
    shown = np.asarray(sheet)
    for column, expected in ((0, enlarged(task.held_out["low"][:1], 64)), (2, task.held_out["image"][:1])):
        left = column * (64 + 2)
        assert np.array_equal(shown[:64, left : left + 64], np.asarray(to_pil(expected)[0]))


def test_the_report_sets_the_model_beside_bicubic_interpolation(run):
    figures = json.loads((run.stage_folder("eval") / "report.json").read_text())["figures"]
    for name, size in (("up32", 32), ("up64", 64)):
        split = run.open("test")
        samples = [two_sizes(size, size // 2)(split[i]) for i in range(len(split))]
        errors = []
        for sample in samples:  # Pillow's own bicubic, and PSNR by its formula
            small = to_pil(sample["low"][None])[0].resize((size, size), Image.Resampling.BICUBIC)
            truth = np.asarray(to_pil(sample["image"][None])[0], float)
            errors.append(10 * np.log10(255**2 / np.mean((np.asarray(small, float) - truth) ** 2)))
        bicubic = figures[f"{name}.bicubic_psnr"]
        assert bicubic["n"] == len(samples) == 8 and bicubic["value"] == pytest.approx(np.mean(errors))
        model = figures[f"{name}.psnr"]
        assert model["low"] < model["value"] < model["high"] and np.isfinite(model["value"])
    assert [name for name in figures if define(name).label == name] == []
    assert "up64.scene.colour" in figures
    page = (run.stage_folder("eval") / "report.html").read_text()
    assert "Enlarged pictures" in page and page.count("bicubic interpolation") >= 2
    # What no stage makes has its reason in the figures, which the page lists once at its end, and nothing at its head.
    assert "no stage of this recipe" in figures["mdlm.scene.colour"]["reason"]
    assert page.count("mdlm.scene.colour") == 1 and "tile absent" not in page and "masked diffusion: " not in page


def test_judges_see_large_pictures_as_they_see_real_ones(run):
    split = run.open("test")
    large, real = (np.stack([np.asarray(to_pil(image_and_caption(size)(split[i])["image"][None])[0]) for i in range(8)])
                   for size in (64, 16))  # fmt: skip
    judges = Judges.load(run, "eval")
    assert np.array_equal(judges.seen(large), real) and judges.seen(real) is real
    assert judges.verdicts(large) == judges.verdicts(real)
    assert np.array_equal(judges.features(large), judges.features(real))


def test_the_small_picture_is_what_a_base_of_that_size_learns_from(run):
    sample = run.open("train")[0]
    both = two_sizes(64, 16)(sample)
    for name, size in (("image", 64), ("low", 16)):
        assert torch.equal(both[name], image_and_caption(size)(sample)["image"])


def test_the_python_door_enlarges_real_pictures(run, low):
    pipeline = Pipeline(run)
    found = pipeline.enlarge(to_pil(low), PROMPTS, model="up64", level=0.0)
    assert {picture.size for picture in found} == {(64, 64)}
    assert np.abs(from_pil(found) - enlarged(low, 64)).mean() < 0.2
    with pytest.raises(PalimpsestError, match=r"pictures of shape \(3, 16, 16\), expected \(3, 32, 32\)"):
        Upscaler.load(run, "up64").enlarge(low[..., ::2, ::2], PROMPTS, generators(PROMPTS, 0), settings())
    with pytest.raises(PalimpsestError, match="stage 'latent' is of kind 'latent', expected upscale"):
        pipeline.enlarge(to_pil(low), PROMPTS, model="latent")


def test_a_pair_refuses_samplers_and_starts_that_need_noise(run):
    pipeline = Pipeline(run)
    with pytest.raises(PalimpsestError, match=r"'ancestral' adds noise, but .*picture to picture: use euler"):
        pipeline.sample(PROMPTS[:1], model="up64", sampler="ancestral")
    with pytest.raises(PalimpsestError, match=r"start = 0\.9 .* starts from a picture at time 1"):
        pipeline.sample(PROMPTS[:1], model="up64", start=0.9)
    with pytest.raises(PalimpsestError, match="latent cannot guide a model that enlarges"):
        pipeline.sample(PROMPTS[:1], model="up32", weak="latent")
    assert pipeline.sample(PROMPTS[:1], model="up32", sampler="ancestral")[0].size == (32, 32)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"up32": {"source": 8}}, "up32.source is 8, but latent draws 16 pixels: write source = 16"),
        ({"up64": {"source": 16}}, "up64.source is 16, but up32 draws 32 pixels"),
        ({"up64": {"size": 48}}, "from 32 to 48 pixels: expected a size that is a multiple of source"),
        ({"up64": {"size": 32}}, "from 32 to 32 pixels"),
        ({"up64": {"size": 128}}, "up64.size is 128, but the scenes have 64 pixels: write data.render = 128 or more"),
        ({"up64": {"model": {**UNET, "patch": 64}}}, "size is 64, .* expected a multiple of 128"),
        ({"up32": {"prediction": "edm"}}, "prediction is 'edm', which is made for unit variance"),
        ({"up64": {"level": 1.0}}, "level is 1.0, expected a time from 0"),
        ({"up64": {"schedule": {"kind": "cosine"}}}, "start = 'pair' on Cosine.*only the straight path"),
        ({"up64": {"needs": ["encode"]}}, "up64 needs a model that draws: name a stage of kind latent or"),
        ({"pictures": {"sampler": "dpmpp_2m_sde"}}, "stage.pictures: 'dpmpp_2m_sde' adds noise"),
        ({"pictures": {"latent": {"grid": "karras"}}}, "stage.pictures: start = 1 on the grid 'karras'"),
        ({"pictures": {"needs": ["latent"], "latent": {"level": 0.1}}}, "level is 0.1, but latent starts from no"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(changed, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe(recipe(**changed), "tiny")


def test_scenes_are_laid_out_for_one_size_and_drawn_at_another(tmp_path):
    label, _ = scene(16, 0, "train", 3)
    small, large = render(label, 16), render(label, 16, 128)
    assert large.size == (128, 128)
    reduced = np.asarray(large.resize((16, 16), Image.Resampling.BOX), float)
    assert np.abs(reduced - np.asarray(small, float)).mean() < 3  # the same scene, up to the edges' rounding
    first = write(tmp_path / "a", count=3, size=16, seed=0, pixels=32)
    assert write(tmp_path / "a", count=3, size=16, seed=0, pixels=32) == first
    with pytest.raises(DataError, match="already exists"):
        write(tmp_path / "a", count=3, size=16, seed=0)
    with pytest.raises(DataError, match="16 to 512 pixels"):
        write(tmp_path / "b", count=3, size=16, seed=0, pixels=8)
    assert "pixels" not in write(tmp_path / "b", count=3, size=16, seed=0)


def test_only_a_recipe_that_draws_larger_has_another_data_folder(tmp_path):
    plain = load_recipe(ROOT / "recipes" / "smoke.toml")
    assert data_place(plain, None, tmp_path).folder.name == "scenes-32-1200-1"
    assert data_place(parse_recipe(recipe(), "tiny"), None, tmp_path).folder.name == "scenes-16-40-0-at64"
    with pytest.raises(RecipeError, match="render is 8, expected at least size = 16"):
        parse_recipe(recipe({**DATA, "render": 8}), "tiny")
