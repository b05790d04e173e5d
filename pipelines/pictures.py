"""Between tensors in [-1, 1] and pictures that people look at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from eval.features import quantise

NOT_FINITE = "not_finite"  # what a picture's `info`, and what is written beside it, says of NaN and infinite values
GAP = 2  # pixels between the pictures of a grid


def from_uint8(pictures: np.ndarray) -> Tensor:
    """Return pictures (B, H, W, 3) uint8 as (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).movedim(-1, 1).float() / 127.5 - 1


def to_pil(x: Tensor) -> list[Image.Image]:
    """Return pictures (B, 3, H, W) in [-1, 1] as PIL images; of one with NaN or infinite values its `info` says so."""
    images = [Image.fromarray(picture) for picture in quantise(x)]
    for image, whole in zip(images, x.isfinite().flatten(1).all(1).tolist(), strict=True):
        if not whole:
            image.info[NOT_FINITE] = True
    return images


def from_pil(images: Sequence[Image.Image]) -> Tensor:
    """Return PIL images of one size as (B, 3, H, W) float32 in [-1, 1]."""
    return from_uint8(np.stack([np.asarray(image.convert("RGB")) for image in images]))


def enlarged(x: Tensor, size: int) -> Tensor:
    """Return pictures (B, 3, h, w) as (B, 3, size, size), bilinear."""
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)


def grid(images: Sequence[Image.Image], columns: int | None = None, scale: int = 1) -> Image.Image:
    """Lay pictures out in rows, about square unless `columns` is given; each pixel `scale` wide.

    Smaller ones stand in the middle of the place that the largest width and height make.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    images = [image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST) for image in images]
    width, height = max(image.width for image in images), max(image.height for image in images)
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for i, image in enumerate(images):
        left, top = i % columns * (width + GAP), i // columns * (height + GAP)
        sheet.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
    return sheet


def side_by_side(x: Tensor, x_hat: Tensor) -> Image.Image:
    """Lay originals (top rows of each pair) over their reconstructions, both (B, 3, H, W) in [-1, 1]."""
    pairs = list(zip(to_pil(x[: len(x_hat)]), to_pil(x_hat), strict=True))
    columns = math.ceil(math.sqrt(2 * len(pairs)))
    rows = [pairs[i : i + columns] for i in range(0, len(pairs), columns)]
    ordered = [picture for row in rows for part in (0, 1) for picture in (pair[part] for pair in row)]
    return grid(ordered, columns)
