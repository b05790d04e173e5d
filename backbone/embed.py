"""Embeddings of time and place, all computed in float32 whatever the network runs in.

Unusual: time lies in [0, 1] and is scaled to the [0, 1000] that sinusoidal features were made for; rotary tables are
plain pairs of tensors, so tables of two spans (text and image) can be joined along the first axis.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_SCALE = 1000.0
MAX_PERIOD = 10_000.0


class Rotary(NamedTuple):
    """Cosines and sines of the angles of d/2 pairs at each position: (L, d/2) each, float32."""

    cos: Tensor
    sin: Tensor


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal features of time (arXiv:1706.03762, section 3.5).

        [cos(1000 t w_i), sin(1000 t w_i)],   w_i = 10000^(-i / (dim / 2))

    t: (...) in [0, 1]; dim: even. Returns (..., dim) float32. Raises ValueError when dim is odd.
    """
    angles = t.float()[..., None] * TIME_SCALE * _frequencies(dim, 2, t.device)
    return torch.cat([angles.cos(), angles.sin()], -1)


class TimeEmbedding(nn.Module):
    """`timestep_embedding` and a two-layer network, in float32 under autocast too: (B,) -> (B, dim)."""

    def __init__(self, dim: int, features: int = 256) -> None:
        super().__init__()
        self.features = features
        self.linear_in = nn.Linear(features, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        """t: (B,) in [0, 1]. Returns (B, dim) in the dtype of the weights."""
        with torch.autocast(t.device.type, enabled=False):
            features = timestep_embedding(t, self.features).to(self.linear_in.weight.dtype)
            return self.out(F.silu(self.linear_in(features)))


def time_condition(embedding: TimeEmbedding | None, t: Tensor | None, x: Tensor) -> Tensor | None:
    """What a network whose time may be switched off conditions on: (B, dim), or None without an embedding.

    t: () or (B,) on any device; x: (B, ...). Raises ValueError where the embedding is there and t is not.
    """
    if embedding is None:
        return None
    if t is None:
        raise ValueError("this network was built with time conditioning; give it t")
    return embedding(t.to(x.device).expand(len(x)))


def sincos_1d(length: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Fixed position embedding of a sequence (arXiv:1706.03762, section 3.5): (length, dim) float32; dim: even."""
    angles = torch.arange(length, device=device)[:, None] * _frequencies(dim, 2, device)
    return torch.cat([angles.sin(), angles.cos()], -1)


def sincos_2d(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Fixed position embedding of a grid: half of the features speak of the row, half of the column (arXiv:2212.09748).

    dim: a multiple of 4. Returns (height width, dim) float32, rows first. Raises ValueError otherwise.
    """
    frequencies = _frequencies(dim, 4, device)
    parts = [position[:, None] * frequencies for position in _grid(height, width, device)]
    return torch.cat([f(part) for part in parts for f in (torch.sin, torch.cos)], -1)


def rotary_1d(
    positions: int | Tensor, dim: int, *, base: float = MAX_PERIOD, device: torch.device | None = None
) -> Rotary:
    """Rotary table of a sequence (arXiv:2104.09864, eq. 15).

    positions: (L,), or a number L for 0 .. L - 1; dim: width of one head, even. Raises ValueError if odd.
    """
    places = positions if isinstance(positions, Tensor) else torch.arange(positions, device=device)
    angles = places[:, None] * _frequencies(dim, 2, places.device, base)
    return Rotary(angles.cos(), angles.sin())  # (length, dim / 2)


def rotary_2d(
    height: int,
    width: int,
    dim: int,
    *,
    base: float = 100.0,
    spacing: float = 1.0,
    device: torch.device | None = None,
) -> Rotary:
    """Rotary table of a grid: half of the pairs turn with the row, half with the column (arXiv:2403.13298).

    dim: width of one head, a multiple of 4; spacing: so many rows and columns of a finer grid fall to one of these,
    which stands in their middle, at spacing (i + 1/2) - 1/2. Returns tables of (height width, dim / 2), rows first.
    Raises ValueError otherwise.
    """
    frequencies = _frequencies(dim, 4, device, base)
    places = [spacing * (position + 0.5) - 0.5 for position in _grid(height, width, device)]
    angles = torch.cat([place[:, None] * frequencies for place in places], -1)
    return Rotary(angles.cos(), angles.sin())


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn each pair (x_i, x_{i + d/2}) of a head by the angle of its position (arXiv:2104.09864, eq. 34).

    x: (B, h, L, d); rotary: (L, d/2). Returns (B, h, L, d) in x's dtype; the products are float32.
    """
    first, second = x.float().chunk(2, -1)
    cos, sin = rotary
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def _grid(height: int, width: int, device: torch.device | None) -> tuple[Tensor, Tensor]:
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return rows.flatten(), columns.flatten()  # (height width,) each


def _frequencies(dim: int, parts: int, device: torch.device | None, base: float = MAX_PERIOD) -> Tensor:
    """base^(-i / n) for the n = dim / parts pairs of one axis."""
    if dim < parts or dim % parts:
        raise ValueError(f"dim is {dim}, expected a positive multiple of {parts}")
    count = dim // parts
    return torch.exp(-math.log(base) / count * torch.arange(count, dtype=torch.float32, device=device))
