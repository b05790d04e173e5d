import logging
from itertools import chain, islice

import numpy as np
import pytest
import torch

from pipelines.data.decode import BrokenSample, caption_only, image_and_caption
from pipelines.data.shards import open_split
from pipelines.data.stream import Stream, once, some
from pipelines.errors import DataError

from .conftest import samples, tar

DECODE = image_and_caption(16)


@pytest.fixture
def folder(tmp_path):
    tar(tmp_path / "train-000000.tar", samples(13))
    tar(tmp_path / "train-000001.tar", samples(8, prefix="t"))
    return tmp_path


def keys(stream, batches, cursor=0):
    return [batch["key"] for batch, _ in islice(stream.batches(cursor), batches)]


def flat(lists):
    return list(chain.from_iterable(lists))


def stream_of(folder, **settings):
    return Stream(split=open_split(folder, "train"), **{"decode": DECODE, "batch": 4, "seed": 0, **settings})


def test_a_resumed_stream_equals_the_uninterrupted_one(folder):
    whole = list(islice(stream_of(folder).batches(), 17))  # three epochs
    for done in (1, 5, 6, 16):
        cursor = whole[done - 1][1]
        for (a, a_next), (b, b_next) in zip(whole[done:], stream_of(folder).batches(cursor), strict=False):
            assert a_next == b_next and a["key"] == b["key"] and torch.equal(a["image"], b["image"])


def test_a_resumed_stream_equals_the_uninterrupted_one_with_broken_samples(tmp_path):
    tar(tmp_path / "train.tar", samples(20, broken={3, 4, 11}, empty={7}))
    whole = list(islice(stream_of(tmp_path).batches(), 12))
    for done in range(1, 12):
        resumed = keys(stream_of(tmp_path), 12 - done, whole[done - 1][1])
        assert resumed == [batch["key"] for batch, _ in whole[done:]]


def test_each_epoch_shows_every_sample_once_in_the_order_of_its_seed(folder):
    split = open_split(folder, "train")
    seen = flat(keys(stream_of(folder, batch=3, seed=9), 14))
    for epoch in (0, 1):
        expected = [split[int(i)].key for i in np.random.default_rng((9, epoch)).permutation(21)]
        assert seen[21 * epoch : 21 * (epoch + 1)] == expected
    assert seen != flat(keys(stream_of(folder, batch=3, seed=8), 14))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_each_batch_and_see_each_sample_once(folder, world):
    alone = keys(stream_of(folder), 21)
    ranks = [keys(stream_of(folder, rank=rank, world=world), 21) for rank in range(world)]
    assert [flat(parts) for parts in zip(*ranks, strict=True)] == alone


def test_ranks_keep_their_step_when_samples_are_broken(tmp_path):
    tar(tmp_path / "train.tar", samples(20, broken={0, 1, 2}))
    for rank in (0, 1):
        stream = stream_of(tmp_path, rank=rank, world=2)
        assert [(len(b["key"]), cursor) for b, cursor in islice(stream.batches(), 10)] == [
            (2, 4 * k) for k in range(1, 11)
        ]


def test_workers_change_nothing_in_what_is_read(tmp_path):
    tar(tmp_path / "train.tar", samples(20, broken={3, 4}, empty={5}))
    stream = stream_of(tmp_path, workers=2)
    assert keys(stream, 11, cursor=8) == keys(stream_of(tmp_path), 11, cursor=8)
    assert set(stream.skipped.broken) == {3, 4} and set(stream.skipped.empty) == {5}


def test_batches_stack_pictures_and_list_captions(folder):
    batch, cursor = next(stream_of(folder).batches())
    assert cursor == 4
    assert batch["image"].shape == (4, 3, 16, 16) and batch["image"].dtype == torch.float32
    assert len(batch["caption"]) == len(batch["label"]) == 4


def test_broken_samples_are_skipped_counted_and_named(tmp_path, caplog):
    tar(tmp_path / "train.tar", samples(20, broken={3, 11}))
    stream = stream_of(tmp_path)
    with caplog.at_level(logging.WARNING, "palimpsest"):
        seen = flat(keys(stream, 10))
    assert not {"s003", "s011"} & set(seen)
    assert set(stream.skipped.broken) == {3, 11}
    assert caplog.text.count("s003 in train.tar: unreadable picture") == 1  # once, though two epochs met it


def test_the_run_fails_once_more_than_the_stated_share_is_broken(tmp_path):
    tar(tmp_path / "train.tar", samples(100, broken=set(range(7))))
    with pytest.raises(DataError, match=r"6 of 100 samples .* than the 5 allowed; the last is s00\d in train\.tar"):
        keys(stream_of(tmp_path), 30)
    keys(stream_of(tmp_path, max_broken=0.07), 30)


def test_a_split_of_broken_samples_fails_at_once_instead_of_hanging(tmp_path):
    tar(tmp_path / "train.tar", samples(3, broken={0, 1, 2}))
    with pytest.raises(DataError, match="No usable sample"):
        keys(stream_of(tmp_path), 1)
    with pytest.raises(DataError, match="No usable sample"):
        list(once(open_split(tmp_path, "train"), DECODE, batch=2))


def test_empty_captions_are_skipped_and_counted_but_are_no_damage(tmp_path):
    tar(tmp_path / "train.tar", samples(20, empty=set(range(15))))
    stream = stream_of(tmp_path)
    assert set(flat(keys(stream, 10))) == {f"s{i:03d}" for i in range(15, 20)}
    assert len(stream.skipped.empty) == 15 and not stream.skipped.broken
    with_all = stream_of(tmp_path, decode=image_and_caption(16, needs_caption=False))
    assert len(set(flat(keys(with_all, 5)))) == 20


def test_a_split_of_empty_captions_says_so(tmp_path):
    tar(tmp_path / "train.tar", samples(4, empty={0, 1, 2, 3}))
    with pytest.raises(DataError, match="4 have an empty caption"):
        keys(stream_of(tmp_path), 1)


def test_some_gives_no_sample_twice_and_depends_on_the_seed(tmp_path):
    tar(tmp_path / "train.tar", samples(20, broken={3}, empty={4, 5, 6}))
    split = open_split(tmp_path, "train")
    drawn = some(split, caption_only, 20, seed=0)["key"]
    usable = some(split, DECODE, 20, seed=0)["key"]
    assert len(drawn) == len(set(drawn)) == 17 and len(usable) == len(set(usable)) == 16
    assert some(split, DECODE, 5, seed=0)["key"] == usable[:5] != some(split, DECODE, 5, seed=1)["key"]


def test_once_reads_in_order_with_a_short_last_batch(folder):
    split = open_split(folder, "train")
    batches = list(once(split, caption_only, batch=8))
    assert [len(batch["key"]) for batch in batches] == [8, 8, 5]
    assert flat(batch["key"] for batch in batches) == [split[i].key for i in range(21)]
    assert [len(batch["key"]) for batch in once(split, caption_only, batch=8, count=10)] == [8, 2]


def test_a_decoder_that_refuses_everything_is_an_error_and_not_a_hang(folder):
    def refuse(sample):
        raise BrokenSample(f"{sample.key} is refused")

    with pytest.raises(DataError, match="is refused"):
        keys(stream_of(folder, decode=refuse), 1)


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(folder):
    with pytest.raises(DataError, match="batch of 4 does not divide over 3"):
        stream_of(folder, world=3)
