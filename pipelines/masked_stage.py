"""Stage two: masked diffusion over cached tokens, as a task of the one loop."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor, nn

from discrete.model import MaskedTransformer
from discrete.task import losses
from pipelines.artefact import load_weights
from pipelines.data.config import Sets
from pipelines.data.decode import caption_only
from pipelines.data.joined import AnySplit
from pipelines.data.shards import open_split
from pipelines.data.stream import Stream
from pipelines.hardware import device_of, seeded, step_generator
from pipelines.loop import train
from pipelines.masked_sampler import MaskedSampler
from pipelines.models import best_weights, device, plain
from pipelines.pair_schedule import learn_powers
from pipelines.runs import Run
from pipelines.sampling import sample_grid
from pipelines.sets import open_sets
from pipelines.stage_config import MdlmStage
from pipelines.task import Batch
from pipelines.text_bound import caption_bound
from pipelines.token_task import TokenTask


class MdlmTask(TokenTask):
    """Masked diffusion over [text | image tokens]: several tasks, one network (discrete.task)."""

    def __init__(self, run: Run, name: str, stage: MdlmStage) -> None:
        self.stage = stage
        super().__init__(run, name, stage)

    def build(self) -> MaskedTransformer:
        """Return a new masked transformer."""
        return MaskedTransformer(self.stage.model, self.layout)

    def batches(self, cursor: int, rank: int, world: int) -> Iterator[tuple[Batch, int]]:
        """Shuffled cached tokens, and where the recipe has them, texts without pictures in step with them."""
        batch, seed = self.batch, self.seed
        pairs = super().batches(cursor, rank, world)
        if self.stage.texts is None and not self.run.texts:
            return pairs
        split, count = self._alone()
        order = split.order(seed, self.run.recipe.block)
        shared = {"rank": rank, "world": world, "workers": self.run.recipe.workers}
        texts = Stream(split=split, order=order, batch=count, decode=caption_only, **shared)
        both = zip(pairs, self.ledger.watch("texts", texts).batches(cursor // batch * count), strict=True)
        return (
            ({**pair, "alone": self.bpe.encode(found["caption"]).tokens}, after) for (pair, after), (found, _) in both
        )

    def _alone(self) -> tuple[AnySplit, int]:
        """Texts without pictures, of the stage or of the data, and how many of them go with a batch of pairs."""
        if self.stage.texts is not None:
            return open_split(self.stage.texts.path, "train"), round(self.stage.texts.share * self.batch)
        data = self.run.recipe.data
        assert isinstance(data, Sets)
        return open_sets(self.run.texts, "train"), int(data.texts_per_picture() * self.batch)

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted cross-entropies of the task mix."""
        x = self.layout.join(batch["text"], batch["codes"].long())  # (B, L)
        total, *parts = losses(network, x, self.layout, self.stage.tasks, generator, batch.get("alone"))
        return total, {name: part.detach() for name, part in zip(("image", "text", "text_alone"), parts, strict=True)}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Bound on held-out captions in nats per token, and the losses of the task mix, at fixed masks."""
        model: MaskedTransformer = network  # type: ignore[assignment]
        text = caption_bound(model, self.layout, self.held_out["text"], self.bpe.pad_id, rounds=3)
        batch = {key: self.held_out[key].to(device_of(network)) for key in ("text", "codes")}
        total, parts = self.loss(network, batch, step_generator(0, 0, 0))
        values = {name: float(value) for name, value in parts.items()}
        return {"nats_per_token": text.per_token, "loss": float(total), **values}

    def pictures(self, network: nn.Module) -> dict[str, Image.Image]:
        """Samples for held-out captions."""
        sampler = MaskedSampler.load(self.run, self.name, network)  # type: ignore[arg-type]
        return {"samples": sample_grid(sampler, self.held_out["caption"], self.run.recipe.settings_for(self.name))}


def _pair_schedule(task: MdlmTask, name: str, steps: int) -> dict[str, Any]:
    """Learn which side of a pair to reveal first, with the weights that the stage will be used with."""
    network = seeded(0, lambda: MaskedTransformer(task.stage.model, task.layout))
    load_weights(network, best_weights(task.run.stage_folder(name)))
    network.to(device()).eval().requires_grad_(False)
    stream = islice(task.batches(0, 0, 1), steps)
    batches, held_out = (
        [task.layout.join(batch["text"], batch["codes"].long()) for batch in part]
        for part in ((batch for batch, _ in stream), [task.held_out])
    )
    return learn_powers(network, batches, held_out[0], seed=task.run.recipe.seed, name=name)


def train_mdlm(run: Run, name: str, stage: MdlmStage) -> dict[str, Any]:
    """Train a masked model."""
    task = MdlmTask(run, name, stage)
    facts = train(task, stage.training, run.stage_folder(name), seed=run.recipe.seed + 1, name=name)
    if stage.pair_schedule_steps and PartialState().is_main_process:
        facts |= _pair_schedule(task, name, stage.pair_schedule_steps)
    return {
        **facts,
        "model": plain(stage.model),
        "layout": plain(task.layout),
        "mask_id": task.layout.mask_id,
        "tokenizer": task.cache.manifest["tokenizer"],
    }
