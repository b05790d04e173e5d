"""The block jackknife of any measure, against Student's t of block means."""

import numpy as np
import pytest

from eval.blockwise import over_blocks
from eval.interval import mean_interval


def gap(a, b):
    return float(a.mean() - b.mean())


def test_for_a_difference_of_means_it_is_students_t_over_the_differences_of_blocks():
    rng = np.random.RandomState(0)
    a, b = rng.randn(60, 1) + 1, rng.randn(200, 1)
    found = over_blocks(gap, a, b, blocks=10)
    blocks = [x.mean() - y.mean() for x, y in zip(np.split(a, 10), np.split(b, 10), strict=True)]
    exact = mean_interval(blocks)
    assert (found.value, found.low, found.high) == pytest.approx((exact.value, exact.low, exact.high), rel=1e-12)
    assert found.n == 60


def test_few_rows_have_fewer_blocks_and_three_no_interval():
    rng = np.random.RandomState(1)
    a, b = rng.randn(6, 2), rng.randn(50, 2)
    assert np.isfinite(over_blocks(gap, a, b).low)
    assert over_blocks(gap, a[:3], b).low == -np.inf
