"""Sets of pictures from anywhere: order, captions, hashes, and what is wrong with them."""

import json

import numpy as np
import pytest
from PIL import Image

from pipelines.data.scenes import write
from pipelines.errors import DataError
from pipelines.scoring.sets import open_set


def fill(folder, names, *, size=(8, 6), seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return folder


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    fill(tmp_path, ["b.png", "a.png", "c/d.webp"])
    found = open_set(tmp_path)
    assert [found.name(i) for i in range(len(found))] == ["a.png", "b.png", "c/d.webp"]
    assert found.captions() is None and found.one_shape() == (8, 6)
    assert np.array_equal(found.read(0), np.asarray(Image.open(tmp_path / "a.png")))


def test_the_hash_is_of_names_and_bytes_and_of_what_is_taken(tmp_path):
    first = open_set(fill(tmp_path / "x", ["a.png", "b.png"]))
    again = open_set(fill(tmp_path / "y", ["a.png", "b.png"]))
    other = open_set(fill(tmp_path / "z", ["a.png", "b.png"], seed=1))
    assert first.sha256 == again.sha256 != other.sha256
    assert len({first.sha256, first.at([0]).sha256, first.at([1]).sha256, first.fitted(4, 4).sha256}) == 4
    assert first.some(2, 0) is first and first.some(1, 0).sha256 == again.some(1, 0).sha256
    assert first.fitted(4, 4).one_shape() == (4, 4)


@pytest.mark.parametrize("how", ["txt", "json", "jsonl", "csv", "geneval"])
def test_captions_come_from_wherever_people_keep_them(tmp_path, how):
    names = ["00000/samples/0000.png", "00000/samples/0001.png", "00001/samples/0000.png"]
    names = names if how == "geneval" else ["a.png", "b.png", "c.png"]
    words = ["a star", "a star", "two  <b>rings</b>"] if how == "geneval" else ["a star", "a ring", "two  rings"]
    fill(tmp_path, names)
    for name, caption in zip(names, words, strict=True):
        path = tmp_path / name
        if how == "txt":
            path.with_suffix(".txt").write_text(caption)
        elif how == "json":
            path.with_suffix(".json").write_text(json.dumps({"prompt": caption}))
        elif how == "geneval":
            (path.parent.parent / "metadata.jsonl").write_text(json.dumps({"prompt": caption}) + "\n")
    rows = zip(names, words, strict=True)
    if how == "jsonl":
        lines = [json.dumps({"file": name, "caption": caption}) for name, caption in rows]
        (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    if how == "csv":
        (tmp_path / "captions.csv").write_text("file,caption\n" + "\n".join(f"{n},{c}" for n, c in rows))
    assert open_set(tmp_path).captions() == [" ".join(caption.split()) for caption in words]


def test_missing_extra_and_doubled_pictures_are_named(tmp_path):
    fill(tmp_path / "made", ["a.png", "b.png"])
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("file,caption\na.png,one\nb.png,two\nc.png,three\n")
    with pytest.raises(DataError, match=r"1 of 3 pictures that .*prompts\.csv names are missing: c\.png"):
        open_set(tmp_path / "made", prompts=prompts)
    prompts.write_text("file,caption\na.png,one\n")
    with pytest.raises(DataError, match=r"1 of 2 pictures have no caption in .*: b\.png"):
        open_set(tmp_path / "made", prompts=prompts)
    prompts.write_text("file,caption\na.png,one\na.png,two\nb.png,three\n")
    with pytest.raises(DataError, match=r"line 3: a\.png comes a second time"):
        open_set(tmp_path / "made", prompts=prompts)
    prompts.write_text("file,caption\na.png,one\nb.png, \n")
    with pytest.raises(DataError, match="line 3: no caption"):
        open_set(tmp_path / "made", prompts=prompts)
    (tmp_path / "made" / "a.txt").write_text("one")
    with pytest.raises(DataError, match=r"1 of 2 pictures have no caption in .*made: b\.png"):
        open_set(tmp_path / "made")
    (tmp_path / "made" / "b.json").write_text('{"prompt": "two"}')
    assert open_set(tmp_path / "made").captions() == ["one", "two"]  # each from what lies beside it
    (tmp_path / "made" / "c.txt").write_text("three")
    with pytest.raises(DataError, match=r"1 captions of .*made have no picture: c\.txt"):
        open_set(tmp_path / "made")
    with pytest.raises(DataError, match="no list of captions"):
        open_set(tmp_path / "made", prompts=tmp_path / "nothing.csv")


def test_what_is_no_picture_is_an_error_that_names_it(tmp_path):
    fill(tmp_path, ["a.png"])
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"b\.png: unreadable picture"):
        open_set(tmp_path).read(1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures and no shards"):
        open_set(tmp_path / "empty")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    fill(tmp_path / "x", ["a.png"])
    fill(tmp_path / "y", ["b.png"])
    (tmp_path / "y" / "c.png").symlink_to(tmp_path / "x" / "a.png")
    with pytest.raises(DataError, match=r"c\.png: links that lead out"):
        open_set(tmp_path / "y")


def test_shards_are_a_set_with_captions(tmp_path):
    write(tmp_path / "scenes", count=20, size=32, seed=1)
    train, test = (open_set(tmp_path / "scenes", split=split) for split in ("train", "test"))
    assert len(train) == 20 and train.one_shape() == (32, 32) and train.sha256 != test.sha256
    assert all(train.captions() or []) and train.split == "train"
    with pytest.raises(DataError, match="which have their own"):
        open_set(tmp_path / "scenes", prompts=tmp_path / "a.csv")
