"""Pictures of a wanted height and width from a latent model that was trained in buckets, and figures of all shapes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.classifier_stage import ClassifierTask
from pipelines.data.ratios import Shape, parse_shape
from pipelines.errors import PalimpsestError
from pipelines.latent_likelihood import latent_bits
from pipelines.latent_sampler import LatentSampler
from pipelines.latent_stage import LatentTask
from pipelines.pictures import GAP, grid
from pipelines.pipeline import Pipeline
from pipelines.sampling import generators
from pipelines.sampling_options import LatentOptions, Settings
from pipelines.stages import run_stage
from tests.conftest import finish

from .shaped import MORE, SHORT, beside, made, of, recipe_of
from .test_classifier_stage import STAGES


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    """A run with a latent model, a classifier and students, all trained in buckets."""
    folder = tmp_path_factory.mktemp("drawing")
    run = beside(made(folder / "front"), folder, **MORE)
    for name in ("latent", *MORE):
        run_stage(run, name)
    return run


def test_what_validates_is_of_all_shapes_and_counts_each_latent_once(drawing):
    task = LatentTask(drawing, "latent", drawing.recipe.stage["latent"])
    sizes = [tuple(batch["latent"].shape) for batch in task.held_out]
    assert sizes == [(5, 2, 4, 4, 4), (3, 2, 4, 2, 6), (2, 2, 4, 6, 2)]
    figures = {"width": lambda z, t: torch.full_like(t, z.shape[-1]), "time": lambda z, t: t}
    found = {}
    for name, figure in figures.items():
        task.losses = lambda network, cond, z, t, eps, dropped, figure=figure: figure(z, t)
        found[name] = task.validate(task.network)
    assert found["width"]["loss"] == pytest.approx((5 * 4 + 3 * 6 + 2 * 2) / 10)
    times = np.sort(np.concatenate([(np.arange(n) + 0.5) / n for n in (5, 3, 2)]))
    quarters = [part.mean() for part in np.array_split(times, 4)]
    assert [found["time"][key] for key in list(found["time"])[1:]] == pytest.approx(quarters)
    match = ClassifierTask(drawing, "match", drawing.recipe.stage["match"])
    assert all(np.isfinite(value) for value in match.validate(match.network).values())


def test_training_draws_pictures_of_the_shapes_of_those_held_out(drawing):
    (path,) = (drawing.stage_folder("latent") / "pictures").glob("*.png")
    sheet = Image.open(path)  # 5 squares, 3 wide and 2 tall ones in places of 24 x 24 pixels
    assert sheet.size == (4 * (24 + GAP) - GAP, 3 * (24 + GAP) - GAP)
    middle, edge = sheet.getpixel((12, 12)), sheet.getpixel((0, 12))
    assert edge == (255, 255, 255) != middle


def test_smaller_pictures_stand_in_the_middle_of_their_places():
    found = np.asarray(grid([Image.new("RGB", (4, 2), "red"), Image.new("RGB", (2, 6), "blue")], columns=2))
    assert found.shape == (6, 8 + GAP, 3)
    assert (found[2:4, :4] == (255, 0, 0)).all() and (found[:, 5 + GAP : 7 + GAP] == (0, 0, 255)).all()
    rest = np.delete(found.reshape(-1, 3), np.flatnonzero((found != 255).any(-1)), 0)
    assert len(rest) == found.size // 3 - 8 - 12 and (rest == 255).all()


@pytest.mark.parametrize("model", ["latent", "student", "quick"])
@pytest.mark.parametrize(("size", "wanted"), [("24x8", (8, 24)), ("8x24", (24, 8)), (None, (16, 16)), (32, (32, 32))])
def test_a_picture_has_the_size_that_is_asked_for(drawing, model, size, wanted):
    guidance = {} if model == "latent" else {"guidance": 1.0}
    (image,) = Pipeline(drawing).sample(["tall001"], model=model, size=size, steps=2, **guidance)
    assert image.size == wanted


def test_a_size_the_model_has_not_seen_is_drawn_with_a_warning(drawing, caplog):
    sample = Pipeline(drawing).sample
    sample(["tall001"], size="24x8", steps=1)
    assert not caplog.messages
    sample(["tall001"], size="8x32", steps=1)
    assert caplog.messages == ["latent has seen no picture of 8x32, only 24x8, 16x16, 8x24: it may draw worse there."]


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("30x40", "size is 30x40, but latent draws pictures whose sides are multiples of 8: the nearest is 32x40"),
        ("4", "size is 4x4, but latent draws pictures whose sides are multiples of 8: the nearest is 8x8"),
        ("24 x 8", "size is '24 x 8', expected HxW or N in pixels, such as 192x320 or 256"),
        ("0", "size is '0', expected HxW"),
        ("x16", "size is 'x16', expected HxW"),
        ("-8x8", "size is '-8x8', expected HxW"),
        ("", "size is '', expected HxW"),
    ],
)
def test_a_size_that_cannot_be_drawn_is_refused_in_a_sentence(drawing, size, words):
    with pytest.raises(PalimpsestError, match=words):
        Pipeline(drawing).sample(["tall001"], size=size)


@pytest.mark.parametrize("model", ["mdlm", "ar", "up"])
def test_models_of_squares_refuse_a_size_before_anything_is_read(tmp_path, model):
    up = {"kind": "upscale", "needs": ["encode", "latent"], "source": 16, "size": 32, "training": SHORT}
    more = {"mdlm": {"kind": "mdlm", "needs": ["encode"], "training": SHORT}, "up": up,
            "ar": {"kind": "ar", "needs": ["encode"], "training": SHORT}, "vqvae": STAGES["vqvae"],
            "encode": STAGES["encode"]}  # fmt: skip
    squares = of(recipe_of(buckets=None, **more), tmp_path)
    with pytest.raises(PalimpsestError, match=rf"size is 24x8, but {model} is of kind .* and draws squares of \d+ "):
        Pipeline(squares).sampler(model, "24x8")


def test_a_picture_in_a_batch_of_its_shape_is_the_one_it_is_alone(drawing):
    sampler = LatentSampler.load(drawing, "latent").sized(Shape(24, 8))
    prompts = ["tall001", "wide002", "tall001"]
    settings = Settings(sampler="heun", steps=3, guidance=2.0)
    whole = sampler.draw(prompts, generators(prompts, 0), settings)
    alone = sampler.draw(prompts[1:2], generators(prompts[1:2], 0), settings)
    assert whole.z.shape == (3, 4, 6, 2)
    torch.testing.assert_close(whole.z[1:2], alone.z, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rule", ["plain", "rescaled", "projected", "zero_star"])
def test_every_rule_and_a_classifier_guide_other_shapes(drawing, rule):
    options = LatentOptions(rule=rule, classifier="match", interval=(0.0, 0.9), threshold=3.0)
    sampler = LatentSampler.load(drawing, "latent").sized(Shape(8, 24))
    drawn = sampler.draw(["wide001"], generators(["wide001"], 0), Settings(sampler="ddim", steps=3, guidance=2.0,
                                                                           latent=options))  # fmt: skip
    assert drawn.z.shape == (1, 4, 2, 6) and drawn.z.isfinite().all()


def test_the_projected_rule_has_the_threshold_of_as_many_numbers_as_the_picture_has(drawing, monkeypatch):
    asked = []
    monkeypatch.setattr("pipelines.latent_sampler.rule_of", lambda *words: asked.append(words[-1]) or 2.0)
    for size in (Shape(8, 24), Shape(16, 16)):
        sampler = LatentSampler.load(drawing, "latent").sized(size)
        sampler.draw(["a"], generators(["a"], 0), Settings(sampler="ddim", steps=1, guidance=2.0))
    assert asked == [4 * 2 * 6, 4 * 4 * 4]


def test_the_likelihood_is_that_of_latents_of_all_shapes(drawing):
    found = latent_bits(drawing, "latent", 8)
    assert found["ode"].n == found["bound"].n == 8


@pytest.mark.slow
def test_the_command_draws_at_a_size_and_says_so(drawing, tmp_path):
    words = ("sample", "image", "tall001", "--run", drawing.folder, "--out", tmp_path, "--steps", "2", "--scale", "2")
    (drawing.folder / "recipe.json").write_text(
        json.dumps({"recipe": recipe_of(**MORE), "data": str(drawing.data.resolve()), "command": "palimpsest run"})
    )
    finish(*words, "--size", "24x8")
    (path,) = tmp_path.glob("*.png")
    assert Image.open(path).size == (16, 48)
    assert json.loads(path.with_suffix(".json").read_text())["size"] == "24x8"
    assert "multiples of 8: the nearest is 24x8" in finish(*words, "--size", "25x8", code=2)


def test_sizes_are_read_in_pixels():
    assert parse_shape("192x320") == Shape(192, 320) and parse_shape("256") == Shape(256, 256)
