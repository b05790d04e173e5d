"""The benchmark of the shards runs, and its measure of a shuffle is 1 for a true one."""

import numpy as np
import pytest

from pipelines.data.order import Shuffle
from scripts.bench import streaming
from tests.test_bench import tables


def test_quick_streaming_has_every_table(capsys):
    streaming.main(streaming.Options(quick=True))
    speed, large, blocks = tables(capsys.readouterr().out)
    assert [row[0] for row in speed[1:]] == ["0", "2"]
    assert all(float(cell.split(" [")[0]) > 0 for row in speed[1:] for cell in row[1:] if cell)
    assert len(large) == 4 and [row[0] for row in blocks[1:]] == ["1", "4", "16", "all"]


def of(numbers, sizes):
    return streaming.quality(np.asarray(numbers), sizes, batch=64)


def test_the_measures_of_a_true_shuffle_are_1():
    sizes = np.random.default_rng(0).integers(20, 60, 100)
    found = np.mean([of(np.random.default_rng(seed).permutation(sizes.sum()), sizes) for seed in range(30)], 0)
    assert found == pytest.approx([1, 1, 1, 1], abs=0.04)


def test_the_measures_of_no_shuffle_are_those_of_the_shards_themselves():
    sizes = [64] * 50
    found = of(range(3200), sizes)
    assert found.together == pytest.approx((3150 / 3199) / (63 / 3199))
    assert found.distance == pytest.approx(1 / (3200 / 3), rel=1e-4)
    assert found.spread == pytest.approx(8 * (3199 / 3136) ** 0.5)  # a batch is one shard


def test_larger_blocks_come_nearer_to_a_true_shuffle():
    sizes = [50] * 128
    orders = [Shuffle(sizes, 0, block) for block in (1, 8, 128)]
    found = [of([order.number(i) for i in range(len(order))], sizes) for order in orders]
    assert found[0].together > found[1].together > found[2].together
    assert found[0].spread > found[1].spread > found[2].spread and found[0].shards < found[1].shards < found[2].shards
    assert found[1].together == pytest.approx(16, rel=0.05)  # 1/8 of the neighbours in place of 1/128
