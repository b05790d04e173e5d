"""Recipes of several sets: what they refuse, what a stage remembers of them, how a plan and a cache know them."""

import dataclasses
import json
import logging
from fractions import Fraction

import pytest
import torch

from pipelines.amount import amounts
from pipelines.artefact import ArtefactError, digest, read_json
from pipelines.cache import open_cache
from pipelines.config import RecipeError, dump_recipe, load_recipe, parse_recipe
from pipelines.data.decode import image_and_caption
from pipelines.data.place import Here
from pipelines.data.scenes import write
from pipelines.data.shards import open_split
from pipelines.data.stream import once
from pipelines.errors import DataError, PalimpsestError
from pipelines.forecast import _time_row, outlook, plan
from pipelines.masked_stage import MdlmTask
from pipelines.models import load_vae
from pipelines.outlook import Machines
from pipelines.runs import open_run
from pipelines.stage_one import VAETask
from pipelines.stages import ensure_data, run_stage

from .data.conftest import samples, tar
from .test_upscale import STAGES, TRAINING

MDLM = {"kind": "mdlm", "needs": ["encode"], "model": {"dim": 32, "layers": 1, "heads": 2}, "training": TRAINING}
NEEDED = ("bpe", "vae", "vqvae", "clip", "encode", "latent")


def recipe_of(data, names=("vae",), **more):
    return {"name": "mixed", "data": data, "stage": {**{name: STAGES[name] for name in names}, **more}}


def shards(**more):
    return {"kind": "shards", "size": 16, **more}


def run_of(tmp_path, data, names=("vae",), out=None, **more):
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps({"recipe": recipe_of(data, names, **more)}))
    return open_run(path, out=out or tmp_path, data=tmp_path / "data")


@pytest.fixture
def folder(tmp_path):
    tar(tmp_path / "data" / "train.tar", samples(24, prefix="data-"))
    tar(tmp_path / "data" / "test.tar", samples(8, prefix="data-"))
    tar(tmp_path / "emoji" / "train.tar", samples(12, prefix="emoji-"))
    tar(tmp_path / "emoji" / "test.tar", samples(8, prefix="emoji-"))
    tar(tmp_path / "books" / "train.tar", {f"{i}.txt": f"a line of a book {i}".encode() for i in range(20)})
    return tmp_path


def emoji(folder, **changed):
    return {"kind": "shards", "path": str(folder / "emoji"), **changed}


def books(folder, **changed):
    return {"kind": "texts", "path": str(folder / "books"), **changed}


def test_sets_survive_json_and_have_names():
    recipe = parse_recipe(recipe_of(shards(weight=3, more=[{"kind": "shards", "path": "a/my set.v2"},
                                                           {"kind": "scenes", "count": 20}])), "sets")  # fmt: skip
    assert parse_recipe(dump_recipe(recipe), "json") == recipe
    assert recipe.data.names == ("data", "my-set-v2", "scenes")
    assert recipe.shares() == {"data": "3/5", "my-set-v2": "1/5", "scenes": "1/5"}
    assert parse_recipe(recipe_of(shards()), "one").shares() == {}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (shards(weight=2.0), r"weight is 2, but there is no other set: leave it out, or add \[\[data.more\]\]"),
        (shards(more=[{"kind": "shards", "path": "a", "weight": 0.0}]), "data.more.0.*weight is 0.0, expected"),
        (shards(more=[{"kind": "shards", "path": "a", "weight": -1}]), "weight is -1.0, expected a number above 0"),
        (shards(more=[{"kind": "texts", "path": "a", "weight": float("nan")}]), "weight is nan, expected a number"),
        (shards(weight=0.0, more=[{"kind": "shards", "path": "a"}]), "weight is 0.0, expected a number above 0"),
        (shards(more=[{"kind": "shards", "path": "a", "weight": 1e-6}]), "less than one sample in 10,000"),
        (shards(more=[{"kind": "shards", "path": "a"}, {"kind": "shards", "path": "b/a"}]), "two sets are called 'a'"),
        (shards(more=[{"kind": "shards", "path": "a", "name": "data"}]), "two sets are called 'data'"),
        (shards(more=[{"kind": "shards", "path": "a", "name": "../b"}]), r"name is '../b', expected letters"),
        (shards(more=[{"kind": "shards"}]), "data.more.0.path"),
        (shards(more=[{"kind": "shard", "path": "a"}]), "data.more.0.kind is 'shard'; did you mean 'shards'"),
        (shards(more=[{"kind": "shards", "path": "a", "wieght": 2}]), "unknown key data.more.0.wieght.*'weight'"),
        (shards(size=64, more=[{"kind": "scenes"}]), "the scenes scenes have 32 pixels, less than data.size = 64"),
        (shards(more=[{"kind": "scenes", "size": 32, "render": 16}]), "render is 16, expected at least size = 32"),
        (shards(more=[{"kind": "texts", "path": "a/books"}]), "books has no pictures, and no stage of the recipe"),
    ],
)  # fmt: skip
def test_sets_that_cannot_be_mixed_are_refused_in_a_sentence(data, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe(recipe_of(data), "wrong")


def test_texts_alone_are_for_masked_models_in_whole_numbers_and_from_one_source():
    texts = [{"kind": "texts", "path": "books", "weight": 0.25}]
    recipe = parse_recipe(recipe_of(shards(more=texts), NEEDED, mdlm=MDLM), "joint")
    assert recipe.data.texts_per_picture() == Fraction(1, 4)
    with pytest.raises(RecipeError, match=r"the weight of books makes 2.4 texts for a batch of 8 pictures"):
        parse_recipe(recipe_of(shards(more=[{**texts[0], "weight": 0.3}]), NEEDED, mdlm=MDLM), "uneven")
    with pytest.raises(RecipeError, match=r"stage.mdlm.texts and data.more \(books\) both name texts alone"):
        twice = {**MDLM, "texts": {"path": "other"}}
        parse_recipe(recipe_of(shards(more=texts), NEEDED, mdlm=twice), "twice")


def test_a_set_is_changed_in_place_by_its_number(tmp_path):
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps({"recipe": recipe_of(shards(more=[{"kind": "shards", "path": "a"}]))}))
    assert load_recipe(path, ("data.more.0.weight=3",)).shares() == {"data": "1/4", "a": "3/4"}
    listed = "'more' is a list of tables: name one by its place, such as 0"
    for wrong, words in (
        ("data.more.1.weight=3", "'1' holds a value"),
        ("data.more.weight=3", listed),
        ("data.more.0=3", listed),
    ):
        with pytest.raises(RecipeError, match=words):
            load_recipe(path, (wrong,))


