import pickle
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.decode import Sample
from pipelines.data.order import Shuffle
from pipelines.data.stream import Stream

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


class Numbered:
    """A split of given sizes without any bytes: the key of a sample is its number."""

    name = "train"

    def __init__(self, sizes):
        self.sizes = np.asarray(sizes)

    def __len__(self):
        return int(self.sizes.sum())

    def __getitem__(self, i):
        return Sample(key=str(i), members={})

    def hold(self, at_once):
        self.at_once = at_once

    def ahead(self, shards):
        self.announced = [*getattr(self, "announced", []), shards]


def number_of(sample):
    return {"number": int(sample.key)}


def epoch_of(shuffle, epoch=0):
    return [shuffle.number(position) for position in range(epoch * len(shuffle), (epoch + 1) * len(shuffle))]


def stream_of(split, *, block, **settings):
    order = Shuffle(split.sizes, 3, block)
    return Stream(split=split, decode=number_of, order=order, **settings)


def batches_of(stream, count, cursor=0):
    return [batch["number"] for batch, _ in islice(stream.batches(cursor), count)]


@settings(deadline=None)
@given(SIZES, st.integers(1, 15), st.integers(0, 3), st.integers(0, 2**40))
def test_an_epoch_shows_every_sample_once_whatever_the_block(sizes, block, seed, epoch):
    assert sorted(epoch_of(Shuffle(sizes, seed, block), epoch)) == list(range(sum(sizes)))


@settings(deadline=None)
@given(SIZES, st.integers(1, 15), st.data())
def test_a_number_depends_on_nothing_but_seed_and_position(sizes, block, data):
    used = Shuffle(sizes, 1, block)
    whole = [*epoch_of(used, 0), *epoch_of(used, 1)]
    for position in data.draw(st.permutations(range(len(whole)))):
        assert used.number(position) == whole[position]
    assert pickle.loads(pickle.dumps(used)).number(len(whole) - 1) == whole[-1]
    assert Shuffle(sizes, 1, block).number(len(whole) - 1) == whole[-1]


@pytest.mark.parametrize("block", [3, 4, 99])
def test_a_block_of_all_shards_is_one_permutation_of_all_samples(block):
    for epoch in (0, 5):
        found = epoch_of(Shuffle([5, 9, 7], 4, block), epoch)
        assert found == np.random.default_rng((4, epoch)).permutation(21).tolist()


def test_a_block_holds_the_samples_of_so_many_shards_and_no_others():
    sizes, block = [10] * 12, 4
    found = np.array(epoch_of(Shuffle(sizes, 0, block), 2)).reshape(3, 40) // 10
    groups = [set(part.tolist()) for part in found]
    assert [len(group) for group in groups] == [4, 4, 4] and set.union(*groups) == set(range(12))
    assert Shuffle(sizes, 0, block).at_once == 4 and Shuffle(sizes, 0, 99).at_once == 12


def test_orders_differ_with_seed_and_epoch_and_groups_are_shuffled_unalike():
    sizes = [50] * 8
    orders = [tuple(epoch_of(Shuffle(sizes, seed, 4), epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    shuffle = Shuffle([50] * 8, 0, 1)
    places = {tuple(np.array(epoch_of(shuffle)[start : start + 50]) % 50) for start in range(0, 400, 50)}
    assert len(places) == 8
    shards = np.array(epoch_of(Shuffle([8] * 8, 0, 1))).reshape(8, 8) // 8
    assert tuple(shards[:, 0]) not in {tuple(np.array(epoch_of(Shuffle([8] * 8, 0, 1))[i : i + 8]) % 8) for i in (0, 8)}


def test_every_place_of_a_block_is_equally_likely():
    """Chi-square over 4000 seeds: where sample 0 stands among the 12 places of an epoch of 4 shards."""
    places = [epoch_of(Shuffle([3, 3, 3, 3], seed, 2)).index(0) for seed in range(4000)]
    counts = np.bincount(places, minlength=12)
    assert ((counts - 4000 / 12) ** 2 / (4000 / 12)).sum() < 31.3  # 0.999 quantile at 11 degrees of freedom


def test_no_block_is_refused():
    with pytest.raises(ValueError, match="block is 0, expected the number of shards"):
        Shuffle([3], 0, 0)


def test_memory_is_that_of_two_groups():
    shuffle = Shuffle([100] * 60, 0, 2)
    for position in range(0, 3 * len(shuffle), 37):
        shuffle.number(position)
        assert sum(len(numbers) for _, _, numbers in shuffle._groups) <= 2 * 200


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_order_is_the_same_for_any_number_of_ranks_and_workers(world, workers):
    split = Numbered(np.random.default_rng(0).integers(1, 12, 23))
    shuffle = Shuffle(split.sizes, 3, 4)
    count, batch, cursor = 2 * len(split) // 16, 16, 32
    wanted = [shuffle.number(position) for position in range(cursor, cursor + count * batch)]
    ranks = []
    for rank in range(world):
        stream = stream_of(split, block=4, batch=batch, rank=rank, world=world)
        copies = [pickle.loads(pickle.dumps(stream)) for _ in range(workers or 1)]
        made = (copies[i % len(copies)].made(cursor + batch * i) for i in range(count))
        ranks.append([batch["number"] for batch, _ in made])
    assert [number for step in zip(*ranks, strict=True) for part in step for number in part] == wanted


def test_processes_that_read_ahead_give_the_same_order():
    split = Numbered([3, 8, 5, 1, 9, 4])
    wanted = batches_of(stream_of(split, block=2, batch=4), 12, cursor=8)
    assert batches_of(stream_of(split, block=2, batch=4, workers=2), 12, cursor=8) == wanted
    assert split.at_once == 2


def test_512_ranks_of_8_workers_over_20000_uneven_shards_see_every_sample_once_in_equal_steps():
    sizes = np.random.default_rng(1).integers(0, 20, 20_000)
    split, world, workers, local = Numbered(sizes), 512, 8, 2
    steps = -(-len(split) // (world * local))
    order = Shuffle(sizes, 0, 16)
    seen = np.zeros((steps, world, local), np.int64)
    for worker in range(workers):  # of all ranks: they differ in nothing but the positions that they ask for
        for step in range(worker, steps, workers):
            for rank in range(world):
                start = step * world * local + rank * local
                seen[step, rank] = [order.number(start + i) for i in range(local)]
    assert sorted(seen.reshape(-1)[: len(split)].tolist()) == list(range(len(split)))
    for rank, worker in ((0, 0), (17, 3), (511, 7)):
        stream = Stream(
            split=split, decode=number_of, order=Shuffle(sizes, 0, 16), batch=world * local, rank=rank, world=world
        )
        turns = range(worker, worker + 20 * workers, workers)
        own = [stream.made(step * world * local)[0]["number"] for step in turns]
        assert own == seen[turns, rank].tolist()
