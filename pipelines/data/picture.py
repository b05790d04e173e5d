"""The rules by which any picture becomes an RGB picture of a given side, or of a given height and width.

No flip and no random crop: nothing that could make a caption false.
"""

from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm")


class UnreadablePicture(ValueError):
    """Bytes that are no picture, or only a part of one."""


def open_picture(data: bytes) -> Image.Image:
    """Decode the first frame completely; raises UnreadablePicture."""
    try:
        image = Image.open(BytesIO(data))
        image.load()
    except UnidentifiedImageError as error:  # its own words hold an address in memory
        raise UnreadablePicture("unreadable picture (of no known format)") from error
    except Exception as error:  # the decoders of Pillow raise many kinds for broken bytes
        said = "its format is unknown" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UnreadablePicture(f"unreadable picture ({said or type(error).__name__})") from error
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn by the EXIF orientation, lay transparency on white, then to RGB.

    Grey, palette and CMYK are converted by Pillow; 16-bit grey is scaled to 8 bits.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        top = 255.0 if values.max(initial=0.0) <= 255 else 65535.0
        image = Image.fromarray(np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def fit(image: Image.Image, height: int, width: int | None = None) -> Image.Image:
    """Picture of so many pixels, a square without a width: the largest centred part of that ratio, antialiased.

    Equal to resizing until both sides are covered and cropping the centre. Lanczos when it shrinks, bicubic when it
    grows; a picture that has the size already is left as it is.
    """
    width = height if width is None else width
    if image.size == (width, height):
        return image
    across, down = image.size
    if across * height > down * width:
        across = down * width / height
    else:
        down = across * height / width
    left, top = (image.width - across) / 2, (image.height - down) / 2
    method = Image.Resampling.LANCZOS if down > height else Image.Resampling.BICUBIC
    return image.resize((width, height), method, box=(left, top, left + across, top + down))


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> float32 (3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))  # (H, W, 3)
    return pixels.permute(2, 0, 1).float() / 127.5 - 1
