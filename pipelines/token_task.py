"""What the tasks of stage two share that learn [text | image tokens] from a cache."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from discrete.spans import SpanNetwork
from pipelines.cache import open_cache
from pipelines.hardware import seeded, step_generator
from pipelines.models import load_bpe, load_vqvae
from pipelines.runs import Run
from pipelines.stage_config import ArStage, MdlmStage
from pipelines.task import HELD_OUT, Batch, Task


class TokenTask(Task):
    """A network whose codes start from the codebook, and cached tokens."""

    unit = "sequences"

    def __init__(self, run: Run, name: str, stage: MdlmStage | ArStage) -> None:
        self.run, self.name, self.batch, self.seed = run, name, stage.training.batch, run.recipe.seed + 1
        self.cache = open_cache(run, name)
        self.layout = self.cache.layout
        self.network = seeded(self.seed, self._started)
        self.held_out = self.cache.batch(self.cache.held_out, HELD_OUT)
        self.bpe = load_bpe(run, run.need(name, "bpe")[0])

    @abstractmethod
    def build(self) -> SpanNetwork:
        """Return a new network over `layout`."""

    def _started(self) -> SpanNetwork:
        network = self.build()
        vqvae = load_vqvae(self.run, self.run.need(self.name, "vqvae")[0])
        network.initialise_codes(vqvae.codewords().detach().cpu(), step_generator(self.run.recipe.seed, 0, 0))
        return network

    def batches(self, cursor: int, rank: int, world: int) -> Iterator[tuple[Batch, int]]:
        """Shuffled cached tokens."""
        return self.ledger.watch("train", self.cache.stream("train", self.batch, self.seed, rank, world)).batches(
            cursor
        )
