"""What will go wrong with a training as it is planned, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.cost import Memory
from pipelines.dry import in_bytes
from pipelines.outlook import FULL, RUNTIME, Outlook


def warnings_of(one: Outlook) -> Iterator[str]:
    """Yield a sentence for each thing that will go wrong, with a remedy."""
    kind = one.machines.kind
    if not one.fits(one.held):
        yield (
            f"{one.name} WILL NOT FIT: {in_bytes(one.held)} on a GPU of {in_bytes(kind.memory)}, of which "
            f"{FULL:.0%} can be used. Try {_remedy(one)}, or checkpointing = true where its model has it."
        )
    if one.sending > one.computing:
        yield (
            f"{one.name} waits for its gradients: {one.sending * 1e3:.0f} ms of exchange for "
            f"{one.computing * 1e3:.0f} ms of operations a step. Take a larger batch, or fewer GPUs."
        )


def _remedy(one: Outlook) -> str:
    """Say what would make a stage fit: more parts, a state that is spread over the GPUs, or both."""
    own, kept = f"stage.{one.name}.training", one.other and one.other.total + RUNTIME
    if parts := _parts(one, one.memory, one.held):
        return f"{own}.accumulate = {parts}" + (f', or {own}.shard = "full"' if kept and one.fits(kept) else "")
    if one.other and kept and one.fits(kept):
        return f'{own}.shard = "full", which takes {in_bytes(kept)}'
    if one.other and kept and (parts := _parts(one, one.other, kept)):
        return f'{own}.shard = "full" with {own}.accumulate = {parts}'
    return "fewer parameters, or a GPU with more memory"


def _parts(one: Outlook, memory: Memory, held: float) -> int | None:
    """Return the micro-batches that make room for a step that holds so many bytes, none where no number does."""
    room = FULL * one.machines.kind.memory - (held - memory.activations)
    if room <= 0 or one.items == 1:
        return None
    parts = one.training.accumulate * -(-memory.activations // int(room))
    return _dividing(one.training.batch // one.machines.gpus, parts)


def _dividing(items: int, parts: int) -> int:
    """Return the smallest number from `parts` on that divides `items`."""
    return next((number for number in range(parts, items) if items % number == 0), items)