def test_an_empty_or_missing_set_is_refused(folder):
    with pytest.raises(DataError, match=r"No data folder .*nowhere"):
        VAETask(run := run_of(folder, shards(more=[{"kind": "shards", "path": str(folder / "nowhere")}])), "vae",
                run.recipe.stage["vae"])  # fmt: skip
    (folder / "empty").mkdir()
    run = run_of(folder, shards(more=[{"kind": "shards", "path": str(folder / "empty")}]), out=folder / "b")
    with pytest.raises(DataError, match=r"No train shards in .*empty"):
        run.open("train")
    tar(folder / "empty" / "train.tar", {})
    with pytest.raises(DataError, match=r"hold no readable sample"):
        run.open("train")


def test_a_changed_mixture_is_noticed_like_a_changed_set(folder):
    data = shards(more=[emoji(folder)])
    run = run_of(folder, data)
    run.begin("vae")
    assert run_of(folder, data).data_hash() == run.data_hash()
    with pytest.raises(ArtefactError, match=r"shares.data was '1/2' and is now '3/4'"):
        run_of(folder, {**data, "weight": 3})
    run_of(folder, {**data, "weight": 2, "more": [emoji(folder, weight=2)]}).begin("vae")  # the same shares
    with pytest.raises(ArtefactError, match=r"shares.other was None and is now '1/2'"):
        run_of(folder, shards(more=[emoji(folder, name="other")]))
    with pytest.raises(ArtefactError, match=r"data was .* and is now"):
        run_of(folder, shards()).begin("vae")
    tar(folder / "emoji" / "train.tar", samples(40, prefix="emoji-"))
    with pytest.raises(ArtefactError, match=r"data was .* and is now"):
        run_of(folder, data).begin("vae")


def test_the_hash_of_a_single_set_is_what_it_was_before_there_were_mixtures(folder):
    listed = [[path.name, path.stat().st_size] for path in sorted((folder / "data").glob("*.tar"))]
    run = run_of(folder, shards())
    assert run.data_hash() == digest([{}, listed])[:16] and "shares" not in run.settings("vae")


def test_pictures_that_validate_come_from_every_set_that_has_some_in_its_share(folder):
    run = run_of(folder, shards(weight=3, more=[emoji(folder), books(folder)]), ("bpe", "vae"))
    task = VAETask(run, "vae", run.recipe.stage["vae"])
    first = [key.split("-")[0] for key in task.samples["key"][:8]]
    assert sorted(first) == ["data"] * 6 + ["emoji"] * 2 and len(task.samples["key"]) == 16
    (folder / "emoji" / "test.tar").unlink()
    run = run_of(folder, shards(weight=3, more=[emoji(folder)]), out=folder / "b")
    assert len(run.held_out()) == 8 and run.splits() == ["train", "test"]


