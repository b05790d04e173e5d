import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.data.decode import (
    BrokenSample,
    EmptyCaption,
    Sample,
    caption,
    caption_only,
    image_and_caption,
    numpy_members,
)
from pipelines.data.picture import fit, to_rgb, to_tensor


def encoded(image, kind="PNG", **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def decoded(data, size=8, extension="png", words=b"words"):
    return image_and_caption(size)(Sample(key="k", members={extension: data, "txt": words}))["image"]


RED = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, 8, 8)


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("L", (8, 8), 255), "PNG", torch.ones(3, 8, 8)),
        (Image.new("1", (8, 8), 1), "PNG", torch.ones(3, 8, 8)),
        (Image.new("RGB", (8, 8), "red").convert("P"), "PNG", RED),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 255)), "PNG", RED),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG", torch.ones(3, 8, 8)),
        (Image.new("LA", (8, 8), (0, 0)), "PNG", torch.ones(3, 8, 8)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF", RED),
        (Image.fromarray(np.full((8, 8), 65535, np.uint16)), "PNG", torch.ones(3, 8, 8)),
    ],
    ids=["grey", "bilevel", "palette", "rgba", "transparent", "transparent-grey", "cmyk", "grey16"],
)
def test_every_mode_becomes_rgb_and_transparency_white(image, kind, expected):
    assert torch.allclose(decoded(encoded(image, kind), extension="tif" if kind == "TIFF" else "png"), expected)


def test_a_transparent_palette_colour_is_laid_on_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0])
    assert torch.equal(decoded(encoded(image, transparency=0)), torch.ones(3, 8, 8))


def test_a_cmyk_jpeg_is_read():
    got = decoded(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95), extension="jpg")
    assert (got - RED).abs().max() < 0.1


def test_exif_orientation_turns_the_picture():
    image = Image.new("RGB", (8, 8), "white")
    image.paste("black", (0, 0, 8, 4))  # dark above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: dark at the right
    got = decoded(encoded(image, "JPEG", exif=exif, quality=95), extension="jpg")
    assert got[:, :, :3].mean() > 0.9 and got[:, :, 5:].mean() < -0.9


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (25, 8)])
def test_a_picture_that_is_not_square_loses_its_long_ends(shape):
    image = Image.new("RGB", shape, "white")
    width, height = shape
    side = min(shape)
    image.paste("red", ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2))
    assert (to_tensor(fit(image, 8))[:, 1:-1, 1:-1] - RED[:, 1:-1, 1:-1]).abs().max() < 0.05


def test_fit_equals_resizing_the_shorter_side_and_cropping_the_centre():
    noise = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    image = Image.fromarray(noise)
    whole = image.resize((32, 16), Image.Resampling.LANCZOS).crop((8, 0, 24, 16))
    inner = (slice(None), slice(3, -3))  # away from the cut, where a filter would look beyond it
    assert np.abs(np.asarray(fit(image, 16)).astype(int)[inner] - np.asarray(whole).astype(int)[inner]).max() <= 2


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert to_tensor(fit(Image.fromarray(stripes), 8)).abs().max() < 0.1


def test_a_picture_of_the_right_size_is_not_touched():
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    expected = torch.from_numpy(noise).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(decoded(encoded(Image.fromarray(noise))), expected)
    assert to_rgb(Image.fromarray(noise)).tobytes() == noise.tobytes()


def test_a_picture_of_one_row_is_enlarged_without_a_huge_canvas():
    assert decoded(encoded(Image.new("RGB", (20000, 1), "red"))).shape == (3, 8, 8)


def test_a_caption_of_ten_thousand_characters_passes_through():
    words = "star " * 2000
    assert caption(Sample(key="k", members={"txt": words.encode()})) == words.strip()


def test_a_caption_file_is_one_caption_whatever_its_lines():
    sample = Sample(key="k", members={"txt": b"\xef\xbb\xbf a red\r\n star\n", "json": b'{"n": 1}'})
    assert caption_only(sample) == {"caption": "a red star", "label": {"n": 1}, "key": "k"}


@pytest.mark.parametrize(
    ("members", "error", "match"),
    [
        ({"png": b"rubbish", "txt": b"a"}, BrokenSample, "unreadable picture"),
        ({"png": encoded(Image.effect_noise((99, 99), 9))[:900], "txt": b"a"}, BrokenSample, "unreadable picture"),
        ({"txt": b"a"}, BrokenSample, "no picture"),
        ({"png": b"rubbish"}, BrokenSample, "KEY.txt is missing"),
        ({"png": b"rubbish", "txt": b"\n "}, EmptyCaption, "empty"),
        ({"png": b"rubbish", "txt": b"\xff\xfe\xfa"}, BrokenSample, "not UTF-8"),
        ({"png": encoded(Image.new("L", (8, 8))), "txt": b"a", "json": b"{"}, BrokenSample, "not JSON"),
        ({"png": encoded(Image.new("L", (8, 8))), "txt": b"a", "json": b"[1]"}, BrokenSample, "expected an object"),
    ],
)
def test_what_cannot_be_used_says_why(members, error, match):
    with pytest.raises(error, match=match):
        image_and_caption(8)(Sample(key="k", members=members))


def test_cached_arrays_come_back_as_they_were():
    members = {"json": json.dumps({"a": 1}).encode()}
    arrays = {"latent": np.ones((2, 4, 8, 8), np.float16), "codes": np.arange(64).reshape(8, 8)}
    for name, array in arrays.items():
        data = io.BytesIO()
        np.save(data, array)
        members[f"{name}.npy"] = data.getvalue()
    got = numpy_members("latent", "codes")(Sample(key="k", members=members))
    assert all(np.array_equal(got[name].numpy(), array) for name, array in arrays.items())
    assert got["label"] == {"a": 1} and got["caption"] == ""
    with pytest.raises(BrokenSample, match=r"no text\.npy"):
        numpy_members("text")(Sample(key="k", members=members))


def test_a_pickle_is_never_loaded():
    data = io.BytesIO()
    np.save(data, np.array([Path()], dtype=object), allow_pickle=True)
    with pytest.raises(BrokenSample, match="not a numpy array"):
        numpy_members("latent")(Sample(key="k", members={"latent.npy": data.getvalue()}))
