"""Decoders: a sample's bytes -> what a stage trains on. A decoder is a picklable function Sample -> dict.

It raises BrokenSample for bytes that cannot be used and EmptyCaption for a caption without a word.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines.data.picture import EXTENSIONS, UnreadablePicture, fit, open_picture, to_rgb, to_tensor


class BrokenSample(ValueError):
    """A sample that cannot be used; the message says why, `kind` in a few words that can be counted."""

    def __init__(self, message: str, *, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind


class EmptyCaption(BrokenSample):
    """A sample without a word in its caption: no damage, but nothing to condition on."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The members of one sample: extension -> bytes."""

    key: str
    members: Mapping[str, bytes]
    shape: tuple[int, int] | None = None  # height and width that its picture is to have, where the order says


Decode = Callable[[Sample], dict[str, Any]]


def image_and_caption(size: int, *, needs_caption: bool = True) -> Decode:
    """Decoder to {"image": float32 (3, size, size) in [-1, 1], "caption": str, "label": dict, "key": str}.

    Pictures are turned by EXIF, laid on white where transparent, made RGB, resized (shorter side to `size`,
    antialiased) and cropped at the centre. The label is KEY.json or {}. Without `needs_caption` a missing or empty
    caption is "". A sample that has a shape of its own is brought to that.
    """
    return partial(_image_and_caption, size=size, needs_caption=needs_caption)


def _image_and_caption(sample: Sample, *, size: int, needs_caption: bool) -> dict[str, Any]:
    words = caption(sample, required=needs_caption)  # first: it is cheap
    image = to_tensor(fit(picture(sample), *(sample.shape or (size, size))))
    return {"image": image, "caption": words, "label": label(sample), "key": sample.key}


def two_sizes(size: int, source: int) -> Decode:
    """Decoder as `image_and_caption`, with "low" (3, source, source) beside "image": the same picture, small.

    Both come from the sample's own pixels: "low" is what a stage reads that works at that size.
    """
    return partial(_two_sizes, size=size, source=source)


def _two_sizes(sample: Sample, *, size: int, source: int) -> dict[str, Any]:
    words, shown = caption(sample), picture(sample)
    both = {"image": to_tensor(fit(shown, size)), "low": to_tensor(fit(shown, source))}
    return {**both, "caption": words, "label": label(sample), "key": sample.key}


def caption_only(sample: Sample) -> dict[str, Any]:
    """Decoder to {"caption": str, "label": dict, "key": str}."""
    return {"caption": caption(sample), "label": label(sample), "key": sample.key}


def numpy_members(*names: str) -> Decode:
    """Decoder of cached arrays: KEY.latent.npy -> "latent" as a tensor, beside "caption", "label" and "key".

    A missing or empty caption is "". Nothing is unpickled. Where a sample is to have a shape, latents of
    another one are broken.
    """
    return partial(_numpy_members, names=names)


def _numpy_members(sample: Sample, *, names: tuple[str, ...]) -> dict[str, Any]:
    arrays = {name: torch.from_numpy(_array(sample, f"{name}.npy")) for name in names}
    if sample.shape is not None and (found := tuple(arrays["latent"].shape[-2:])) != sample.shape:
        raise BrokenSample(f"its latents are {found[0]} x {found[1]}, in a batch of {sample.shape}", kind="other shape")
    return {**arrays, "caption": caption(sample, required=False), "label": label(sample), "key": sample.key}


def picture(sample: Sample) -> Image.Image:
    """RGB picture of a sample at its own size."""
    try:
        return to_rgb(open_picture(picture_bytes(sample)))
    except UnreadablePicture as error:
        raise BrokenSample(str(error), kind="unreadable picture") from error


def picture_bytes(sample: Sample) -> bytes:
    """The member that holds the picture, still encoded."""
    for extension in EXTENSIONS:
        if extension in sample.members:
            return sample.members[extension]
    raise BrokenSample(f"no picture among its members ({', '.join(sample.members) or 'none'})", kind="no picture")


def caption(sample: Sample, *, required: bool = True) -> str:
    """The whole of KEY.txt as one caption, each run of white space one space; raises BrokenSample, EmptyCaption."""
    if "txt" not in sample.members and required:
        raise BrokenSample("no caption: KEY.txt is missing", kind="no caption")
    try:
        words = " ".join(sample.members.get("txt", b"").decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise BrokenSample(
            f"the caption is not UTF-8 ({error.reason} at byte {error.start})", kind="caption is not UTF-8"
        ) from error
    if required and not words:
        raise EmptyCaption("the caption is empty", kind="empty caption")
    return words


def label(sample: Sample) -> dict[str, Any]:
    """KEY.json, {} where there is none."""
    if "json" not in sample.members:
        return {}
    try:
        content = json.loads(sample.members["json"], parse_constant=_refuse)
    except ValueError as error:  # covers bytes that are not UTF-8
        raise BrokenSample(f"KEY.json is not JSON ({error})", kind="label is not JSON") from error
    if not isinstance(content, dict):
        raise BrokenSample(f"KEY.json holds a {type(content).__name__}, expected an object", kind="label is not JSON")
    return content


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number of JSON")


def _array(sample: Sample, name: str) -> np.ndarray:
    if name not in sample.members:
        raise BrokenSample(f"no {name} among its members ({', '.join(sample.members) or 'none'})")
    try:
        return np.load(BytesIO(sample.members[name]), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise BrokenSample(f"{name} is not a numpy array ({error})") from error
