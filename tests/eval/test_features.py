import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from eval.features import (
    FeatureKey,
    PixelsPCA,
    RandomConv,
    Tower,
    comparable,
    feature_key,
    paired_distance,
    quantise,
    require_comparable,
    resized,
)
from eval.frechet import frechet_distance
from eval.prdc import prdc

KEY = FeatureKey(
    metric="fd", name="judge", sha256="0123456789abcdef", resize="none", generated=500, reference=1000, split="test"
)


@pytest.fixture(scope="module")
def images():
    rng = np.random.RandomState(0)
    pictures = rng.randint(0, 256, (300, 1, 1, 3)) + rng.randint(-40, 40, (300, 32, 32, 3))
    return pictures.clip(0, 255).astype(np.uint8)


def embedders(images):
    yield RandomConv()
    yield PixelsPCA.fit(images, dim=8, size=32)
    yield Tower(name="means", sha256="0" * 64, dim=3, size=32, network=lambda x: x.mean((2, 3)))


def test_embedders_keep_the_contract(images):
    for embedder in embedders(images):
        features = embedder.embed(images)
        assert features.shape == (300, embedder.dim)
        assert features.dtype == np.float32
        assert len(embedder.sha256) == 64
        assert embedder.resize == "none"


def test_no_picture_of_the_last_partial_batch_is_dropped(images, monkeypatch):
    whole = [e.embed(images) for e in embedders(images)]
    monkeypatch.setattr("eval.features.BATCH", 7)
    for features, embedder in zip(whole, embedders(images), strict=True):
        assert np.allclose(features, embedder.embed(images), atol=1e-5)


def test_features_know_nothing_of_their_neighbours(images):
    for embedder in embedders(images):
        assert np.allclose(embedder.embed(images[::-1])[::-1], embedder.embed(images), atol=1e-5)


def test_hashes_follow_the_weights(images):
    assert RandomConv(seed=1).sha256 == RandomConv(seed=1).sha256 != RandomConv(seed=2).sha256
    fits = [PixelsPCA.fit(x, dim=4, size=32) for x in (images, images, images[:200])]
    assert fits[0].sha256 == fits[1].sha256 != fits[2].sha256


def test_random_weights_have_the_variance_of_he():
    for weight in RandomConv(dim=128).weights:
        assert float(weight.var()) == pytest.approx(2 / weight[0].numel(), rel=0.15)


def test_distance_grows_with_noise_and_blur_and_is_lowest_for_real_pictures():
    data = pytest.importorskip("pipelines.data.scenes")
    drawn = [np.asarray(data.render(data.scene(32, 0, "train", i)[0], 32)) for i in range(2000)]
    reference, rest = np.stack(drawn[:1000]), np.stack(drawn[1000:])
    rng, embedder = np.random.RandomState(1), RandomConv(dim=32)
    noisy = [(rest + s * rng.randn(*rest.shape)).clip(0, 255).astype(np.uint8) for s in (0, 10, 20, 40)]
    sizes = (32, 16, 8, 4)
    blurred = [np.stack([np.asarray(Image.fromarray(x).resize((s, s)).resize((32, 32))) for x in rest]) for s in sizes]
    for severities in (noisy, blurred):
        found = [frechet_distance(embedder.embed(reference), embedder.embed(x)) for x in severities]
        assert found == sorted(found)
        assert found[-1] > 1.5 * found[0]


