"""Who may attend to whom in a text: masks for `backbone.attention`, bool, True = attend, (L, L) or (B, 1, L, L)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def causal(length: int, device: torch.device | None = None) -> Tensor:
    """Each token sees itself and what stands before it: (L, L)."""
    return causal_blocks(length, 1, device)


@lru_cache(maxsize=16)
def causal_blocks(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """Each token sees its own block of `size` and all before: (L, L). Raises ValueError where size does not divide."""
    block = _blocks(length, size, device)
    return block[:, None] >= block[None, :]


@lru_cache(maxsize=16)
def noisy_and_clean(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """The mask that trains a block-causal model on [x_t | x] in one pass (arXiv:2503.09573, sec. 3.2): (2 L, 2 L).

    A noisy block sees itself and the clean blocks before it; a clean block sees itself and the clean blocks before it.
    """
    block = _blocks(length, size, device)
    same, before = block[:, None] == block[None, :], block[:, None] > block[None, :]
    noisy = torch.cat([same, before], 1)
    clean = torch.cat([torch.zeros_like(same), same | before], 1)
    return torch.cat([noisy, clean])


def documents(x: Tensor, end_id: int) -> Tensor:
    """Each token sees its own document of a packed sequence, all of which end with end_id: (B, L) -> (B, 1, L, L).

    Rotary positions tell distances alone, so that a document need not know where in the sequence it stands.
    """
    number = (x == end_id).cumsum(-1) - (x == end_id).long()  # an end belongs to the document before it
    return number[:, None, :, None] == number[:, None, None, :]


def check_blocks(length: int, size: int) -> None:
    """Raise ValueError where blocks of a size do not divide a length."""
    if size < 1 or length % size:
        divisor = max(one for one in range(1, max(2, min(size, length) + 1)) if length % one == 0)
        longer = f", or a multiple, such as a length of {-(-length // size) * size}" if size > 1 else ""
        raise ValueError(
            f"blocks of {size} do not divide a length of {length}: take a divisor, such as blocks of {divisor}{longer}"
        )


def _blocks(length: int, size: int, device: torch.device | None) -> Tensor:
    """Number of the block of each position, (L,)."""
    check_blocks(length, size)
    return torch.arange(length, device=device) // size
