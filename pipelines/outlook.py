"""What the training of one stage takes on a number of GPUs: memory and time of a step, from what was counted."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.cost import Memory
from pipelines.dry import in_bytes
from pipelines.errors import PalimpsestError
from pipelines.gpus import GPUS, Gpu
from pipelines.task import Training

NODE = 8  # GPUs that share fast links
NETWORK = 50e9  # bytes a second of each GPU to other nodes (400 Gbit/s)
RUNTIME = 1.5e9  # bytes that CUDA and its libraries hold on a GPU
FULL = 0.92  # of a GPU's memory: what is beyond is lost in gaps between tensors


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
    parts: int = 1  # GPUs that share one copy of the state
    other: Memory | None = None  # that of a step with training.shard = "full", where it is not sharded and does not fit

    @property
    def items(self) -> int:
        """Items that a GPU has at once."""
        return at_once(self.training, self.machines.gpus)

    @property
    def held(self) -> float:
        """Bytes on each GPU, with the buckets in which gradients are sent, and the runtime."""
        return self.memory.total + RUNTIME + (4 * self.parameters if self.machines.gpus > self.parts == 1 else 0)

    def fits(self, held: float) -> bool:
        """Whether so many bytes have room on a GPU."""
        return held <= FULL * self.machines.kind.memory

    @property
    def computing(self) -> float:
        """Seconds of a step's operations."""
        peak = self.machines.kind.bf16 if self.training.bf16 else self.machines.kind.fp32
        return self.training.batch / self.machines.gpus * self.operations / (peak * self.machines.utilisation)

    @property
    def sending(self) -> float:
        """Seconds in which the gradients of a step go around all GPUs, in float32.

        Sharded ones go around once, and between copies of the state once more; weights are gathered for the forward and
        for the backward pass of each micro-batch, and gradients added up.
        """
        gpus, links, parts = self.machines.gpus, self.machines.kind.links, self.parts
        if parts == 1:
            return 2 * (gpus - 1) / gpus * 4 * self.parameters / (links if gpus <= NODE else NETWORK)
        copies, gathered = gpus // parts, 2 if self.training.bf16 else 4
        inside = (parts - 1) / parts * (2 * gathered + 4) * self.parameters / (links if parts <= NODE else NETWORK)
        across = 2 * (copies - 1) / copies * 4 * self.parameters / parts / NETWORK
        return self.training.accumulate * (inside + across)

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
