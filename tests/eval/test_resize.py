"""Resize rules against the code that published distances were made with."""

import numpy as np
import pytest
import torch
from PIL import Image

from backbone.clip import cure_torchvision
from eval.resize import resize_id, resized, scaled

cure_torchvision()
NOISE = {side: np.random.RandomState(0).randint(0, 256, (2, side, side, 3)).astype(np.uint8) for side in (64, 512)}


@pytest.mark.parametrize("side", [64, 512])
def test_tf1_equals_the_interpolation_of_torch_fidelity(side):
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    x = torch.from_numpy(NOISE[side]).permute(0, 3, 1, 2).float()
    expected = interpolate_bilinear_2d_like_tensorflow1x(x, (299, 299), align_corners=False)
    found = torch.from_numpy(resized(NOISE[side], 299, "tf1")).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_rules_differ_by_what_is_known_of_them():
    def gap(first, second):
        return np.abs(resized(NOISE[512], 299, first) - resized(NOISE[512], 299, second)).mean()

    assert gap("tf1", "torch-noaa") == pytest.approx(30.5, abs=0.5)
    assert gap("tf1", "torch-aa") == pytest.approx(27.9, abs=0.5)
    assert gap("torch-aa", "clean") == pytest.approx(6.1, abs=0.3)


def test_clean_is_pillow_on_floats():
    channel = Image.fromarray(NOISE[64][0, :, :, 1].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
    assert np.array_equal(resized(NOISE[64], 299, "clean")[0, :, :, 1], np.asarray(channel).clip(0, 255))


@pytest.mark.parametrize("how", ["clean", "tf1", "torch-aa", "torch-noaa"])
def test_a_constant_stays_constant_and_a_ramp_monotone(how):
    flat = np.full((1, 20, 31, 3), 77, np.uint8)
    assert np.allclose(resized(flat, 50, how), 77, atol=1e-3)
    ramp = np.broadcast_to(np.arange(0, 240, 8, dtype=np.uint8)[None, None, :, None], (1, 30, 30, 3))
    assert (np.diff(resized(np.ascontiguousarray(ramp), 64, how)[0, 10, :, 0]) >= -1e-3).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="needs pictures of 32x32, got 64x64"):
        resized(NOISE[64], 32, "none")
    with pytest.raises(ValueError, match="expected one of none, clean"):
        resized(NOISE[64], 32, "bicubic")
    with pytest.raises(ValueError, match="uint8"):
        resized(NOISE[64].astype(np.float32), 32, "clean")
    assert (resize_id("none", 32), resize_id("tf1", 299)) == ("none", "tf1-299")
    assert scaled(NOISE[64], 64, "none").shape == (2, 3, 64, 64)
