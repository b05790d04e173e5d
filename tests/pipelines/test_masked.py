"""Sampling a masked model through its settings: every sampler, infilling in either modality, pairs, texts mixed in."""

import dataclasses
import json
import math
from pathlib import Path
from typing import get_args

import pytest
import torch

from discrete.schedule import Linear
from pipelines.errors import PalimpsestError
from pipelines.hardware import step_generator
from pipelines.masked_sampler import MaskedSampler
from pipelines.masked_sampling import fill_in, on_a_grid
from pipelines.masked_stage import MdlmTask
from pipelines.pair_schedule import spans
from pipelines.pictures import to_pil
from pipelines.pipeline import load
from pipelines.runs import reopen_run
from pipelines.sampling import generators
from pipelines.sampling_options import MASKED_SAMPLERS, MaskedOptions, Settings, Variant
from pipelines.stage_two_config import TextShards
from tests.conftest import finish

PROMPTS = ["a red star on a sky background", "a blue circle on a black background"]


def settings(sampler: str, **changes) -> Settings:
    return Settings(sampler=sampler, steps=changes.pop("steps", 4), guidance=2.0, masked=MaskedOptions(**changes))


@pytest.fixture(scope="module")
def sampler(smoke: Path) -> MaskedSampler:
    return MaskedSampler.load(reopen_run(smoke), "mdlm")


@pytest.mark.parametrize("name", MASKED_SAMPLERS)
def test_every_sampler_draws_the_same_picture_whatever_the_batch(sampler: MaskedSampler, name: str):
    draws = generators(PROMPTS, 0)
    both, calls = sampler.illustrate(PROMPTS, draws, settings(name))
    (alone,), _ = sampler.illustrate(PROMPTS[1:], generators(PROMPTS, 0)[1:], settings(name))
    assert both[1].tobytes() == alone.tobytes()
    assert 1 <= calls <= (sampler.layout.image_length if name == "entropy_bound" else 4)


def test_cached_is_ancestral_with_fewer_evaluations(sampler: MaskedSampler):
    drawn = {}
    for name in ("masked_ancestral", "cached"):
        drawn[name] = sampler.illustrate(PROMPTS, generators(PROMPTS, 3), settings(name, steps=400))
    assert [a.tobytes() for a in drawn["cached"][0]] == [b.tobytes() for b in drawn["masked_ancestral"][0]]
    assert drawn["masked_ancestral"][1] == 400 and drawn["cached"][1] <= sampler.layout.image_length + 1


def test_cached_refuses_a_network_that_sees_the_time(sampler: MaskedSampler):
    network = sampler.network
    timed = dataclasses.replace(network.config, time=True)
    try:
        network.config = timed
        with pytest.raises(PalimpsestError, match="sees the time"):
            sampler.illustrate(PROMPTS, generators(PROMPTS, 0), settings("cached"))
    finally:
        network.config = dataclasses.replace(timed, time=False)


def test_guidance_outside_its_interval_is_the_model_itself(sampler: MaskedSampler):
    def drawn(**changes) -> list[bytes]:
        asked = dataclasses.replace(settings("masked_ancestral", **changes), guidance=changes.pop("guidance", 6.0))
        return [image.tobytes() for image in sampler.illustrate(PROMPTS, generators(PROMPTS, 0), asked)[0]]

    plain = dataclasses.replace(settings("masked_ancestral"), guidance=1.0)
    alone = [image.tobytes() for image in sampler.illustrate(PROMPTS, generators(PROMPTS, 0), plain)[0]]
    assert drawn(interval=(0.0, 0.01)) == alone  # the grid has no time there
    assert drawn(interval=(0.0, 1.0)) == drawn() != alone


def test_a_loop_spends_its_share_of_the_steps_at_one_time():
    asked = Settings(sampler="remask_loop", steps=8, guidance=1.0, masked=MaskedOptions(loop=0.5, loop_at=0.25))
    _, times = on_a_grid(asked)
    assert len(times) == 9 and (times == 0.25).sum() == 5 and times[0] == 1 and times[-1] == 0
    with pytest.raises(PalimpsestError, match="needs two at least"):
        on_a_grid(dataclasses.replace(asked, steps=1))


