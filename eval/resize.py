"""How pictures reach the size of an embedder: named rules, since no other choice moves a distance as much."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pictures = NDArray[np.uint8]  # (n, H, W, 3)
Resize = Literal["none", "clean", "tf1", "torch-aa", "torch-noaa"]


def resized(images: Pictures, size: int, how: Resize) -> NDArray[np.float32]:
    """(n, H, W, 3) uint8 -> (n, size, size, 3) float32 in [0, 255]; the ratio of the sides is not kept.

    none: refuses another size. clean: Pillow's antialiased bicubic on floats, not rounded (arXiv:2104.11222). tf1: the
    bilinear of TensorFlow 1 (corners not aligned, no half pixel), as FID was published with. torch-aa, torch-noaa:
    torch's bilinear with and without antialiasing. Raises ValueError for other arrays and unknown names.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(f"pictures must be uint8 (n, H, W, 3), got {images.dtype} {images.shape}")
    match how:
        case "none":
            if images.shape[1:3] != (size, size):
                found = f"{images.shape[1]}x{images.shape[2]}"
                raise ValueError(f"resize='none' needs pictures of {size}x{size}, got {found}")
            return images.astype(np.float32)
        case "clean":
            return np.stack([_clean(image, size) for image in images])
        case "tf1":
            return _tf1(images, size)
        case "torch-aa" | "torch-noaa":
            x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
            made = F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=how == "torch-aa")
            return made.permute(0, 2, 3, 1).contiguous().numpy()
        case _:
            raise ValueError(f"resize is {how!r}, expected one of {', '.join(get_args(Resize))}")


def resize_id(how: Resize, size: int) -> str:
    """The rule as it stands in a key: with the side where it decides anything."""
    return how if how == "none" else f"{how}-{size}"


def scaled(images: Pictures, size: int, how: Resize) -> Tensor:
    """(n, H, W, 3) uint8 -> (n, 3, size, size) in [-1, 1]."""
    return torch.from_numpy(resized(images, size, how)).permute(0, 3, 1, 2) / 127.5 - 1


def _clean(image: Pictures, size: int) -> NDArray[np.float32]:
    channels = [Image.fromarray(np.ascontiguousarray(image[..., c], dtype=np.float32)) for c in range(3)]
    return np.stack([np.asarray(c.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255) for c in channels], -1)


def _tf1(images: Pictures, size: int) -> NDArray[np.float32]:
    """Rows, then columns: the value at i of the result is read at i * side / size."""
    x = images.astype(np.float32)
    for axis in (1, 2):
        side = x.shape[axis]
        at = np.arange(size, dtype=np.float32) * np.float32(side / size)
        low = at.astype(np.int64)
        share = (at - low.astype(np.float32)).reshape([-1 if i == axis else 1 for i in range(4)])
        near, far = x.take(low, axis), x.take(np.minimum(low + 1, side - 1), axis)
        x = (near + (far - near) * share).astype(np.float32)
    return x
