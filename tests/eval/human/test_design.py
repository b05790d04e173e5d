"""What can be checked of a study without its pictures: who meets whom, what a study file may say, keys, controls."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from eval.human.errors import StudyError, VotesError
from eval.human.gold import corrupted
from eval.human.key import read_key
from eval.human.layout import lay_out, pair_order
from tests.eval.human.made import study


def test_corruption_is_strong_whatever_the_picture():
    for image in (
        Image.new("RGB", (32, 32), "white"),
        Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 50).convert("RGB"),
    ):
        spoiled = corrupted(image, np.random.default_rng(0))
        change = np.asarray(spoiled).astype(float) - np.asarray(image)
        assert spoiled.size == image.size and np.sqrt((change**2).mean()) > 25


def test_every_rater_sees_every_pair_of_models():
    """Four pairs a prompt over four blocks: dealt in order, a block would show one pair alone."""
    blocks = lay_out(study(4, block=40, gold=0, repeats=0), 40, np.random.default_rng(0), truth=False)
    assert len(blocks) == 16
    for block in blocks:
        met = Counter((place.unit.first, place.unit.second) for place in block.places)
        assert len(met) == 6 and max(met.values()) <= 15
        assert len({place.unit.prompt for place in block.places}) == 40, "pairs of one prompt go to different blocks"


@pytest.mark.parametrize("models", [4, 5])
def test_many_models_meet_in_a_balanced_incomplete_design(models):
    asked = study(models, raters=2, gold=0, repeats=0)
    blocks = lay_out(asked, 40, np.random.default_rng(0), truth=False)
    units = [place.unit for block in blocks if block.set == 1 for place in block.places]
    met = Counter((unit.first, unit.second) for unit in units)
    assert len(units) == 40 * models and set(met) == set(combinations(range(models), 2))
    assert max(met.values()) - min(met.values()) <= 1
    assert len(set(units)) == len(units)
    each = Counter(model for pair, count in met.items() for model in pair for _ in range(count))
    assert max(each.values()) - min(each.values()) <= 2
    assert sorted(pair_order(models)) == sorted(combinations(range(models), 2))


def test_a_design_that_leaves_models_unlinked_is_refused():
    with pytest.raises(StudyError, match=r"groups of models .*\|.*raise prompts.count or pairs_per_prompt"):
        lay_out(study(5, pairs_per_prompt=1), 2, np.random.default_rng(0), truth=False)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"criteria": ("taste",)}, "taste"),
        ({"criteria": ()}, "criteria are"),
        ({"raters": 0}, "raters is 0"),
        ({"gold": 0.5}, "gold is 0.5"),
        ({"gold": float("nan")}, "gold is nan"),
        ({"anchor": "gan"}, "anchor is 'gan'"),
        ({"base_url": "ftp://x"}, "base_url"),
        ({"name": "../x"}, "name is"),
        ({"model": {}}, "at least 2 models"),
    ],
)
def test_a_study_that_cannot_be_is_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        study(**wrong)


def test_a_key_that_is_none_is_refused(tmp_path):
    path = tmp_path / "key.json"
    wrong = {
        "{": "cannot be read as JSON",
        '{"schema": 2}': "no sealed key",
        "[]": "no sealed key",
        '{"schema": 1}': "schema 1, expected 2",
    }
    for content, sentence in wrong.items():
        path.write_text(content)
        with pytest.raises(VotesError, match=sentence):
            read_key(path)
    with pytest.raises(VotesError, match="does not exist"):
        read_key(tmp_path / "none.json")
