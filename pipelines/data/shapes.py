"""Heights and widths of pictures or latents, read from their headers once and kept with the index of their shard."""

from io import BytesIO

import numpy as np
from PIL import Image

from pipelines.data.decode import BrokenSample, Sample, picture_bytes
from pipelines.data.index import keep_shapes
from pipelines.data.picture import EXTENSIONS
from pipelines.data.ratios import Shape
from pipelines.data.shards import Split

LATENT = "latent.npy"  # what a cache holds in place of a picture
START = 65_536  # bytes in which a header is looked for first
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF entry, and its values by which a picture lies on its side


def shapes_of(split: Split, number: int) -> np.ndarray:
    """Height and width of the pictures (else the latents) of a shard, as decoded, (n, 2); (0, 0) where nothing tells.

    The first time the headers are read, and kept beside the shard where that is possible. Raises BrokenSample where the
    shard is not what was opened.
    """
    index = split.index_of(number)
    if index.shapes is not None:
        return index.shapes
    first = int(split.sizes[:number].sum())
    found = [_shape(split, i) for i in range(first, first + len(index))]
    shapes = np.array(found, np.uint32).reshape(-1, 2)
    split.replace_index(number, keep_shapes(index, shapes))
    return shapes


def _shape(split: Split, i: int) -> Shape:
    for most in (START, None):  # a header behind a long preview needs more
        try:
            return _of_sample(split.read(i, only=(*EXTENSIONS, LATENT), most=most))
        except (BrokenSample, ValueError):
            continue
    return Shape(0, 0)


def _of_sample(sample: Sample) -> Shape:
    return latent_header(sample.members[LATENT]) if list(sample.members) == [LATENT] else header(picture_bytes(sample))


def latent_header(data: bytes) -> Shape:
    """The last two sides of an array in numpy's format. Raises ValueError where the bytes begin otherwise."""
    file = BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("no header of an array that a cache holds")
    shape, _, _ = np.lib.format.read_array_header_1_0(file)
    if len(shape) < 2:
        raise ValueError(f"an array of shape {shape}, expected one with rows and columns")
    return Shape(*shape[-2:])


def header(data: bytes) -> Shape:
    """The shape that a picture has once it is turned by its EXIF orientation, without decoding it.

    Raises ValueError where the bytes do not begin as a picture.
    """
    try:
        with Image.open(BytesIO(data)) as image:
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
            width, height = image.size
            turned = exif.get(ORIENTATION) in TURNED
    except Exception as error:  # the readers of Pillow raise many kinds for broken bytes
        raise ValueError("no header of a picture that Pillow reads") from error
    return Shape(width, height) if turned else Shape(height, width)
