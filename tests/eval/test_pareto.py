"""The Pareto front against its definition, and its knee on points whose place is plain."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.pareto import front, knee

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def beaten(i, points):
    x, y = points[i]
    return any(a >= x and b <= y and (a > x or b < y) for a, b in points)


@given(POINTS)
def test_the_front_holds_what_no_point_beats_once(points):
    found = front([x for x, _ in points], [y for _, y in points])
    assert {points[i] for i in found} == {points[i] for i in range(len(points)) if not beaten(i, points)}
    assert len({points[i] for i in found}) == len(found) and all(points.index(points[i]) == i for i in found)
    assert found == sorted(found, key=lambda i: points[i][0]) == sorted(found, key=lambda i: points[i][1])


def test_points_that_are_not_finite_are_on_no_front():
    assert front([1.0, math.nan, 3.0, math.inf], [1.0, 0.0, math.nan, 0.5]) == [0]
    assert front([], []) == []


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\)"):
        front([1.0, 2.0], [1.0])


def test_the_knee_of_a_corner_is_its_corner():
    assert knee([0.0, 0.5, 0.9, 1.0], [0.0, 0.01, 0.05, 1.0]) == 2  # 0.9 - 0.05 is the largest


@given(*(st.floats(low, 1e3, allow_subnormal=False) for low in (0.1, -1e3, 0.1, -1e3)))
def test_the_knee_knows_no_units(a, b, c, d):
    gain, cost = [0.0, 0.3, 0.6, 1.0], [0.0, 0.02, 0.3, 1.0]
    assert knee([a * x + b for x in gain], [c * y + d for y in cost]) == knee(gain, cost) == 2


def test_the_knee_of_a_power_law_is_where_its_slope_is_that_of_the_chord():
    """y = x^2 between 0 and 1: x - x^2 is largest at 1 / 2."""
    gain = [i / 100 for i in range(101)]
    assert knee(gain, [x**2 for x in gain]) == 50


@pytest.mark.parametrize(
    ("gain", "cost"),
    [([0.0, 1.0], [0.0, 1.0]), ([0.0], [0.0]), ([0.0, 0.25, 1.0], [0.0, 0.5, 1.0]), ([0.0, 0.5, 1.0], [0.0, 0.5, 1.0])],
)
def test_a_front_that_does_not_bulge_to_the_better_side_has_no_knee(gain, cost):
    assert knee(gain, cost) is None
