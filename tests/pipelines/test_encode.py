"""The cache in parts: alike for any cut and any number of processes, gone on with after a stop."""

import os
import re
import signal
import time
from contextlib import suppress

import numpy as np
import pytest
import torch

from pipelines import encode
from pipelines.artefact import ArtefactError, digest, read_json, write_json
from pipelines.cache import made_of, open_cache
from pipelines.config import parse_recipe
from pipelines.data.scenes import write
from pipelines.data.shards import open_split
from pipelines.encode import Encoding, Where
from pipelines.encoders import Encoders
from pipelines.errors import DataError, Interrupted
from pipelines.runs import Run
from pipelines.stages import run_stage
from pipelines.text_table import FirstSeen, TextTable, keys_of
from tests.conftest import finish, start
from tests.pipelines.data.conftest import samples, tar
from tests.pipelines.test_classifier_stage import STAGES
from tests.pipelines.test_distributed import on_two_ranks
from tokenizer.embed import TextEncoder

FRONT = ("bpe", "vae", "vqvae", "clip")
COUNT = 40
FAULTS = {
    "broken": ("DataError", r"^6 of 40 samples of the train split are broken, more than the 5 allowed"),
    "locked": ("PalimpsestError", r"^Another process is working on encode in .*\. Wait for it, or give another --out"),
    "full": ("ArtefactError", r"^No space left while writing .*\.tar; what was saved before is intact"),
    "unwritten": ("PermissionError", r"\.partial.*Permission denied|Permission denied.*\.partial"),
}


