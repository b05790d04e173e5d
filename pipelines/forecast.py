"""`palimpsest plan RECIPE`: what the trainings of a recipe take on a number of GPUs, before anything is rented.

Operations and memory are counted (`pipelines.cost`); time and price follow from stated assumptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipelines.advice import warnings_of
from pipelines.amount import Amount, volume
from pipelines.cost import Memory, memory, operations, sharded, without_values
from pipelines.dry import aligned, check_files, in_bytes
from pipelines.errors import PalimpsestError
from pipelines.hardware import size_of
from pipelines.outlook import NETWORK, NODE, RUNTIME, Machines, Outlook, at_once
from pipelines.passes import Player, encoders_of, players_of
from pipelines.progress import Tick
from pipelines.recipe import Recipe
from pipelines.shard_checks import SHARDED
from pipelines.sharding import parts_of
from pipelines.stage_config import EncodeStage, MdlmStage

PARTS = ("weights", "gradients", "optimizer", "average", "activations", "gathered")
MEMORY = ("stage", "parameters", "items", *PARTS, "with runtime", "of GPU")
TIME = ("stage", "operations/item", "items/s", "steps", "hours", "GPU hours", "dollars", "items read")
NOTE = (
    "Counted: operations of matrix products, convolutions and attention, forward, backward and run again; bytes of all "
    f"tensors of a step. Assumed: the utilisation, the rent, links at the makers' figures (nodes of {NODE}, "
    f"{NETWORK / 1e9:.0f} GB/s between them), {RUNTIME / 1e9:.1f} GB of CUDA's own. Time for loading, validation and "
    "pictures comes on top. Stages that train nothing are left out."
)


def plan(recipe: Recipe, machines: Machines, data: Sequence[Amount], tick: Tick | None = None) -> str:
    """Return what each training takes; data: the sets, where they are known.

    Raises PalimpsestError, which names the stage, where one cannot be.
    """
    outlooks, encodes = list[Outlook](), list[tuple[str, float]]()
    names = recipe.order()
    for number, name in enumerate(names):
        if tick is not None:
            tick(number, len(names))
        try:
            check_files(recipe.stage[name])
            if isinstance(recipe.stage[name], EncodeStage):
                encodes.append((name, _encoding(recipe, name)))
            elif (found := outlook(recipe, name, machines)) is not None:
                outlooks.append(found)
        except (ValueError, OSError) as error:
            raise PalimpsestError(f"stage.{name} cannot be planned: {error}") from error
    if not outlooks:
        raise PalimpsestError(f"The recipe {recipe.name} trains nothing whose size it tells by itself.")
    rows = [
        *(_encode_row(*one, machines, data) for one in encodes if data),
        *(_time_row(one, data, isinstance(recipe.stage[one.name], MdlmStage)) for one in outlooks),
    ]
    epochs = [f"epochs of {one.name}" if len(data) > 1 else "epochs" for one in data]
    hours = sum(one.steps * one.seconds for one in outlooks) / 3600
    lines = [f"{recipe.name} on {machines}", "", "Memory of each GPU, at the moment of a step that takes most"]
    lines += [*aligned([MEMORY, *map(_memory_row, outlooks)]), "", "Time", *aligned([(*TIME, *epochs), *rows])]
    lines += [f"All trainings: {hours:,.1f} hours, {machines.dollars(hours):,.0f} dollars."]
    if data:
        lines += ["", volume(data, max(one.training.batch / one.seconds for one in outlooks))]
    warnings = [sentence for one in outlooks for sentence in warnings_of(one)]
    return "\n".join([*lines, *(["", *warnings] if warnings else []), "", NOTE])


def outlook(recipe: Recipe, name: str, machines: Machines) -> Outlook | None:
    """Count what the training of stage `name` takes; None where it trains nothing of a known size."""
    players = players_of(recipe, name)
    if not players:
        return None
    training = players[0].part.training
    assert training is not None
    items = at_once(training, machines.gpus)
    with without_values(*(network for player in players for network in (player.network, player.frozen))):
        counted = sum(operations(player.network, player.run, bf16=training.bf16) for player in players)
        parts = [memory(player.network, player.run, player.part.training or training, items) for player in players]
        frozen = [value for player in players if player.frozen for value in player.frozen.state_dict().values()]
        apart = size_of(frozen)
        together = {key: sum(getattr(part, key) for part in parts) for key in vars(parts[0])}
        together |= {"activations": max(part.activations for part in parts), "weights": together["weights"] + apart}
        found = Outlook(
            name=name,
            training=training,
            parameters=sum(p.numel() for player in players for p in player.network.parameters()),
            operations=counted,
            memory=Memory(**together),
            machines=machines,
        )
        return _shared(found, players[0]) if recipe.stage[name].kind in SHARDED else found


def _shared(found: Outlook, player: Player) -> Outlook:
    """Spread the state over the GPUs where its training does, or where it might and needs to."""
    gpus, training = found.machines.gpus, found.training
    parts = gpus if training.shard is None else parts_of(training, gpus, min(gpus, NODE))
    if parts == 1 or (training.shard is None and found.fits(found.held)):
        return found
    memory = sharded(player.network, player.run, training, found.items, found.memory, parts)
    return replace(found, other=memory) if training.shard is None else replace(found, memory=memory, parts=parts)


def _encoding(recipe: Recipe, name: str) -> float:
    """Count the operations by which the encode stage `name` makes one item."""
    players = encoders_of(recipe, name)
    with without_values(*(player.network for player in players)):
        return sum(operations(player.network, player.run, backward=False, bf16=False) for player in players)


def _memory_row(one: Outlook) -> tuple[str, ...]:
    parts = (in_bytes(size) for size in vars(one.memory).values())
    batch = f"{one.items}" if one.training.accumulate == 1 else f"{one.items} x {one.training.accumulate}"
    share = one.held / one.machines.kind.memory
    return one.name, f"{one.parameters:,}", batch, *parts, in_bytes(one.held), f"{share:.0%}"


def _time_row(one: Outlook, data: Sequence[Amount], texts: bool) -> tuple[str, ...]:
    """The row of a training; texts: whether it reads texts alone as well."""
    read, rate = one.steps * one.training.batch, one.training.batch / one.seconds
    spent = _spent(one.steps * one.seconds / 3600, one.machines)
    epochs = (f"{float(read * it.share / it.samples):,.3g}" if texts or not it.texts else "" for it in data)
    return one.name, _per_item(one.operations), f"{rate:,.0f}", f"{one.steps:,}", *spent, f"{read:,}", *epochs


def _encode_row(name: str, counted: float, machines: Machines, data: Sequence[Amount]) -> tuple[str, ...]:
    rate = machines.gpus * machines.kind.fp32 * machines.utilisation / counted
    samples = sum(it.samples for it in data if not it.texts)
    epochs = ("" if it.texts else "1" for it in data)
    spent = _spent(samples / rate / 3600, machines)
    return name, _per_item(counted), f"{rate:,.0f}", "", *spent, f"{samples:,}", *epochs


def _per_item(counted: float) -> str:
    return f"{counted / 1e9:,.2f} GFLOP"


def _spent(hours: float, machines: Machines) -> tuple[str, str, str]:
    return f"{hours:,.1f}", f"{machines.gpus * hours:,.0f}", f"{machines.dollars(hours):,.0f}"