def test_a_plan_knows_every_set(folder):
    more = [emoji(folder, weight=0.5), books(folder, weight=0.75)]
    recipe = parse_recipe(recipe_of(shards(more=more), NEEDED, mdlm=MDLM), "planned")
    found = amounts(recipe, Here(folder / "data"), folder)
    assert [(one.name, one.samples, one.shards, one.share) for one in found] == [
        ("data", 24, 1, Fraction(2, 3)), ("emoji", 12, 1, Fraction(1, 3)), ("books", 20, 1, Fraction(1, 2)),
    ]  # fmt: skip
    alone = parse_recipe(recipe_of(dump_recipe(recipe)["data"], ("bpe", "vae")), "small")
    text = plan(alone, machines := Machines(gpus=1), found)
    (row,) = (line.split() for line in text.partition("\nTime")[2].splitlines() if line.startswith("vae"))
    assert "epochs of data  epochs of emoji  epochs of books" in text
    assert row[-2:] == ["0.444", "0.444"]  # 16 pictures: 10.7 of 24, 5.33 of 12, and no texts
    assert "Data, books: 20 samples" in text and "(1/2 for each picture that is drawn)" in text
    one = dataclasses.replace(outlook(alone, "vae", machines), name="mdlm")
    assert _time_row(one, found, True)[-3:] == ("0.444", "0.444", "0.4")  # and 8 of 20 texts


def test_further_scenes_are_rendered_and_judged_by_the_grammar_they_share(tmp_path):
    data = {"kind": "scenes", "size": 16, "count": 20, "more": [{"kind": "scenes", "size": 16, "count": 12, "seed": 3}]}
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps({"recipe": recipe_of(data)}))
    run = open_run(path, out=tmp_path, data=None)
    ensure_data(run)
    assert len(run.open("train")) == 32 and run.recipe.grammatical and "attributes" in run.data_manifest()
    other = {**data, "more": [{"kind": "scenes", "size": 64, "count": 12, "seed": 3}]}
    assert not parse_recipe(recipe_of(other), "other grammar").grammatical
    assert not parse_recipe(recipe_of({**data, "more": [{"kind": "shards", "path": "a"}]}), "shards").grammatical


def test_a_judge_of_scenes_refuses_sets_without_the_same_labels(folder):
    write(folder / "scenes", count=8, size=16, seed=0)
    run = run_of(folder, shards(more=[{"kind": "shards", "path": str(folder / "scenes")}]), ("scene_judge",))
    with pytest.raises(PalimpsestError, match=r"data, .*scenes: no exact labels that agree"):
        run_stage(run, "scene_judge")


@pytest.mark.slow
def test_a_mixture_goes_through_every_kind_of_stage(folder, caplog):
    """Trained, encoded and trained on: latents scaled by shares, a cache that keeps sets apart, texts beside pairs."""
    tar(folder / "emoji" / "train.tar", samples(12, broken={3}, prefix="emoji-"))
    data = shards(weight=3, more=[emoji(folder), books(folder, weight=1)])
    with caplog.at_level(logging.WARNING, "palimpsest"):
        run = run_of(folder, data, NEEDED, mdlm=MDLM)
        for name in run.recipe.order():
            run_stage(run, name)
    assert "emoji-003 in train.tar of emoji" in caplog.text
    captions = read_json(run.stage_folder("bpe") / "bpe.json")
    assert captions and run.finished("latent") and run.finished("mdlm")
    cache = open_cache(run, "latent")
    assert cache.manifest["counts"] == {"train": 35, "test": 16} and cache.manifest["skipped_samples"]["train"] == 1
    assert {"data/train-000000.tar", "emoji/train-000000.tar", "emoji/test-000000.tar"} <= set(cache.manifest["files"])
    batches = [batch for (batch, _), _ in zip(cache.stream("train", 8, seed=0).batches(), range(20), strict=False)]
    origins = [batch["label"][i]["key"].split("-")[0] for batch in batches for i in range(8)]
    assert origins.count("emoji") == 40 and origins.count("data") == 120
    pairs = next(MdlmTask(run, "mdlm", run.recipe.stage["mdlm"]).batches(0, 0, 1))[0]
    assert pairs["alone"].shape == (2, run.recipe.stage["bpe"].length)  # 1 of 4 for each picture
    check_scale(run)


def check_scale(run):
    """The statistics of latents against a mean over many samples that are drawn by weight."""
    manifest, vae = run.manifest("vae"), load_vae(run, "vae")
    moments = {}
    for source in run.pictures:
        batch = next(once(open_split(source.place, "train"), image_and_caption(16), batch=99))
        with torch.no_grad():
            moments[source.name] = vae.encode(batch["image"]).mean.mean((0, 2, 3))
    wanted = 0.75 * moments["data"] + 0.25 * moments["emoji"]
    torch.testing.assert_close(torch.tensor(manifest["latent_mean"]), wanted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(moments["data"], moments["emoji"], rtol=1e-3, atol=1e-4)
