from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine

from backbone.clip import cure_torchvision
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


def tiny_clip():
    """A random CLIP of transformers as torchmetrics 1.9 reads it: features as tensors, and a processor of its own."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": 128, "max_position_embeddings": 16, "eos_token_id": 127, "bos_token_id": 126}
    vision = {**size, "image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    network = transformers.CLIPModel(config).eval().requires_grad_(False)
    network.text_projection.weight.neg_()  # cosines above 0: torchmetrics raises a mean below 0 to 0

    def features(found):
        return found if isinstance(found, torch.Tensor) else found.pooler_output  # since transformers 5

    def process(text=None, images=None, **_):
        if text is None:
            return {"pixel_values": torch.stack(images).float() / 255}
        ids = torch.tensor([[126, *(ord(c) % 126 for c in row.ljust(14)[:14]), 127] for row in text])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    model = SimpleNamespace(
        config=config,
        get_image_features=lambda x: features(network.get_image_features(pixel_values=x)),
        get_text_features=lambda ids, mask: features(network.get_text_features(input_ids=ids, attention_mask=mask)),
    )
    model.to = lambda device: model
    return model, process


@torch.no_grad()
def test_agrees_with_torchmetrics_on_a_random_clip():
    cure_torchvision()
    oracle = pytest.importorskip("torchmetrics.functional.multimodal.clip_score")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, process = tiny_clip()
    images = [torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(i)) for i in range(6)]
    prompts = ["a red star", "a blue ring", "sand", "two owls", "grass", "a cross"]
    percent = oracle.clip_score(images, prompts, lambda: (model, process))
    found = clip_score(
        model.get_image_features(process(images=images)["pixel_values"]).numpy(),
        model.get_text_features(*process(text=prompts).values()).numpy(),
    )
    assert found.value == pytest.approx(float(percent) / 100, abs=1e-5)
    assert found.value > 0.1


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