def recipe_of(shard=5000):
    stages = {name: STAGES[name] for name in FRONT}
    stages |= {"encode": {**STAGES["encode"], "shard": shard, "batch": 4}, "latent": STAGES["latent"]}
    return {"name": "tiny", "data": {"kind": "scenes", "size": 32, "count": COUNT}, "stage": stages}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose autoencoders and towers are trained, with a cache in one part for each split."""
    folder = tmp_path_factory.mktemp("encode")
    write(folder / "data", count=COUNT, size=32, seed=0)
    made = Run(recipe=parse_recipe(recipe_of(), "tiny"), folder=folder / "tiny", data=folder / "data")
    for name in (*FRONT, "encode"):
        run_stage(made, name)
    return made


def cut(run, tmp_path, shard=7):
    """The same run in another folder, with its cache in parts of so many samples, and no cache yet."""
    folder = tmp_path / "tiny"
    folder.mkdir(parents=True)
    for name in FRONT:
        (folder / name).symlink_to(run.folder / name)
    return Run(recipe=parse_recipe(recipe_of(shard), "tiny"), folder=folder, data=run.data)


def everything(run):
    """All samples of a cache with their embeddings, by split and key of the source."""
    cache, found = open_cache(run, "latent"), {}
    table = cache.text_table()
    for split in cache.manifest["counts"]:
        items = cache.batch(split, 10_000)
        rows = table.rows(items["caption"])
        for i, label in enumerate(items["label"]):
            arrays = [items[name][i] for name in ("latent", "codes", "text")] + [values[i] for values in rows]
            found[split, label["key"]] = (items["caption"][i], arrays)
    return found


def assert_alike(one, other):
    """The same but for rounding: batches of other sizes add up in another order."""
    assert one.keys() == other.keys()
    for key, (caption, arrays) in one.items():
        assert other[key][0] == caption
        torch.testing.assert_close(other[key][1], arrays, atol=4e-3, rtol=4e-3)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def cache_of(run):
    return open_cache(run, "latent").folder


def test_a_cache_in_parts_holds_what_one_of_a_piece_holds(run, tmp_path):
    other = cut(run, tmp_path)
    facts = run_stage(other, "encode")
    names = sorted(path.name for path in cache_of(other).glob("train-*.tar"))
    assert len(names) == -(-facts["counts"]["train"] // 7) and facts["counts"] == run.manifest("encode")["counts"]
    assert_alike(everything(run), everything(other))
    split = open_split(cache_of(other), "train")
    assert split[7].key == "train-00000007" and split.sizes[0] == 7
    texts = open_cache(other, "latent").manifest["texts"]
    assert sum(texts.values()) == len({caption for caption, _ in everything(run).values()})
    assert not (cache_of(other) / encode.FACTS).exists()


def test_an_embedding_is_the_encoders_own(run):
    cache = open_cache(run, "latent")
    captions = cache.batch("test", 4)["caption"]
    rows, own = cache.text_table().rows([*captions, captions[0]]), Encoders.load(run, "encode").text
    made = own.embed(captions)
    torch.testing.assert_close(rows.tokens[:4].float(), made.tokens.cpu(), atol=2e-3, rtol=1e-2)
    assert torch.equal(rows.mask[:4], made.mask.cpu()) and torch.equal(rows.pooled[4], rows.pooled[0])
    with pytest.raises(ArtefactError, match="holds no embedding of 'a purple cow': encode the data"):
        cache.text_table().rows([captions[0], "a purple cow"])


@pytest.mark.parametrize("part", range(0, 12, 3))
def test_a_stopped_stage_makes_no_part_twice_and_ends_with_the_same_bytes(run, tmp_path, monkeypatch, part):
    whole, other = cut(run, tmp_path / "whole"), cut(run, tmp_path / "stopped")
    run_stage(whole, "encode")
    asked, made, own = [], [], encode.write_shard

    def counted(path, samples):
        if len(made) == part and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGTERM))
        own(path, samples)
        made.append(path.name)

    monkeypatch.setattr(encode, "write_shard", counted)
    with pytest.raises(Interrupted, match="what is encoded stays"):
        run_stage(other, "encode")
    assert asked == [None] and len(made) == part and not other.finished("encode")
    run_stage(other, "encode")
    assert len(made) == len(set(made)) and files(cache_of(other)) == files(cache_of(whole))


def test_a_stop_between_captions_keeps_the_samples_and_the_embeddings_that_stand(run, tmp_path, monkeypatch):
    whole, other = cut(run, tmp_path / "whole"), cut(run, tmp_path / "stopped")
    run_stage(whole, "encode")
    embed, seen = TextEncoder.embed, []

    def stopping(self, captions):
        seen.extend(captions)
        os.kill(os.getpid(), signal.SIGTERM)
        return embed(self, captions)

    monkeypatch.setattr(TextEncoder, "embed", stopping)
    with pytest.raises(Interrupted, match="what is encoded stays"):
        run_stage(other, "encode")
    first = list(seen)
    monkeypatch.setattr(TextEncoder, "embed", lambda self, captions: (seen.extend(captions), embed(self, captions))[1])
    monkeypatch.setattr(encode, "write_shard", lambda *_: pytest.fail("a part that stood was made again"))
    run_stage(other, "encode")
    assert first and len(seen) == len(set(seen)) and files(cache_of(other)) == files(cache_of(whole))


@pytest.mark.slow
def test_two_processes_make_the_bytes_of_one_behind_a_killed_one_and_each_fault_ends_both(run, tmp_path):
    whole, other = cut(run, tmp_path / "whole", 3), cut(run, tmp_path / "two", 3)
    run_stage(whole, "encode")
    write_json(tmp_path / "recipe.json", {"recipe": recipe_of(3)})
    words = ("train", "encode", tmp_path / "recipe.json", "--out", tmp_path / "two", "--data", run.data)
    process = start(*words)
    while not any((other.folder / "cache").glob("*/.parts/train-000001.json")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.kill()
    process.communicate()
    tar(
        tmp_path / "bad" / "train.tar", samples(40, broken=set(range(9, 12)) | set(range(15, 18)))
    )  # parts of the second
    on_two_ranks(tmp_path / "recipe.json", tmp_path / "two", run.data, tmp_path / "bad", of="tests.pipelines.faults")
    (first, made), (second, more) = (read_json(tmp_path / "two" / f"met-{rank}.json") for rank in (0, 1))
    assert {*first} == {*second} == {*FAULTS, "crashed"}  # at the end both go on
    for fault, (kind, said) in FAULTS.items():
        assert all(re.search(said, met[fault][1]) for met in (first, second)), (first, second)
        assert {first[fault][0], second[fault][0]} <= {kind, "PalimpsestError"}
    assert second["crashed"] == ["RuntimeError", "the decoder is out of memory"]
    assert first["crashed"] == ["PalimpsestError", "RuntimeError: the decoder is out of memory"]
    # those of the first process, and of the second those before it had too many
    assert {f"train-{i:06d}.json" for i in (0, 1, 2, 3, 4)} <= {
        path.name for path in (tmp_path / "two").glob("bad/*/*")
    }
    assert more and len({*made, *more}) == len([*made, *more])  # what stands is never made again
    assert files(cache_of(other)) == files(cache_of(whole))
    assert "encode is finished" in finish(*words)


def test_more_broken_samples_than_may_be_are_refused_though_no_part_has_too_many(run, tmp_path):
    data = tmp_path / "data"
    tar(data / "train.tar", samples(40, broken={3, 9, 13, 17, 22, 27, 33}))
    other = cut(run, tmp_path)
    stage = other.recipe.stage["encode"]
    encoders = Encoders.load(run, "encode")
    opened = {Where("", "train"): open_split(data, "train")}
    with pytest.raises(DataError, match="6 of 40 samples of the train split are broken, more than the 5 allowed"):
        Encoding(tmp_path / "one", opened, encoders, 32, stage).make("encode")
    for _ in range(3):  # each goes on behind the part that ended the one before
        with suppress(DataError):
            Encoding(tmp_path / "one", opened, encoders, 32, stage).make("encode")
    with pytest.raises(DataError, match="7 of 40 samples of the train split are broken"):
        Encoding(tmp_path / "one", opened, encoders, 32, stage).finish()


def test_a_part_without_a_usable_sample_leaves_no_shard(run, tmp_path):
    data = tmp_path / "data"
    tar(data / "train.tar", samples(21, empty=set(range(7, 14))))
    opened = {Where("", "train"): open_split(data, "train")}
    encoders, stage = Encoders.load(run, "encode"), cut(run, tmp_path).recipe.stage["encode"]
    work = Encoding(tmp_path / "one", opened, encoders, 32, stage)
    work.make("encode")
    made = work.finish()
    assert made["counts"] == {"train": 14} and made["skipped_samples"] == {"train": 7}
    assert sorted(name for name in made["files"] if name.endswith(".tar")) == ["train-000000.tar", "train-000002.tar"]
    assert len(open_split(work.folder, "train")) == 14


def test_first_seen_gives_each_caption_one_row_in_the_order_in_which_they_come(tmp_path):
    words = np.random.default_rng(0).integers(0, 300, 1000)
    parts = [list(dict.fromkeys(f"caption {word}" for word in words[i : i + 100])) for i in range(0, 1000, 100)]
    first, seen, sizes, numbers = FirstSeen([keys_of(part) for part in parts]), [], {}, {}
    for i, part in enumerate(parts):
        new = [part[place] for place in first.of(i)]
        assert new == [caption for caption in part if caption not in seen]
        numbers |= {caption: len(seen) + place for place, caption in enumerate(new)}
        seen += new
        sizes[f"train-{i:06d}"] = len(new)
        if new:
            rows = torch.tensor([numbers[caption] for caption in new])
            encode.save_weights(
                tmp_path / f"train-{i:06d}.text.safetensors",
                {"tokens": rows[:, None, None].half(), "mask": rows[:, None] > 5, "pooled": rows[:, None].half()},
            )
    first.write(tmp_path)
    table = TextTable(tmp_path, {name: size for name, size in sizes.items() if size})
    asked = [f"caption {word}" for word in words[::-1]]
    found = table.rows(asked)
    assert found.pooled.flatten().tolist() == [numbers[caption] for caption in asked]
    assert found.tokens.shape == (1000, 1, 1) and found.mask.dtype == torch.bool


def test_a_cache_of_another_version_is_refused(run, tmp_path):
    other = cut(run, tmp_path)
    run_stage(other, "encode")
    path = cache_of(other) / "manifest.json"
    write_json(path, {**read_json(path), "format": 1})
    with pytest.raises(ArtefactError, match="written by another version"):
        open_cache(other, "latent")


def test_a_cache_of_squares_is_named_by_what_named_it_before_there_were_buckets(run):
    made = made_of(run, "encode")
    assert list(made) == ["format", "data", "size", "shard", "vae", "vqvae", "bpe", "clip"] and made["format"] == 2
    assert cache_of(run).name == digest(made)[:16]


def test_a_table_maps_its_files_and_does_not_read_them(tmp_path):
    """64 rows of 200 MB."""
    captions = [f"caption {i}" for i in range(25_000)]
    FirstSeen([keys_of(captions)]).write(tmp_path)
    rows = {
        "tokens": torch.zeros(25_000, 16, 256).half(),
        "mask": torch.ones(25_000, 16) > 0,
        "pooled": torch.zeros(25_000, 8).half(),
    }
    encode.save_weights(tmp_path / "train-000000.text.safetensors", rows)
    del rows
    before = resident()
    table = TextTable(tmp_path, {"train-000000": 25_000})
    table.rows(captions[:64])
    assert resident() - before < 40


def resident():
    """Megabytes that are this process's alone: mapped files are not."""
    lines = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
    return int(lines["RssAnon"].split()[0]) / 1024