def test_a_mask_of_the_wrong_shape_is_refused_with_both_shapes(sampler: MaskedSampler):
    x = sampler.layout.masked(2)
    known = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(PalimpsestError, match=r"\(2, 3\), but the tokens have \(2, 82\)"):
        fill_in(
            sampler.network, Linear(), x, known, settings("confidence"), mask_id=1, generator=generators(PROMPTS, 0)
        )


def test_words_are_filled_in_while_the_picture_stays(smoke: Path, sampler: MaskedSampler):
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    draws, asked = generators(["x"], 0), settings("confidence")
    picture, words = sampler.infill(x, "a [mask] star", None, draws, asked)
    assert picture.tobytes() == sampler.decode(sampler.encode(x).flatten(1))[0].tobytes()
    assert words.startswith("a ") and words.endswith(" star")
    with pytest.raises(PalimpsestError, match=r"the model reads 17 and an end token"):
        sampler.infill(x, "red " * 40, None, generators(["x"], 0), asked)


def test_captions_and_infilling_heed_what_is_asked(smoke: Path, sampler: MaskedSampler, tmp_path: Path):
    run, picture = load(smoke), tmp_path / "one.png"
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    to_pil(x)[0].save(picture)
    usual = sampler.caption_settings(run.run.recipe.settings_for("mdlm"))
    assert (usual.sampler, usual.steps, usual.temperature) == ("confidence", 18, 1.0)
    plain = run.caption_file(picture, seed=1)
    assert plain == run.caption_file(picture, seed=1, sampler="confidence", guidance=usual.guidance)
    assert plain != run.caption_file(picture, seed=1, sampler="masked_ancestral", temperature=2.0)
    box, words = (0.5, 0.0, 1.0, 1.0), "a red star"
    made = [run.infill_file(picture, words, box, tmp_path / f"{i}.png", seed=2, **asked) for i, asked in
            enumerate(({}, {"guidance": 1.0}, {"guidance": 6.0}))]  # fmt: skip
    files = [(tmp_path / f"{i}.png").read_bytes() for i in range(3)]
    assert all(one.endswith(words) for one in made) and files[0] == files[1] != files[2]
    for wrong, message in (({"bound": 1.0}, "bound: no use to mdlm"), ({"model": "vqvae"}, "expected a masked model")):
        with pytest.raises(PalimpsestError, match=message):
            run.caption_file(picture, seed=0, **wrong)
    with pytest.raises(PalimpsestError, match="count is 0, expected at least 1 pair"):
        run.save_pairs(0, tmp_path, seed=0)


def test_pairs_are_made_from_nothing(smoke: Path, tmp_path: Path):
    text = finish("sample", "pair", "--run", smoke, "--count", "2", "--out", tmp_path, "--steps", "4", "--scale", "1")
    made = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert len(made) == len(list(tmp_path.glob("*.png"))) == 2 and text.count(".png: ") == 2
    assert all(one["guidance"] == 1.0 and one["steps"] == 4 and isinstance(one["caption"], str) for one in made)


def test_texts_without_pictures_are_mixed_in_by_their_share_and_follow_the_cursor(smoke: Path):
    run = reopen_run(smoke)
    stage = run.recipe.stage["mdlm"]
    texts = TextShards(path=str(run.data), share=0.5)
    task = MdlmTask(run, "mdlm", dataclasses.replace(stage, texts=texts))  # type: ignore[arg-type]
    batch = task.stage.training.batch
    stream = task.batches(0, 0, 1)
    (first, cursor), (second, _) = next(stream), next(stream)
    assert first["alone"].shape == (batch // 2, task.layout.text_length) and cursor == batch
    (again, _) = next(task.batches(cursor, 0, 1))
    assert torch.equal(again["alone"], second["alone"]) and torch.equal(again["text"], second["text"])
    assert not torch.equal(first["alone"], second["alone"])
    halves = [next(task.batches(0, rank, 2))[0]["alone"] for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), first["alone"])
    loss, parts = task.loss(task.network, first, step_generator(0, 0, 0))
    assert torch.isfinite(loss) and parts["text_alone"] > 0


