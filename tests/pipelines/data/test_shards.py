import logging
import pickle
import shutil

import numpy as np
import pytest

from pipelines.data.decode import BrokenSample
from pipelines.data.shards import open_split, order, shard_paths
from pipelines.errors import DataError, PalimpsestError

from .conftest import samples, tar


def test_order_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = [tuple(order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert np.array_equal(order(50, 1, 1), order(50, 1, 1))


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