def test_a_paired_distance_is_two_less_twice_the_cosine_and_knows_its_pairs():
    a, b = np.random.default_rng(0).normal(size=(2, 50, 7))
    a, b = (x * 7**0.5 / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    cosine = torch.nn.functional.cosine_similarity(*map(torch.from_numpy, (a, b))).numpy()
    assert paired_distance(a, b) == pytest.approx(2 - 2 * cosine, abs=1e-12)
    assert paired_distance(a, a) == pytest.approx(np.zeros(50), abs=1e-15)
    assert paired_distance(a, np.roll(a, 1, 0)).mean() > 1 and frechet_distance(a, np.roll(a, 1, 0)) < 1e-9
    with pytest.raises(ValueError, match=r"\(50, 7\) and \(49, 7\)"):
        paired_distance(a, b[:-1])


def test_lost_modes_lower_recall(images):
    embedder = PixelsPCA.fit(images, dim=3, size=32)
    real = embedder.embed(images[:150])
    bright = images[150:][images[150:].mean((1, 2, 3)) > 128]
    full, lost = (prdc(real=real, fake=embedder.embed(x)).recall for x in (images[150:], bright))
    assert lost < full - 0.2


def test_pca_agrees_with_scikit_learn(images):
    pca = (
        pytest.importorskip("sklearn.decomposition")
        .PCA(5, svd_solver="full")
        .fit(images.reshape(300, -1) / 127.5 - 1.0)
    )
    oracle = pca.transform(images.reshape(300, -1) / 127.5 - 1.0)
    found = PixelsPCA.fit(images, dim=5, size=32).embed(images)
    assert np.allclose(np.abs(found), np.abs(oracle), atol=1e-4)


def test_tower_sees_the_pictures_in_minus_one_to_one():
    seen = []
    tower = Tower(name="t", sha256="0" * 64, dim=1, size=2, network=lambda x: seen.append(x) or x.flatten(1)[:, :1])
    black_and_white = np.stack([np.zeros((2, 2, 3)), np.full((2, 2, 3), 255)]).astype(np.uint8)
    assert tower.embed(black_and_white).ravel().tolist() == [-1, 1]
    assert seen[0].shape == (2, 3, 2, 2)


def test_tower_refuses_wrong_shapes_and_nan(images):
    for network in (lambda x: x.mean((1, 2, 3)), lambda x: x.flatten(1)[:, :3] * torch.nan):
        with pytest.raises(ValueError, match="judge gave shape"):
            Tower(name="judge", sha256="0" * 64, dim=3, size=32, network=network).embed(images)


def test_key_is_an_honest_name():
    assert str(KEY) == "fd[judge:01234567|resize=none|n=500/1000|split=test]"
    key = feature_key("kd", RandomConv(size=64, how="clean"), generated=1, reference=2, split="train")
    assert str(key).startswith("kd[random-conv:")
    assert "resize=clean-64" in str(key)


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "kd"},
        {"name": "fid"},
        {"sha256": "0123456789abcdee"},
        {"resize": "clean-32"},
        {"generated": 499},
        {"reference": 999},
        {"split": "train"},
    ],
)
def test_one_difference_forbids_a_comparison_and_is_named(change):
    other = replace(KEY, **change)
    assert comparable(KEY, KEY)
    assert not comparable(KEY, other)
    require_comparable(KEY, replace(KEY))
    with pytest.raises(ValueError, match=next(iter(change))):
        require_comparable(KEY, other)


def test_quantise_rounds_and_inverts_itself():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    x = torch.from_numpy(values).permute(0, 3, 1, 2) / 127.5 - 1
    assert np.array_equal(quantise(x), values)
    assert np.array_equal(quantise(x + 0.4 / 127.5), values)  # truncation would give the same, the next one not
    assert np.array_equal(quantise(x - 0.4 / 127.5), values)
    assert quantise(torch.full((1, 3, 2, 2), 7.0)).max() == 255


def test_clean_resize_keeps_constants_and_ramps():
    constant = np.full((1, 64, 64, 3), 77, np.uint8)
    assert np.array_equal(resized(constant, 299, "clean"), np.full((1, 299, 299, 3), 77, np.float32))
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8)[None, None, :, None], (1, 64, 1, 3))
    for size in (16, 32, 299):
        assert (np.diff(resized(ramp, size, "clean"), axis=2) >= -1e-3).all()


def test_clean_resize_does_not_round():
    image = np.random.RandomState(0).randint(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    channel = Image.fromarray(image[0, :, :, 1].astype(np.float32)).resize((20, 20), Image.Resampling.BICUBIC)
    found = resized(image, 20, "clean")[0, :, :, 1]
    assert np.array_equal(found, np.asarray(channel).clip(0, 255))
    assert np.abs(found - found.round()).max() > 0.1


def test_pictures_of_another_kind_are_refused(images):
    with pytest.raises(ValueError, match="32x32, got 16x16"):
        RandomConv().embed(images[:, :16, :16])
    with pytest.raises(ValueError, match="uint8"):
        RandomConv().embed(images.astype(np.float32))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no pictures"):
        RandomConv().embed(images[:0])
    with pytest.raises(ValueError, match="more than 300"):
        PixelsPCA.fit(images, dim=300, size=32)


def test_random_conv_is_a_function_of_its_seed_on_every_machine():
    digest = hashlib.sha256(b"".join(w.numpy().tobytes() for w in RandomConv(seed=3).weights)).hexdigest()
    torch.manual_seed(99)
    assert RandomConv(seed=3).sha256 == digest
