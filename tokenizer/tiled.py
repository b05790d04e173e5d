"""Encoding and decoding of pictures larger than those of training, tile by tile.

Unusual: the last tile of a row is moved back to the border instead of being padded, so that every tile has the full
size; and a tile counts for nothing within a quarter of the overlap from a cut, where zero padding stands for pixels
that the network should have seen. Convolutions that reach no further than that quarter, in whole positions, give what
they give on the whole picture; norms over a picture see a tile instead, and differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from backbone.conv import check_divides

Network = Callable[[Tensor], Tensor]


def tiled_encode(encode: Network, x: Tensor, factor: int, tile: int = 256, overlap: int = 64) -> Tensor:
    """Latents of pictures, blended where tiles overlap: (B, 3, H, W) -> (B, c, H / factor, W / factor).

    encode: the same for one tile; of a Gaussian it gives mean and log-variance as channels. tile, overlap: in pixels,
    multiples of the factor. Raises ValueError where sizes do not fit.
    """
    check_tiles(factor, tile, overlap)
    check_divides(x, factor)
    return tiled(encode, x, tile=tile, overlap=overlap, scale=Fraction(1, factor))


def tiled_decode(decode: Network, z: Tensor, factor: int, tile: int = 256, overlap: int = 64) -> Tensor:
    """Pictures of latents, blended where tiles overlap: (B, c, h, w) -> (B, 3, h factor, w factor).

    decode: the same for one tile. tile, overlap: in pixels of the picture, as in `tiled_encode`.
    """
    check_tiles(factor, tile, overlap)
    return tiled(decode, z, tile=tile // factor, overlap=overlap // factor, scale=Fraction(factor))


def tiled_codes(encode: Network, x: Tensor, factor: int, tile: int = 256, overlap: int = 64) -> Tensor:
    """Codes of pictures: (B, 3, H, W) -> (B, n H / factor, W / factor).

    Codes cannot be blended: each comes from the tile whose cuts are farthest from it. encode: the same for one tile;
    where a quantiser has n grids of codes, they stand one below the other, in a tile as in the result. tile, overlap:
    as in `tiled_encode`.
    """
    check_tiles(factor, tile, overlap)
    check_divides(x, factor)

    def grids(x: Tensor) -> Tensor:
        return encode(x).unflatten(1, (-1, x.shape[-2] // factor))  # (B, n, h, w)

    return tiled(grids, x, tile=tile, overlap=overlap, scale=Fraction(1, factor), shares=farthest).flatten(1, 2)


def check_tiles(factor: int, tile: int, overlap: int) -> None:
    """Raise ValueError unless tiles are made of whole positions and overlap by less than their size."""
    if tile <= 0:
        raise ValueError(f"tile is {tile} pixels, expected a multiple of factor = {factor} above 0. Use 256.")
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value % factor:
            fit = max(round(value / factor), 1) * factor
            raise ValueError(f"{name} is {value} pixels, expected a multiple of factor = {factor}. Use {fit}.")
    if not 0 <= overlap < tile:
        fit = tile // factor // 4 * factor
        raise ValueError(f"overlap is {overlap} pixels, expected 0 <= overlap < tile = {tile}. Use {fit}.")


@dataclass(frozen=True)
class Axis:
    """Tiles along one side of a picture, in its own positions: where each starts, and how long each is."""

    starts: tuple[int, ...]
    tile: int
    size: int
    overlap: int

    @classmethod
    def of(cls, size: int, tile: int, overlap: int) -> Axis:
        """Tiles that overlap by `overlap`, the last by more where it has to; one tile where the side is not longer."""
        if size <= tile:
            return cls((0,), size, size, overlap)
        last = size - tile
        return cls((*range(0, last, tile - overlap), last), tile, size, overlap)

    def span(self, start: int, scale: Fraction) -> slice:
        """Positions of the result that the tile at `start` covers."""
        return slice(int(start * scale), int((start + self.tile) * scale))

    def distances(self, scale: Fraction) -> Tensor:
        """Distance of each position of the result from each tile's nearest cut, float64 (tiles, size scale).

        0 outside the tile; infinite in a tile without a cut, since the border of the picture is none.
        """
        centres = torch.arange(int(self.tile * scale), dtype=torch.float64) + 0.5
        far = torch.full_like(centres, torch.inf)
        table = torch.zeros(len(self.starts), int(self.size * scale), dtype=torch.float64)
        for row, start in zip(table, self.starts, strict=True):
            left = centres if start else far
            right = centres.flip(0) if start + self.tile < self.size else far
            row[self.span(start, scale)] = torch.minimum(left, right)
        return table


def ramps(axis: Axis, scale: Fraction) -> Tensor:
    """Weight of each tile at each position of the result, (tiles, size scale); every column adds up to 1.

    Before that: 0 up to a quarter of the overlap from a cut, 1 from three quarters, straight between.
    """
    distances, overlap = axis.distances(scale), float(axis.overlap * scale)
    raw = ((distances - overlap / 4) / (overlap / 2)).clamp(0, 1) if overlap else (distances > 0).double()
    return raw / raw.sum(0)


def farthest(axis: Axis, scale: Fraction) -> Tensor:
    """1 for the tile whose cuts are farthest from a position, 0 for the others, int64 (tiles, size scale)."""
    return F.one_hot(axis.distances(scale).argmax(0), len(axis.starts)).T


def tiled(
    function: Network,
    x: Tensor,
    *,
    tile: int,
    overlap: int,
    scale: Fraction,
    shares: Callable[[Axis, Fraction], Tensor] = ramps,
) -> Tensor:
    """Apply a function tile by tile, in the memory of one tile beside the result.

        y(p) = sum_i w_i(p) f(x_i)(p),   sum_i w_i(p) = 1

    x: (B, C, H, W) -> (B, C', H scale, W scale); tile and overlap in positions of x. A picture that is not larger than
    a tile goes to the function as it is. Raises ValueError where a tile's result has another size than `scale` says.
    """
    rows, columns = (Axis.of(size, tile, overlap) for size in x.shape[-2:])
    if len(rows.starts) == len(columns.starts) == 1:
        return function(x)
    down, across = shares(rows, scale), shares(columns, scale)
    result: Tensor | None = None
    for top, down_row in zip(rows.starts, down, strict=True):
        for left, across_row in zip(columns.starts, across, strict=True):
            y = function(x[..., top : top + rows.tile, left : left + columns.tile])
            check_scale(y, (rows.tile, columns.tile), scale)
            if result is None:
                result = y.new_zeros(*y.shape[:2], down.shape[1], across.shape[1])
            vertical, horizontal = rows.span(top, scale), columns.span(left, scale)
            weight = down_row[vertical, None] * across_row[horizontal]  # (h, w)
            result[..., vertical, horizontal] += weight.to(y) * y
    assert result is not None  # there is always a tile
    return result


def check_scale(y: Tensor, tile: tuple[int, int], scale: Fraction) -> None:
    """Raise ValueError unless the result of a tile has the size that the scale says."""
    expected = tuple(int(side * scale) for side in tile)
    if tuple(y.shape[-2:]) != expected:
        raise ValueError(
            f"a tile of {tile[0]} x {tile[1]} came back as {y.shape[-2]} x {y.shape[-1]}, expected {expected[0]} x "
            f"{expected[1]}. Give the factor of the autoencoder."
        )
