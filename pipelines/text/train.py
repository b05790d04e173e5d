"""Training a text model, as a task of the one loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from discrete.text_model import PerDocument, TextTransformer, Wrapped
from pipelines.hardware import seeded
from pipelines.loop import train
from pipelines.models import plain
from pipelines.runs import Run
from pipelines.task import Batch, Task
from pipelines.text.config import TextModelStage
from pipelines.text.corpus import Corpus, Windows
from pipelines.text.likelihood import cost

VALIDATED = 128  # windows that validate while training
DRAWS = 8  # masks of each


class TextTask(Task):
    """A text model: windows of the training text, and the objective's loss."""

    unit = "windows"
    criterion = "bits_per_character"

    def __init__(self, run: Run, name: str, stage: TextModelStage) -> None:
        self.stage, self.seed = stage, run.recipe.seed
        self.corpus = Corpus.load(run, name)
        self.windows = Windows(self.corpus.splits["train"].ids, stage.length, self.seed)
        vocab = self.corpus.tokenizer.vocab_size
        self.network = seeded(self.seed, lambda: TextTransformer(stage.model, vocab))

    def batches(self, cursor: int, rank: int, world: int) -> Iterator[tuple[Batch, int]]:
        """Windows of the training text."""
        return self.windows.batches(cursor, self.stage.training.batch, rank, world)

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Nats per token."""
        tokenizer, x = self.corpus.tokenizer, batch["x"]
        asked = network if isinstance(network, TextTransformer) else Wrapped(network, tokenizer.vocab_size)
        within = asked if tokenizer.end_id is None else PerDocument.of(asked, x, tokenizer.end_id)
        return self.stage.objective.loss(within, x, generator), {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Cost of the validation text, or a bound on it, at fixed masks."""
        model: TextTransformer = network  # type: ignore[assignment]
        text = self.corpus.splits["valid"].cut(VALIDATED * self.stage.length)
        options = {"draws": DRAWS, "end_id": self.corpus.tokenizer.end_id}
        found = cost(model, self.stage.objective, text, self.stage.length, **options)
        return {"bits_per_character": found.bits_per_character, "nats_per_token": found.nats_per_token}


def train_text(run: Run, name: str, stage: TextModelStage) -> dict[str, Any]:
    """Train a text model."""
    task = TextTask(run, name, stage)
    facts = train(task, stage.training, run.stage_folder(name), seed=run.recipe.seed, name=name)
    parameters = sum(parameter.numel() for parameter in task.network.parameters())
    tokens = facts.get("chosen_step", facts["steps"]) * stage.training.batch * stage.length
    return {
        **facts,
        "model": plain(stage.model),
        "vocab_size": task.corpus.tokenizer.vocab_size,
        "tokenizer": task.corpus.tokenizer.hash,
        "parameters": parameters,
        "tokens": tokens,
    }
