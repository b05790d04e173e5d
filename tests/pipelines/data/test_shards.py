import logging
import multiprocessing
import os
import pickle
import shutil

import pytest

from pipelines.data import place, shards, summary
from pipelines.data.decode import BrokenSample
from pipelines.data.index import cache_of
from pipelines.data.shards import open_split, shard_paths
from pipelines.errors import DataError, PalimpsestError

from .conftest import samples, tar


def test_a_split_reads_every_sample_of_its_shards_in_order(tmp_path):
    tar(tmp_path / "set-train-000001.tar", samples(3, prefix="b"))
    tar(tmp_path / "set-train-000000.tar", samples(4, prefix="a"))
    tar(tmp_path / "latest-set.tar", samples(2))
    split = open_split(tmp_path, "train")
    assert [split[i].key for i in range(len(split))] == ["a000", "a001", "a002", "a003", "b000", "b001", "b002"]
    assert split[5].members["txt"] == b"number 1"
    assert pickle.loads(pickle.dumps(split))[5] == split[5]
    assert shard_paths(tmp_path, "test") == []  # "latest" holds the letters, not the word
    with pytest.raises(IndexError):
        split[7]


def test_captions_leave_out_the_empty_ones(tmp_path):
    tar(tmp_path / "train.tar", samples(4, empty={2}))
    assert list(open_split(tmp_path, "train").captions()) == ["number 0", "number 1", "number 3"]


def test_the_digest_changes_with_the_content(scenes_folder, tmp_path):
    tar(tmp_path / "train.tar", samples(4))
    first = open_split(tmp_path, "train").digest()
    assert open_split(tmp_path, "train").digest() == first
    tar(tmp_path / "train.tar", samples(5))
    assert open_split(tmp_path, "train").digest() != first
    assert open_split(scenes_folder, "train").digest() != open_split(scenes_folder, "test").digest()


def test_a_shard_that_lost_samples_which_its_manifest_promises_is_refused(scenes_folder, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(scenes_folder, folder)
    shard = next(folder.glob("train-*.tar"))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match=r"train shards .* lost \d+ of 120 samples, more than 1%: copy them again"):
        open_split(folder, "train")
    assert len(open_split(folder, "test")) > 0


def test_a_missing_folder_names_itself_and_the_remedy(tmp_path):
    with pytest.raises(PalimpsestError, match=r"No data folder .*nowhere: make one with `palimpsest data scenes"):
        open_split(tmp_path / "nowhere", "train")


def test_a_folder_without_shards_of_the_split_names_the_pattern_and_the_remedy(tmp_path):
    tar(tmp_path / "test-000000.tar", samples(2))
    with pytest.raises(DataError, match=r"No train shards in .*\*train\*\.tar, found test-000000\.tar.*palimpsest"):
        open_split(tmp_path, "train")


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="found nothing"):
        open_split(tmp_path, "train")


