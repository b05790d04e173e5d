"""Tensors whose rows lie on several processes (DTensor): a process' own rows, all of them, to files and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pipelines.artefact import save_weights
from pipelines.together import together
from pipelines.training_files import Cut, is_sharded

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def local(value: Tensor) -> Tensor:
    """The rows that this process holds of a tensor: all of them, where it is not sharded."""
    return value.to_local() if is_sharded(value) else value


def whole(value: Tensor) -> Tensor:
    """All of a tensor, to which every process adds its rows."""
    return value.full_tensor() if is_sharded(value) else value


def save_whole(path: Path, state: Mapping[str, Tensor], *, main: bool) -> None:
    """Save a state as one file of safetensors, which the main process gathers tensor by tensor.

    All must call it, and where the main process cannot write all of them fail.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        gathered = whole(value)
        if main:
            found[name] = gathered.detach().cpu()
    with together():
        if main:
            save_weights(path, found)


def save_looked_at(path: Path, state: Mapping[str, Tensor], *, main: bool) -> None:
    """Save a state that only the main process looks at where it is not sharded, and all where it is."""
    if any(map(is_sharded, state.values())):
        save_whole(path, state, main=main)
    else:
        save_weights(path, state)


def placed(kept: Any, like: Any) -> Any:
    """Return a tree that a checkpoint holds (`training_files.read`) in main memory, laid out like another one.

    Of what is sharded in `like`, only this process' rows are read. A shape that differs is left to torch to refuse.
    """
    if isinstance(kept, dict):
        return {key: placed(value, like.get(key) if isinstance(like, dict) else None) for key, value in kept.items()}
    if not hasattr(kept, "shape"):
        return kept
    if not is_sharded(like) or kept.shape != like.shape:
        return kept[:] if isinstance(kept, Cut) else kept.clone()
    from torch.distributed.tensor import DTensor

    rows = own_rows(kept, like).to(like.to_local(), copy=True)
    shape, stride = like.shape, like.stride()
    return DTensor.from_local(rows, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)


def own_rows(value: Tensor | Cut, like: DTensor) -> Tensor:
    """The rows of a whole tensor that this process holds of one that is sharded, of the same shape."""
    mesh = like.device_mesh
    each = -(-like.shape[0] // mesh.size(mesh.ndim - 1))  # rows of all parts but the last ones (torch.chunk)
    start = min(each * mesh.get_local_rank(mesh.ndim - 1), like.shape[0])
    return value[start : start + len(like.to_local())]
