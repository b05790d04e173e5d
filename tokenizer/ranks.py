"""Statistics of all ranks; in a single process these are the identity."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def summed(values: Tensor) -> Tensor:
    """Sum over the ranks, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def broadcast(values: Tensor) -> Tensor:
    """Take rank 0's values, in place, on every rank."""
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(values, src=0)
    return values


def gathered(vectors: Tensor) -> Tensor:
    """Concatenate the vectors (n, d) of all ranks, in rank order; n is the same on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, vectors.contiguous())
    return torch.cat(parts)
