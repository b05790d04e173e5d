import json
import tarfile
from itertools import pairwise

import numpy as np
import pytest

from pipelines.artefact import fingerprint
from pipelines.data.grammar import BACKGROUNDS, COLOURS, SHAPES, SIZES, Item, Label, for_size
from pipelines.data.scenes import DIAMETERS, OUTLINES, render, scene, write
from pipelines.errors import DataError


def inked(label, item, size):
    """Pixels of one object drawn alone on its background."""
    alone = Label(background=label["background"], objects=[item], relation=None)
    pixels = np.asarray(render(alone, size)).astype(int)
    return np.abs(pixels - np.array(BACKGROUNDS[label["background"]])).sum(-1) > 0


def extent(mask):
    rows, columns = np.nonzero(mask)
    return {"left of": (columns.min(), columns.max()), "above": (rows.min(), rows.max())}


@pytest.mark.parametrize("size", [32, 64])
def test_objects_never_touch_each_other_and_the_relation_holds(size):
    for index in range(250):
        label, _ = scene(size, 0, "train", index)
        masks = [inked(label, item, size) for item in label["objects"]]
        for mask in masks:
            assert mask.any()
        for a, b in pairwise(masks):
            assert not (a & b).any()
            first, second = (a, b) if label["relation"] in ("left of", "above") else (b, a)
            axis = "left of" if label["relation"] in ("left of", "right of") else "above"
            assert extent(first)[axis][1] < extent(second)[axis][0]


@pytest.mark.parametrize("size", [32, 64])
def test_no_object_is_cut_by_the_border(size):
    most = 2 if size == 32 else 3
    widest = max(abs(value) for outline in OUTLINES.values() for point in outline for value in point)
    for index in range(500):
        for item in scene(size, 1, "unseen", index)[0]["objects"]:
            reach = max(1, widest) * DIAMETERS[most][item["size"]] / 2
            assert reach <= min(item["x"], item["y"]) and max(item["x"], item["y"]) <= 1 - reach


def test_colours_differ_from_each_other_and_from_every_background():
    colours, grounds = list(COLOURS.values()), list(BACKGROUNDS.values())
    pairs = [(a, b) for a in colours for b in colours + grounds if a != b]
    assert min(np.linalg.norm(np.subtract(a, b)) for a, b in pairs) > 100


@pytest.mark.parametrize("small", SIZES)
def test_shapes_can_be_told_apart_at_their_size(small):
    masks = {}
    for shape in SHAPES:
        item = Item(shape=shape, colour="black", size=small, x=0.5, y=0.5)
        masks[shape] = inked(Label(background="sky", objects=[item], relation=None), item, 32)
    names = list(masks)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            overlap = (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum()
            assert overlap < 0.92, (a, b)


def test_a_scene_is_a_function_of_seed_split_and_index():
    assert scene(32, 5, "train", 7) == scene(32, 5, "train", 7)
    others = [scene(32, 6, "train", 7), scene(32, 5, "test", 7), scene(32, 5, "train", 8), scene(32, 5, "unseen", 7)]
    assert scene(32, 5, "train", 7)[0]["objects"] not in [label["objects"] for label, _ in others]


def test_write_gives_the_same_bytes_twice_and_others_for_another_seed(tmp_path):
    first = write(tmp_path / "a", count=12, size=32, seed=0)
    assert write(tmp_path / "b", count=12, size=32, seed=0) == first
    other = write(tmp_path / "c", count=12, size=32, seed=1)
    assert other["shards"] != first["shards"]
    assert (tmp_path / "a/train-000000.tar").read_bytes() == (tmp_path / "b/train-000000.tar").read_bytes()


def test_manifest_names_counts_hashes_and_exact_entropy(scenes_folder):
    manifest = json.loads((scenes_folder / "manifest.json").read_text())
    assert manifest["counts"] == {"train": 120, "test": 12, "unseen": 8}
    assert manifest["caption_entropy_nats"] == for_size(32).entropy()
    for name, entry in manifest["shards"].items():
        assert {k: entry[k] for k in ("bytes", "sha256")} == fingerprint(scenes_folder / name)


def test_members_are_the_picture_its_caption_and_its_label(scenes_folder):
    grammar = for_size(32)
    with tarfile.open(scenes_folder / "unseen-000000.tar") as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}
    assert len(files) == 3 * 8
    for name, data in files.items():
        if name.endswith(".json"):
            label = json.loads(data)
            caption = files[name.replace(".json", ".txt")].decode()
            bare = [{k: item[k] for k in ("shape", "colour", "size")} for item in label["objects"]]
            assert label["split"] == "unseen" and grammar.violations(label)
            assert grammar.parse(caption) == {
                "background": label["background"], "objects": bare, "relation": label["relation"]
            }  # fmt: skip
            assert all(0 < item["x"] < 1 and 0 < item["y"] < 1 for item in label["objects"])


def test_write_again_keeps_what_is_there_and_refuses_other_content(scenes_folder, tmp_path):
    before = (scenes_folder / "train-000000.tar").stat().st_mtime_ns
    write(scenes_folder, count=120, size=32, seed=3)
    assert (scenes_folder / "train-000000.tar").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="not an empty folder"):
        write(scenes_folder, count=121, size=32, seed=3)


def test_a_full_disk_leaves_nothing_behind_and_says_so(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("webdataset.writer.TarWriter.write", full)
    with pytest.raises(DataError, match=r"No space left on device.*Free space"):
        write(tmp_path / "out", count=12, size=32, seed=0)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("count", "size", "flag"), [(0, 32, "--count"), (10, 33, "--size"), (10, 8, "--size")])
def test_arguments_out_of_range_are_named(tmp_path, count, size, flag):
    with pytest.raises(DataError, match=flag):
        write(tmp_path / "out", count=count, size=size, seed=0)
