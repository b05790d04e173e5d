"""Embedders by name from small weights on disk, and features that are kept."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from backbone import clip
from eval.features import RandomConv
from eval.resize import scaled
from eval.towers import IMAGENET_MEAN, IMAGENET_STD, dinov2, inception, is_fid, openclip
from pipelines.errors import PalimpsestError
from pipelines.scoring.cached import FeatureCache, embed
from pipelines.scoring.embedders import open_embedders
from pipelines.scoring.sets import open_set
from tests.eval.test_inception import random_weights

SIZES = clip.ContrastiveConfig(width=4, heads=4, text_width=16, embed_dim=24, vocab_size=40, end_id=1)


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        side = 40 if i in (5, 6) else 32
        Image.fromarray(rng.integers(0, 256, (32, side, 3), dtype=np.uint8)).save(
            tmp_path / "pictures" / f"{i:02d}.png"
        )
    return open_set(tmp_path / "pictures")


@pytest.fixture
def dino(tmp_path):
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    return tmp_path / "dino"


def test_dinov2_is_the_class_token_of_normalised_pictures(dino):
    images = np.random.default_rng(1).integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
    tower, model = dinov2(dino), Dinov2Model.from_pretrained(dino).eval()
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(tower.embed(images)), model(x).pooler_output, rtol=1e-4, atol=1e-5)
    assert (tower.name, tower.dim, tower.resize) == ("dinov2", 16, "clean-28")


def test_the_hash_of_dinov2_is_of_weights_and_configuration(dino):
    before = dinov2(dino).sha256
    config = json.loads((dino / "config.json").read_text())
    (dino / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.1}))
    assert dinov2(dino).sha256 != before
    (dino / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    with pytest.raises(ValueError, match="type 'vit', expected 'dinov2'"):
        dinov2(dino)
    (dino / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no config\.json with model\.safetensors"):
        dinov2(dino)


def test_openclip_features_are_those_of_its_image_tower(tmp_path):
    model = SIZES.build(seed=0).eval()
    clip.save_contrastive(tmp_path, SIZES, model)
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    tower = openclip(tmp_path, how="none")
    with torch.inference_mode():
        expected = clip.image_features(model, scaled(images, 32, "none"))
    torch.testing.assert_close(torch.from_numpy(tower.embed(images)), expected, rtol=1e-4, atol=1e-5)
    lengths = np.linalg.norm(openclip(tmp_path, how="none", unit=True).embed(images), axis=1)
    assert np.allclose(lengths, 24**0.5, rtol=1e-4)


def test_only_the_published_weights_and_resize_make_an_fid(tmp_path):
    torch.save(random_weights("2015-12-05"), tmp_path / "a.pth")
    tower = inception(tmp_path / "a.pth")
    assert (tower.name, tower.resize, tower.dim) == ("inception-2015-12-05", "tf1-299", 2048)
    assert not is_fid(tower.name, tower.sha256, tower.resize)
    published = dataclasses.replace(tower, sha256="6726825d" + tower.sha256[8:])
    assert is_fid(published.name, published.sha256, published.resize)
    assert not is_fid(published.name, published.sha256, "clean-299")


def test_embedders_are_opened_by_name_and_bad_names_are_explained(pictures, dino):
    usual = [one.embedder.name for one in open_embedders((), pictures, 0)]
    assert usual == ["random-conv", "pixels-pca"]
    (opened,) = open_embedders([f"dinov2={dino}"], None, 0)
    assert opened.text is None and opened.embedder.dim == 16
    with pytest.raises(PalimpsestError, match=r"no embedder 'vgg'.*\n.*inception = FILE"):
        open_embedders(["vgg"], None, 0)
    with pytest.raises(PalimpsestError, match="dinov2: expected dinov2=FOLDER"):
        open_embedders(["dinov2"], None, 0)
    with pytest.raises(PalimpsestError, match="random-conv=x: expected random-conv"):
        open_embedders(["random-conv=x"], None, 0)
    with pytest.raises(PalimpsestError, match="fitted to the pictures of the reference"):
        open_embedders(["pixels-pca"], None, 0)


def test_features_of_mixed_sizes_stay_in_order_whatever_the_batch(pictures):
    conv = RandomConv(size=32, how="clean")
    alone = np.concatenate([conv.embed(picture[None]) for picture in pictures])
    assert np.allclose(embed(conv, pictures), alone, atol=1e-6)


def test_features_are_kept_and_made_again_for_anything_else(pictures, tmp_path, monkeypatch):
    calls = []

    class Counting(RandomConv):
        def embed(self, images):
            calls.append(len(images))
            return super().embed(images)

    cache, conv = FeatureCache(tmp_path / "features"), Counting(size=32, how="clean")
    first = cache.of(conv, pictures)
    made = len(calls)
    assert np.array_equal(cache.of(conv, pictures), first) and len(calls) == made
    assert len(cache.of(conv, pictures.at([1, 2]))) == 2 and len(calls) > made
    other = cache.of(Counting(size=32, how="clean", seed=1), pictures)
    assert other.shape == first.shape and not np.array_equal(other, first)
    (path, *_) = sorted((tmp_path / "features").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(cache.of(conv, pictures), first) and len(list((tmp_path / "features").iterdir())) == 3
