"""Validity of embedders: one that sees, one that is blind, and the damages themselves."""

import numpy as np
import pytest
from scipy import stats

from eval.features import RandomConv
from eval.validity import DAMAGES, DROPPED, MOST_DROPPED, Dose, doses, kind_order, share_rising

RNG = np.random.default_rng(0)
CONV = RandomConv(size=32)


def scenes(count):
    """Striped squares of any colour on grounds that go from dark to light."""
    made = []
    for i in range(count):
        picture = np.full((32, 32, 3), 40 + 150 * i // count, np.uint8)
        top, left = RNG.integers(2, 18, 2)
        picture[top : top + 10 : 2, left : left + 10] = RNG.integers(0, 256, 3)
        made.append(picture)
    return made


def seeing(pictures):
    return CONV.embed(np.stack(pictures))


def test_an_embedder_that_sees_rises_with_every_damage():
    found = doses(scenes(400), seeing)
    assert [dose.damage for dose in found] == [*DAMAGES, DROPPED]
    for dose in found:
        assert dose.rank >= 0.6 and dose.distances[-1] > 1.2 * dose.distances[0] and dose.n == 50
    assert share_rising(found).value >= 0.8 and share_rising(found).n == 16


def test_an_embedder_of_the_mean_colour_alone_is_found_out():
    found = {dose.damage: dose for dose in doses(scenes(160), lambda pictures: np.stack(pictures).mean((1, 2)))}
    assert found["blur"].distances[-1] < 2 * found["blur"].distances[0]
    assert found[DROPPED].distances[-1] > 3 * found[DROPPED].distances[0]


def test_ranks_are_kendalls():
    dose = Dose("blur", (0.0, 0.5, 1.0), (1.0, 3.0, 2.0), 9)
    assert dose.rank == pytest.approx(stats.kendalltau([0, 1, 2], [0, 2, 1]).statistic) and not dose.rises
    assert Dose("blur", (0.0, 1.0), (1.0, 3.0), 9).rises


def test_damages_of_no_strength_change_nothing_and_others_more_and_more():
    (picture,) = scenes(1)
    for damage in DAMAGES.values():
        changes = [
            np.abs(damage(picture, strength, np.random.default_rng(0)).astype(float) - picture).mean()
            for strength in (0.0, 0.5, 1.0)
        ]
        assert changes[0] == 0 and changes[0] < changes[1] < changes[2]


def test_kinds_are_told_apart_by_what_differs_most():
    pictures = scenes(60)
    order = kind_order(pictures)
    assert abs(stats.spearmanr(order, np.arange(60)).statistic) > 0.8
    assert 0 < MOST_DROPPED < 1


def test_too_few_pictures_are_refused():
    with pytest.raises(ValueError, match="15 pictures are too few"):
        doses(scenes(15), seeing)
