"""Statistics of all ranks; in a single process these are the identity."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Leave the other ranks out: for what one of them does while the others wait."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def place() -> tuple[int, int]:
    """Return this process' rank and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if _together() else (0, 1)


def summed(values: Tensor) -> Tensor:
    """Sum over the ranks, in place."""
    if _together():
        dist.all_reduce(values)
    return values


def averaged(values: Tensor) -> Tensor:
    """Mean over the ranks, for a loss f that is no linear function of it and the same one on every rank.

        gradient of f(mean_r v_r), averaged over the ranks:   mean_r f'(mean) dv_r

    so each rank's own value takes the gradient of the mean whole, and no second reduction is needed.
    """
    if not _together():
        return values
    mean = summed(values.detach().clone()) / dist.get_world_size()
    return values + (mean - values).detach()


def broadcast(values: Tensor) -> Tensor:
    """Take rank 0's values, in place, on every rank."""
    if _together():
        dist.broadcast(values, src=0)
    return values


def gathered(vectors: Tensor) -> Tensor:
    """Concatenate the vectors (n, d) of all ranks, in rank order; n is the same on every rank."""
    if not _together():
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, vectors.contiguous())
    return torch.cat(parts)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and not _alone.get()