def test_shards_without_a_readable_sample_are_an_error(tmp_path):
    (tmp_path / "train.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"hold no readable sample.*palimpsest data check"):
        open_split(tmp_path, "train")


def test_a_truncated_shard_is_named_in_the_log_and_its_samples_are_used(tmp_path, caplog):
    path = tar(tmp_path / "train.tar", samples(10))
    path.write_bytes(path.read_bytes()[:6000])
    with caplog.at_level(logging.WARNING, "palimpsest"):
        split = open_split(tmp_path, "train")
    assert 0 < len(split) < 10
    assert "train.tar" in caplog.text and "readable samples are used" in caplog.text


def test_a_shard_that_shrinks_while_it_is_read_breaks_its_samples_only(tmp_path):
    path = tar(tmp_path / "train.tar", samples(10))
    split = open_split(tmp_path, "train")
    path.write_bytes(path.read_bytes()[:4000])
    assert split[0].key == "s000"
    with pytest.raises(BrokenSample, match="changed while it was read"):
        split[9]


def test_a_shard_that_vanishes_breaks_its_samples_only_and_they_have_names(tmp_path):
    for number in range(2):
        tar(tmp_path / f"train-{number}.tar", samples(5, prefix="st"[number]))
    split = open_split(tmp_path, "train")
    (tmp_path / "train-1.tar").unlink()
    assert [split[i].key for i in range(5)] == [f"s00{i}" for i in range(5)]
    with pytest.raises(BrokenSample, match="cannot read"):
        split[7]
    assert split.name_of(7) == "t002 in train-1.tar"
    shutil.rmtree(tmp_path / ".index")
    again = pickle.loads(pickle.dumps(split))
    with pytest.raises(BrokenSample, match="cannot read"):
        again[7]
    assert again.name_of(7) == "sample 2 in train-1.tar"


@pytest.mark.parametrize("cached", [True, False])
def test_a_shard_that_becomes_another_after_opening_gives_no_sample_that_was_not_there(tmp_path, cached):
    path = tar(tmp_path / "train.tar", samples(10))
    split = open_split(tmp_path, "train")
    tar(path, samples(20, prefix="other"))
    if cached:
        assert len(open_split(tmp_path, "train")) == 20  # another process has indexed it
    else:
        shutil.rmtree(tmp_path / ".index")
    with pytest.raises(BrokenSample, match="not the file that was opened"):
        split[3]


def test_opening_again_reads_the_summary_alone(tmp_path, monkeypatch):
    for number in range(3):
        tar(tmp_path / f"train-{number}.tar", samples(2 + number, prefix="stu"[number]))
    tar(tmp_path / "test-0.tar", samples(1))
    (tmp_path / "train-1.tar").write_bytes((tmp_path / "train-1.tar").read_bytes()[: 3 * 2048])  # no end mark
    first, test = open_split(tmp_path, "train"), open_split(tmp_path, "test")
    with monkeypatch.context() as patch:
        patch.setattr(summary, "index_shard", lambda *_: pytest.fail("a shard was indexed"))
        again, tested = open_split(tmp_path, "train"), open_split(tmp_path, "test")
        assert again.digest() == first.digest() and tested.digest() == test.digest() != first.digest()
    assert again.sizes.tolist() == first.sizes.tolist() == [2, 3, 4]
    assert list(again.shards.damage) == ["train-1.tar"]
    tar(tmp_path / "train-2.tar", samples(9))
    assert open_split(tmp_path, "train").sizes.tolist() == [2, 3, 9]


@pytest.mark.parametrize("place", [0, 40, 500, -40, -1])
def test_a_summary_with_one_changed_bit_is_made_anew(tmp_path, place):
    tar(tmp_path / "train.tar", samples(3))
    first = open_split(tmp_path, "train").digest()
    path = tmp_path / ".index/folder"
    whole = path.read_bytes()
    path.write_bytes(bytes(byte ^ (i == place % len(whole)) for i, byte in enumerate(whole)))
    assert open_split(tmp_path, "train").digest() == first
    assert path.read_bytes() == whole


def test_a_summary_that_says_too_much_of_a_shard_harms_none_of_its_samples(tmp_path):
    """An index of another file under the right size and time is not believed."""
    path = tar(tmp_path / "train.tar", samples(3))
    stamp = path.stat()
    open_split(tmp_path, "train")
    tar(path, samples(3, prefix="t"))
    os.utime(path, ns=(0, stamp.st_mtime_ns))
    assert path.stat().st_size == stamp.st_size
    cache_of(path).unlink()
    with pytest.raises(BrokenSample, match="not the file that was opened"):
        open_split(tmp_path, "train")[0]


def test_a_folder_that_is_read_only_is_indexed_in_memory(tmp_path):
    for number in range(2):
        tar(tmp_path / f"data/train-{number}.tar", samples(5, prefix="st"[number]))
    (tmp_path / "data").chmod(0o555)
    split = pickle.loads(pickle.dumps(open_split(tmp_path / "data", "train")))
    assert [split[i].key for i in (0, 9, 4)] == ["s000", "t004", "s004"]
    assert sorted(os.listdir(tmp_path / "data")) == ["train-0.tar", "train-1.tar"]
    (tmp_path / "data").chmod(0o755)


def test_many_processes_may_index_a_folder_at_once(tmp_path):
    for number in range(8):
        tar(tmp_path / f"train-{number}.tar", samples(12, prefix="stuvwxyz"[number]))
    with multiprocessing.get_context("fork").Pool(6) as pool:
        digests = pool.map(_digest, [tmp_path] * 12)
    assert len(set(digests)) == 1
    assert sorted(path.name for path in (tmp_path / ".index").iterdir()) == [
        "folder", *(f"train-{number}.tar.index" for number in range(8))
    ]  # fmt: skip


def _digest(folder):
    split = open_split(folder, "train")
    assert [split[i].key for i in range(0, 96, 12)] == [f"{prefix}000" for prefix in "stuvwxyz"]
    return split.digest()


def test_open_files_and_indices_are_few_and_are_found_again(tmp_path, monkeypatch):
    for number in range(7):
        tar(tmp_path / f"train-{number}.tar", samples(2, prefix="stuvwxy"[number]))
    split = open_split(tmp_path, "train")
    for module in (shards, place):
        monkeypatch.setattr(module, "BLOCK", 1)
    split = pickle.loads(pickle.dumps(split))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert [split[i].key[0] for i in range(0, 14, 2)] == list("stuvwxy")
        assert len(os.listdir("/proc/self/fd")) == before + 2
    split.hold(7)
    assert [split[i].key[0] for i in range(0, 14, 2)] == list("stuvwxy")
    assert len(os.listdir("/proc/self/fd")) == before + 7
    del split
    assert len(os.listdir("/proc/self/fd")) == before
