import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine

from eval.clip_score import clip_score, cosines, other_prompt, shuffled_floor


@pytest.fixture(scope="module")
def towers():
    rng = np.random.RandomState(0)
    texts = rng.randn(60, 16)
    return texts + 0.8 * rng.randn(60, 16), texts


def test_cosines_agree_with_scipy_and_torch(towers):
    images, texts = towers
    found = cosines(images, texts)
    assert found == pytest.approx([1 - cosine(a, b) for a, b in zip(images, texts, strict=True)], abs=1e-12)
    oracle = torch.cosine_similarity(torch.from_numpy(images), torch.from_numpy(texts))
    assert found == pytest.approx(oracle.numpy(), abs=1e-12)


def test_identical_features_score_one(towers):
    found = clip_score(towers[1], 3 * towers[1])
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1), abs=1e-12)


def test_shuffled_captions_lower_the_score_to_its_floor(towers):
    score, floor = clip_score(*towers), shuffled_floor(*towers)
    assert floor.high < score.low
    assert floor.low < 0 < floor.high


def test_negative_cosines_are_not_clamped():
    assert clip_score([[1.0, 0], [1, 0]], [[-1.0, 0], [0, 1]]).value == -0.5


def test_prompts_weigh_equally_however_many_pictures_they_have():
    images, texts = np.array([[1.0, 0]] * 3 + [[0.0, 1]]), np.array([[1.0, 0]] * 4)
    found = clip_score(images, texts, ["a", "a", "a", "b"])
    assert (found.value, found.n) == (0.5, 2)


def test_agrees_with_the_mean_of_independent_prompts(towers):
    found, cos = clip_score(*towers), cosines(*towers)
    assert found.value == pytest.approx(cos.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * cos.std() / 60**0.5, rel=0.15)


def test_no_row_keeps_its_own_prompt():
    prompts = ["a", "b", "a", "c", "b", "d"]
    for seed in range(20):
        assert all(prompts[j] != p for j, p in zip(other_prompt(prompts, seed=seed), prompts, strict=True))
    with pytest.raises(ValueError, match="two different prompts"):
        other_prompt(["a", "a"])


def test_missing_pictures_and_empty_embeddings_are_errors(towers):
    with pytest.raises(ValueError, match="59 pictures for 60 captions"):
        clip_score(towers[0][:59], towers[1])
    with pytest.raises(ValueError, match="1 embeddings have length zero"):
        clip_score([[1.0, 0], [0, 0]], [[1.0, 0], [0, 1]])
    with pytest.raises(ValueError, match="NaN"):
        clip_score([[1.0, 0], [np.nan, 0]], [[1.0, 0], [0, 1]])
