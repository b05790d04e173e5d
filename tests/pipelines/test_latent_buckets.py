"""Stage two in buckets: a cache of several shapes, batches of one shape, exact resume."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines import encode
from pipelines.artefact import ArtefactError, write_json
from pipelines.cache import made_of, open_cache
from pipelines.config import RecipeError, parse_recipe
from pipelines.cost import operations, without_values
from pipelines.data import shapes as shapes_module
from pipelines.data.decode import BrokenSample, Sample, numpy_members
from pipelines.data.ratios import Shape
from pipelines.data.shapes import latent_header, shapes_of
from pipelines.data.shards import open_split
from pipelines.errors import DataError, Interrupted
from pipelines.latent_stage import LatentTask
from pipelines.loop import Loop
from pipelines.passes import encoders_of, players_of
from pipelines.sketch import sketch
from pipelines.stages import run_stage

from .data.conftest import tar
from .data.test_buckets import kind_of, pictures
from .shaped import FRONT, LATENT, MORE, OF, SHORT, SIZES, beside, made, of, recipe_of
from .test_classifier_stage import MODEL, STAGES
from .test_distributed import on_two_ranks

UNET = {"kind": "unet", "width": 8, "blocks": 1, "head_width": 8, "text_dim": 16, "text_heads": 2}
MMDIT = {**MODEL, "kind": "mmdit"}


def cached(run):
    cache = open_cache(run, "latent")
    split = cache.split("train")
    return cache, [cache.decode(split[i]) for i in range(len(split))]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made(tmp_path_factory.mktemp("shaped"))


def own_shape(item):
    return OF[kind_of(item["label"]["key"])]


def test_each_picture_is_cached_once_at_the_shape_of_its_bucket(run):
    cache, items = cached(run)
    assert Counter(kind_of(item["label"]["key"]) for item in items) == {"square": 17, "tall": 5, "wide": 10}
    for item in items:
        assert tuple(item["latent"].shape) == (2, 4, *own_shape(item)) and "codes" not in item
    assert cache.shapes == (Shape(24, 8), Shape(16, 16), Shape(8, 24)) and cache.buckets == (OF["tall"], (4, 4), (2, 6))
    assert "layout" not in cache.manifest and cache.manifest["latent_size"] == 4


def test_latents_are_those_of_the_picture_brought_to_its_bucket(run):
    """By the autoencoder itself, from the shards."""
    _, items = cached(run)
    encoders = encode.Encoders.load(run, "encode")
    decode, split = encode.image_and_caption(16), run.open("train")
    there = {split[i].key: split[i] for i in range(len(split))}
    for item in items[::5]:
        shape = tuple(4 * side for side in own_shape(item))
        source = there[item["label"]["key"]]
        x = decode(Sample(key=source.key, members=source.members, shape=shape))["image"]
        found = encoders.vae.encode(x[None]).mean[0]
        torch.testing.assert_close(item["latent"][0].float(), found, atol=4e-3, rtol=4e-3)


def test_the_shapes_are_kept_beside_the_shards_and_else_read_from_the_latents(run, monkeypatch, tmp_path):
    (shard,) = cache_of(run).glob("train-*.tar")
    (tmp_path / shard.name).write_bytes(shard.read_bytes())
    again = shapes_of(open_split(tmp_path, "train"), 0)
    monkeypatch.setattr(shapes_module, "latent_header", None)  # whoever looks again would fail
    found = shapes_of(open_split(cache_of(run), "train"), 0)
    assert np.array_equal(found, again) and set(map(tuple, found.tolist())) == set(OF.values())


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY\x03\x00", b"no array at all"])
def test_what_is_no_array_has_no_shape(data):
    with pytest.raises(ValueError, match=r"."):
        latent_header(data)


def cache_of(run):
    return open_cache(run, "latent").folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
def test_two_processes_make_the_bytes_of_one(run, tmp_path):
    whole, other = (beside(run, tmp_path / name, names=FRONT, shard=9) for name in ("whole", "two"))
    run_stage(whole, "encode")
    write_json(tmp_path / "shaped.json", {"recipe": recipe_of(9)})
    on_two_ranks("train", "encode", tmp_path / "shaped.json", "--out", tmp_path / "two", "--data", run.data)
    assert files(cache_of(other)) == files(cache_of(whole))


@pytest.mark.parametrize("part", [0, 2, 5])
def test_a_stopped_encoding_in_buckets_ends_with_the_bytes_of_an_uninterrupted_one(run, tmp_path, monkeypatch, part):
    options = {"names": FRONT, "shard": 9}
    whole, other = (beside(run, tmp_path / name, **options) for name in ("whole", "stopped"))
    run_stage(whole, "encode")
    own, made = encode.write_shard, []

    def stopping(path, samples):
        if len(made) == part:
            made.append("stopped")
            raise Interrupted
        own(path, samples)
        made.append(path.name)

    monkeypatch.setattr(encode, "write_shard", stopping)
    with pytest.raises(Interrupted):
        run_stage(other, "encode")
    run_stage(other, "encode")
    assert len(made) == len(set(made)) == 7 and files(cache_of(other)) == files(cache_of(whole))


def test_the_cut_into_parts_and_batches_changes_no_latents(run, tmp_path):
    other = beside(run, tmp_path, names=FRONT, shard=7, batch=3)
    run_stage(other, "encode")
    (_, one), (_, two) = cached(run), cached(other)
    by_key = {item["label"]["key"]: item["latent"] for item in two}
    assert len(one) == len(two) and cache_of(other) != cache_of(run)
    for item in one:
        torch.testing.assert_close(by_key[item["label"]["key"]], item["latent"], atol=4e-3, rtol=4e-3)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_batches_are_of_one_shape_and_each_latent_comes_once_an_epoch(run, world):
    epochs, seen = 12, {kind: [] for kind in OF}
    cache = open_cache(run, "latent")
    ranks = [cache.stream("train", 4, 0, rank, world).batches() for rank in range(world)]
    for _ in range(epochs * 32 // 4):
        parts = [next(stream)[0] for stream in ranks]
        keys = [label["key"] for part in parts for label in part["label"]]
        (kind,) = set(map(kind_of, keys))
        assert {tuple(part["latent"].shape) for part in parts} == {(4 // world, 2, 4, *OF[kind])}
        seen[kind] += keys
    for keys, count in ((seen["square"], 17), (seen["tall"], 5), (seen["wide"], 10)):
        assert abs(len(keys) - epochs * count) <= 4 * len(OF)
        for epoch in range(len(keys) // count):
            assert len(set(keys[epoch * count : (epoch + 1) * count])) == count


def test_sets_of_several_shapes_are_cached_apart_and_mixed_by_weight(tmp_path):
    tar(tmp_path / "data" / "train.tar", pictures(square=9, tall=6))
    tar(tmp_path / "b" / "train.tar", {f"b-{name}": data for name, data in pictures(wide=4, square=4).items()})
    recipe = recipe_of(shard=6)
    recipe["data"] |= {"weight": 3.0, "more": [{"kind": "shards", "path": str(tmp_path / "b")}]}
    mixed, epochs = of(recipe, tmp_path), 20
    for name in (*FRONT, "encode"):
        run_stage(mixed, name)
    cache, seen = open_cache(mixed, "latent"), Counter()
    assert sorted(path.parent.name for path in cache.folder.glob("*/train-*.tar")) == ["b", "b", "data", "data", "data"]
    for batch, _ in islice(cache.stream("train", 4, 0).batches(), epochs * 20 // 4):
        (kind,) = {kind_of(label["key"]) for label in batch["label"]}
        assert tuple(batch["latent"].shape[-2:]) == OF[kind]
        seen.update(label["key"] for label in batch["label"])
    of_b = sum(count for key, count in seen.items() if key.startswith("b-"))
    assert abs(of_b - epochs * 20 / 4) < 12 and len(seen) == 23
    held_out = cache.batches("train", 12)
    assert sum(len(batch["caption"]) for batch in held_out) == 12 and len(held_out) == 3


def test_a_latent_of_another_shape_is_a_broken_sample_and_not_a_mixed_batch(run):
    split = open_cache(run, "latent").split("train")
    wrong = Sample(key="a", members=split[0].members, shape=(4, 4))
    with pytest.raises(BrokenSample, match=r"its latents are 6 x 2, in a batch of \(4, 4\)"):
        numpy_members("latent", "text")(wrong)


def trained(run, stop_at=None):
    """Train the latent stage, to its end or to a step; returns the shapes of its batches."""
    stage = run.recipe.stage["latent"]
    task, shapes = LatentTask(run, "latent", stage), []
    loop = Loop(task, stage.training, run.stage_folder("latent"), seed=0, name="latent")
    inner = task.loss

    def loss(network, batch, generator):
        shapes.append(tuple(batch["latent"].shape[-2:]))
        loop.stop = loop.state.step == stop_at
        return inner(network, batch, generator)

    task.loss = loss
    loop.run()
    return shapes


@pytest.mark.parametrize("model", [MODEL, MMDIT, UNET], ids=lambda model: model["kind"])
def test_a_resumed_training_in_buckets_ends_with_the_bits_of_an_uninterrupted_one(run, tmp_path, model):
    stage = {**LATENT, "model": model, "coupling": "transport"}
    whole, parts = (beside(run, tmp_path / name, latent=stage) for name in ("whole", "parts"))
    shapes = trained(whole)
    assert set(shapes) == set(OF.values()) and len(shapes) == 12
    with pytest.raises(Interrupted):
        trained(parts, stop_at=5)
    assert trained(parts) == shapes[6:]
    for file in ("model.safetensors", "ema.safetensors"):
        found, wanted = (load_file(one.stage_folder("latent") / file) for one in (parts, whole))
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_stage_that_caches_remembers_its_buckets_and_so_does_its_cache(run, tmp_path):
    assert made_of(run, "encode")["buckets"] == run.settings("encode")["buckets"] == ["24x8", "16x16", "8x24"]
    other = beside(run, tmp_path, buckets=SIZES[:2])
    with pytest.raises(ArtefactError, match=r"encode does not match the recipe: buckets was .* and is now"):
        other.check_identity("encode", run.identity("encode"), other.settings("encode"))
    assert "buckets" not in of(recipe_of(buckets=None), tmp_path, run.data).settings("encode")


def test_a_plan_takes_the_shape_of_most_places():
    recipe = parse_recipe(recipe_of(buckets=[*SIZES, "32x16"], **{"match": MORE["match"]}), "planned")
    squares = parse_recipe(recipe_of(buckets=None, **{"match": MORE["match"]}), "planned")
    assert sketch(recipe, "latent").shape == "8 tokens, patch 2"
    assert sketch(recipe, "encode").shape.startswith("4 x 8 x 4 latents in 4 shapes, text")
    for name in ("latent", "match"):
        more, less = (counted(players_of(one, name)[0]) for one in (recipe, squares))
        assert less < more < 2.2 * less  # twice the places, and the same text
    more, less = (counted(encoders_of(one, "encode")[0], backward=False) for one in (recipe, squares))
    assert more == pytest.approx(2 * less)


def counted(player, **settings):
    with without_values(player.network):
        return operations(player.network, player.run, bf16=False, **settings)


VQVAE = {"vqvae": STAGES["vqvae"]}
REFLOW = {"kind": "distill", "needs": ["latent"], "method": "reflow", "training": SHORT}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {**VQVAE, "encode": {**STAGES["encode"]}},
            r"stage.encode needs vqvae, but codes are of squares and data.buckets makes other shapes.*out of its needs",
        ),
        ({"mdlm": {"kind": "mdlm", "needs": ["encode"], "training": SHORT}},
         r"stage.mdlm learns from codes, but stage.encode caches none: add a stage of kind 'vqvae'"),
        ({"ar": {"kind": "ar", "needs": ["encode"], "training": SHORT}}, r"stage.ar learns from codes"),
        ({"student": REFLOW}, r"stage.student.method is 'reflow', whose pairs are squares"),
        ({"buckets": [*SIZES, "20x12"]},
         r"data.buckets has 20x12, but stage.latent reads sides that are multiples of 8 \(4 of stage.vae times 2 of "
         r"its own\): write such sizes, or multiple = 8"),
        ({"latent": {**LATENT, "model": {**UNET, "multipliers": [1, 1, 1, 1]}}},
         r"data.size has 16x16, but stage.latent reads sides that are multiples of 32 \(4 of stage.vae times 8"),
        ({"latent": {**LATENT, "model": {**MODEL, "patch": 1}}, "buckets": ["16x16", "20x12"], "match": MORE["match"]},
         r"data.buckets has 20x12, but stage.match reads sides that are multiples of 8"),
        ({"buckets": ["16x18"]}, r"data.buckets has 16x18, but stage.vae needs sides that are multiples of 4"),
    ],
)  # fmt: skip
def test_what_cannot_be_in_buckets_is_refused_in_a_sentence(changes, words):
    with pytest.raises(RecipeError, match=words):
        parse_recipe(recipe_of(**changes), "wrong")


def test_a_damaged_cache_ends_in_a_sentence(run, tmp_path):
    """All tall latents are gone: others would have to stand in, which do not fit their batches."""
    whole = open_cache(run, "latent")
    split = whole.split("train")
    members = {}
    for i in range(len(split)):
        sample = split[i]
        for extension, data in sample.members.items():
            tall = extension == "latent.npy" and shapes_of(split, 0)[i].tolist() == [6, 2]
            members[f"{sample.key}.{extension}"] = data[:-8] if tall else data
    tar(tmp_path / "train.tar", members)
    broken = type(whole)(tmp_path, whole.manifest, whole.block, (type(whole.sets[0])("data", _here(tmp_path), 1.0),))
    with pytest.raises(DataError, match="broken"):
        list(islice(broken.stream("train", 4, 0).batches(), 60))


def _here(folder):
    from pipelines.data.place import Here

    return Here(folder)