def test_the_sweep_of_masked_samplers_stands_in_the_report(smoke: Path):
    figures = json.loads((smoke / "eval" / "report.json").read_text(encoding="utf-8"))["figures"]
    for group, metric in (("samplers", "colour"), ("samplers", "kd"), ("captions", "caption_colour")):
        names = [name for name in figures if name.startswith(f"mdlm.sweep.{metric}[{group}: ")]
        assert len(names) == len(MASKED_SAMPLERS) + len(get_args(Variant))
        assert all("steps=" in name or "entropy_bound|bound=" in name for name in names)
    for model in ("mdlm", "ar"):
        found = {
            name: figures[name]["value"] for name in figures if name.startswith(f"{model}.sweep.code_entropy[temp")
        }
        (cold,), (warm,) = ([found[name] for name in found if name.endswith(f"={t}|n=20]")] for t in ("0.7", "1"))
        assert 0 < cold < warm < math.log(64)  # of 64 codes; a sharper law has less of it
        assert f"{model}.sweep.code_entropy[real: held-out pictures and captions|n=20]" in figures
    assert any(name.startswith("ar.sweep.clip_score[guidance: plain|") for name in figures)
    page = (smoke / "eval" / "report.html").read_text(encoding="utf-8")
    assert "Samplers of captions: mdlm" in page and "Guidance: ar" in page and "Temperature of captions: mdlm" in page


def test_pairs_follow_the_schedules_that_were_learned_for_their_sides(smoke: Path, sampler: MaskedSampler):
    manifest = json.loads((smoke / "mdlm" / "manifest.json").read_text(encoding="utf-8"))
    assert sampler.pair_schedule is not None and math.prod(manifest["powers"]) == pytest.approx(1, rel=1e-5)
    assert [part.power for part in sampler.pair_schedule.parts] == manifest["powers"] != [1.0, 1.0]
    figures = json.loads((smoke / "eval" / "report.json").read_text(encoding="utf-8"))["figures"]
    bounds = {which: figures[f"mdlm.joint_bound[{which}]"] for which in ("equal", "learned")}
    assert all(bound["low"] < bound["value"] < bound["high"] for bound in bounds.values())
    extreme = dataclasses.replace(sampler, pair_schedule=spans([50.0, 0.02], 18, 64))
    seen = []
    hook = sampler.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0] == sampler.layout.mask_id))
    try:
        extreme.pairs(generators(["", ""], 0), settings("masked_ancestral", steps=3))
    finally:
        hook.remove()
    assert not seen[1][:, :18].any() and seen[1][:, 18:].double().mean() > 0.9  # all of the text first


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda run: run.texts(1, seed=0, choice_temperature=4.5), "choice_temperature: no use to mdlm"),
        (lambda run: run.texts(1, seed=0, guidance=2.0), "guidance: no use to mdlm"),
        (lambda run: run.texts(0, seed=0), "count is 0, expected at least 1 text"),
        (lambda run: run.save_pairs(1, Path("nowhere"), seed=0, guidance=3.0), "guidance: no use to mdlm"),
        (lambda run: run.sample(["a red star"], model="mdlm", sampler="remask_cop", eta=0.1), "mean 'remask_cap'"),
        (lambda run: run.sample(["a red star"], model="mdlm", sampler="entropy_bound", steps=3), "steps: no use to"),
        (
            lambda run: run.sample(["a red star"], model="latent", choice_temperature=1.0),
            "a latent model knows no such",
        ),
    ],
)
def test_what_would_not_be_heeded_is_refused_at_every_door(smoke: Path, ask, message: str):
    with pytest.raises(PalimpsestError, match=message):
        ask(load(smoke))


def test_a_gap_without_tokens_is_refused(sampler: MaskedSampler):
    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(PalimpsestError, match=r"gap \[mask:0\] of the caption has no tokens"):
        sampler.infill(image, "a [mask:0] star", None, generators([""], 0), settings("masked_ancestral"))
