"""The shapes that a recipe asks for where pictures are not square, and which of them a picture is nearest to."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipelines.errors import PalimpsestError

_SIZE = re.compile(r"([1-9]\d*)x([1-9]\d*)")


class Shape(NamedTuple):
    """Pixels of a picture."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    def over(self, factor: int) -> Shape:
        """The grid that it is when squares of so many pixels become one place each."""
        return Shape(self.height // factor, self.width // factor)

    def fits(self, multiple: int) -> bool:
        """Whether `multiple` divides both sides."""
        return self.height % multiple == self.width % multiple == 0

    def near(self, multiple: int) -> Shape:
        """The nearest shape whose sides `multiple` divides."""
        height, width = (max(1, round(side / multiple)) * multiple for side in self)
        return Shape(height, width)


def parse_shape(text: str) -> Shape:
    """The shape of "HxW", or of "N" for a square. Raises PalimpsestError for anything else."""
    found = _SIZE.fullmatch(text) or _SIZE.fullmatch(f"{text}x{text}")
    if found is None:
        raise PalimpsestError(f"size is {text!r}, expected HxW or N in pixels, such as 192x320 or 256")
    return Shape(int(found[1]), int(found[2]))


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """The shapes that pictures are brought to: listed as "HxW", or all that hold about so many pixels.

    pixels: of each picture at most; ratio: of the longer side to the shorter at most; multiple: what divides all sides.
    """

    sizes: tuple[str, ...] = ()
    pixels: int | None = None
    ratio: float = 2.0
    multiple: int = 32

    def __post_init__(self) -> None:
        """Refuse shapes that are none, and two ways of saying them."""
        if bool(self.sizes) == (self.pixels is not None):
            raise ValueError('buckets: give either sizes = ["HxW", ...] or pixels, the most that a picture may have')
        if wrong := [size for size in self.sizes if not _SIZE.fullmatch(size)]:
            raise ValueError(f'buckets.sizes has {wrong[0]!r}, expected "HxW" in pixels, such as "192x320"')
        if not 1 <= self.ratio < math.inf:
            raise ValueError(f"buckets.ratio is {self.ratio}, expected 1 (squares alone) or more, such as 2.0")
        if self.multiple < 1:
            raise ValueError(f"buckets.multiple is {self.multiple}, expected what divides all sides, such as 32")
        if self.pixels is not None and self.pixels < self.multiple**2:
            raise ValueError(f"buckets.pixels is {self.pixels}, less than a square of multiple = {self.multiple} has")
        ratios: dict[float, Shape] = {}
        for shape in self.shapes:
            if (other := ratios.setdefault(shape.width / shape.height, shape)) != shape:
                raise ValueError(f"buckets.sizes has {other} and {shape}, which have the same ratio: leave one out")

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """All shapes, the tallest first."""
        found = [Shape(int(found[1]), int(found[2])) for size in self.sizes if (found := _SIZE.fullmatch(size))]
        return tuple(sorted(found or self._made(), key=lambda shape: (shape.width / shape.height, shape)))

    def _made(self) -> list[Shape]:
        """Of each ratio the largest shape that is allowed, and of each height the widest."""
        assert self.pixels is not None
        most, found = int(math.sqrt(self.pixels * self.ratio)) // self.multiple, dict[float, Shape]()
        for rows in range(1, most + 1):
            columns = self.pixels // self.multiple**2 // rows
            columns = min(columns, int(rows * self.ratio))
            if columns * self.ratio >= rows:
                shape = Shape(rows * self.multiple, columns * self.multiple)
                found[columns / rows] = max(found.get(columns / rows, shape), shape)
        shapes = found.values()
        return [one for one in shapes if not any(_inside(one, other) for other in shapes)]


def _inside(one: Shape, other: Shape) -> bool:
    return one != other and one.height <= other.height and one.width <= other.width


def nearest(pictures: np.ndarray, buckets: Sequence[Shape]) -> np.ndarray:
    """The bucket of each picture, (n,) uint8: that whose ratio is nearest by its logarithm, the taller of two.

    pictures: heights and widths, (n, 2). One without a header goes with the squares.
    """
    known = np.where(pictures.all(1, keepdims=True), pictures, 1).astype(np.float64)
    ratios = np.log([shape.width / shape.height for shape in buckets])
    return np.abs(np.log(known[:, 1] / known[:, 0])[:, None] - ratios).argmin(1).astype(np.uint8)
