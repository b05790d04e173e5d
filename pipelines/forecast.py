"""`palimpsest plan RECIPE`: what the trainings of a recipe take on a number of GPUs, before anything is rented.

Operations and memory are counted (`pipelines.cost`); time and price follow from stated assumptions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelines.amount import Amount, volume
from pipelines.cost import Memory, memory, operations, without_values
from pipelines.dry import aligned, check_files, in_bytes
from pipelines.errors import PalimpsestError
from pipelines.gpus import GPUS, Gpu
from pipelines.hardware import size_of
from pipelines.passes import encoders_of, players_of
from pipelines.progress import Tick
from pipelines.recipe import Recipe
from pipelines.stage_config import EncodeStage, MdlmStage
from pipelines.task import Training

NODE = 8  # GPUs that share fast links
NETWORK = 50e9  # bytes a second of each GPU to other nodes (400 Gbit/s)
RUNTIME = 1.5e9  # bytes that CUDA and its libraries hold on a GPU
FULL = 0.92  # of a GPU's memory: what is beyond is lost in gaps between tensors
PARTS = ("weights", "gradients", "optimizer", "average", "activations")
MEMORY = ("stage", "parameters", "items", *PARTS, "with runtime", "of GPU")
TIME = ("stage", "operations/item", "items/s", "steps", "hours", "GPU hours", "dollars", "items read")
NOTE = (
    "Counted: operations of matrix products, convolutions and attention, forward, backward and run again; bytes of all "
    f"tensors of a step. Assumed: the utilisation, the rent, links at the makers' figures (nodes of {NODE}, "
    f"{NETWORK / 1e9:.0f} GB/s between them), {RUNTIME / 1e9:.1f} GB of CUDA's own. Time for loading, validation and "
    "pictures comes on top. Stages that train nothing are left out."
)


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What a recipe is planned for. utilisation: share of the peak of matrix products that training reaches."""

    gpus: int
    gpu: str = "h200"
    utilisation: float = 0.35
    price: float | None = None  # dollars for a GPU and an hour; none takes the table's

    def __post_init__(self) -> None:
        """Refuse what no machine is."""
        if self.gpus < 1:
            raise PalimpsestError(f"--gpus is {self.gpus}, expected 1 or more")
        if self.gpu not in GPUS:
            raise PalimpsestError(f"--gpu is {self.gpu!r}, expected one of {', '.join(GPUS)}")
        if not 0 < self.utilisation <= 1:
            raise PalimpsestError(f"--utilisation is {self.utilisation}, expected a share of the peak, such as 0.35")
        if self.price is not None and self.price < 0:
            raise PalimpsestError(f"--price is {self.price}, expected 0 or more dollars for a GPU and an hour")

    @property
    def kind(self) -> Gpu:
        """The GPU."""
        return GPUS[self.gpu]

    @property
    def rent(self) -> float:
        """Dollars for a GPU and an hour."""
        return self.kind.price if self.price is None else self.price

    def dollars(self, hours: float) -> float:
        """Return what all of them cost for so long."""
        return self.gpus * hours * self.rent

    def __str__(self) -> str:
        return (
            f"{self.gpus} x {self.gpu} ({in_bytes(self.kind.memory)}, {self.kind.bf16 / 1e12:.0f} TFLOP/s of bf16, of "
            f"which training is taken to reach {self.utilisation:.0%}; {self.rent:g} dollars an hour each)"
        )


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What the training of one stage takes: on each GPU of a step, and in all."""

    name: str
    training: Training
    parameters: int
    operations: float  # of one item, both players
    memory: Memory
    machines: Machines

    @property
    def items(self) -> int:
        """Items that a GPU has at once."""
        return at_once(self.training, self.machines.gpus)

    @property
    def held(self) -> float:
        """Bytes on each GPU, with the buckets in which gradients are sent, and the runtime."""
        return self.memory.total + RUNTIME + (4 * self.parameters if self.machines.gpus > 1 else 0)

    @property
    def computing(self) -> float:
        """Seconds of a step's operations."""
        peak = self.machines.kind.bf16 if self.training.bf16 else self.machines.kind.fp32
        return self.training.batch / self.machines.gpus * self.operations / (peak * self.machines.utilisation)

    @property
    def sending(self) -> float:
        """Seconds in which the gradients of a step go around all GPUs, in float32."""
        gpus, links = self.machines.gpus, self.machines.kind.links
        return 2 * (gpus - 1) / gpus * 4 * self.parameters / (links if gpus <= NODE else NETWORK)

    @property
    def seconds(self) -> float:
        """Of a step: the exchange hides behind the operations, or they behind it."""
        return max(self.computing, self.sending)

    @property
    def steps(self) -> int:
        """As the recipe has them, or as its minutes allow."""
        return self.training.steps or int(60 * (self.training.minutes or 0) / self.seconds)


def at_once(training: Training, gpus: int) -> int:
    """Return the items of a micro-batch on each GPU. Raises ValueError where they do not divide."""
    parts = gpus * training.accumulate
    if training.batch % parts:
        raise ValueError(
            f"training.batch is {training.batch}, which {gpus} GPUs in {training.accumulate} parts do not divide: "
            f"try {-(-training.batch // parts) * parts}"
        )
    return training.batch // parts


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
    return Outlook(
        name=name,
        training=training,
        parameters=sum(p.numel() for player in players for p in player.network.parameters()),
        operations=counted,
        memory=Memory(**together),
        machines=machines,
    )


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


def warnings_of(one: Outlook) -> Iterator[str]:
    """Yield a sentence for each thing that will go wrong, with a remedy."""
    kind, training = one.machines.kind, one.training
    if one.held > FULL * kind.memory:
        standing = one.held - one.memory.activations
        remedy = "fewer parameters, or a GPU with more memory"
        if standing < FULL * kind.memory and one.items > 1:
            parts = training.accumulate * -(-one.memory.activations // int(FULL * kind.memory - standing))
            remedy = f"stage.{one.name}.training.accumulate = {_dividing(training.batch // one.machines.gpus, parts)}"
        yield (
            f"{one.name} WILL NOT FIT: {in_bytes(one.held)} on a GPU of {in_bytes(kind.memory)}, of which "
            f"{FULL:.0%} can be used. Try {remedy}, or checkpointing = true where its model has it."
        )
    if one.sending > one.computing:
        yield (
            f"{one.name} waits for its gradients: {one.sending * 1e3:.0f} ms of exchange for "
            f"{one.computing * 1e3:.0f} ms of operations a step. Take a larger batch, or fewer GPUs."
        )


def _dividing(items: int, parts: int) -> int:
    """Return the smallest number from `parts` on that divides `items`."""
    return next((number for number in range(parts, items) if items % number == 0), items)
