"""Enlarging by diffusion or by a flow from picture to picture, in pixels, as a task of the one loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from backbone.noise import uniform
from latent.loss import diffusion_loss
from latent.times import sample_times
from latent.unet import UNet, UNetConfig
from pipelines.cache import Cache, open_cache
from pipelines.data.decode import two_sizes
from pipelines.data.stream import Stream, once
from pipelines.hardware import device_of, seeded, step_generator, to_device
from pipelines.latent_stage import by_time, condition, dropping, spread_times, text_sizes
from pipelines.loop import train
from pipelines.models import plain
from pipelines.pictures import enlarged, grid, to_pil
from pipelines.runs import Run
from pipelines.sampling import generators
from pipelines.stage_config import UpscaleStage
from pipelines.task import Batch, Task
from pipelines.upscale_sampler import Upscaler, beside_picture, ending, tell

HELD_OUT = 64  # pictures that validate
SHOWN = 6  # pictures in a sheet while training


class UpscaleTask(Task):
    """Tell the network a small picture with some noise, ask for the way to the large one."""

    def __init__(self, run: Run, name: str, stage: UpscaleStage) -> None:
        self.run, self.name, self.stage = run, name, stage
        self.cache = open_cache(run, name)
        self.text = self.cache.text_table()
        self.decode = two_sizes(stage.size, stage.source)
        self.split = run.open("train")
        self.held_out = next(once(run.held_out(), self.decode, batch=HELD_OUT))
        self.config = upscale_config(stage, self.cache)
        self.network = seeded(run.recipe.seed, lambda: UNet(self.config))
        self.objective = stage.objective()

    def batches(self, cursor: int, rank: int, world: int) -> Iterator[tuple[Batch, int]]:
        """Shuffled pictures in both sizes, with the embeddings of their captions."""
        batch, recipe = self.stage.training.batch, self.run.recipe
        order = self.split.order(recipe.seed, recipe.block)
        shared = {"rank": rank, "world": world, "workers": recipe.workers}
        stream = Stream(split=self.split, decode=self.decode, batch=batch, order=order, **shared)
        for items, after in self.ledger.watch("train", stream).batches(cursor):
            yield self._with_text(items), after

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean weighted error at random times and noise levels, a share of the captions left out."""
        stage, count = self.stage, len(batch["image"])
        t = sample_times(stage.times, stage.schedule, (count,), generator, factor=stage.shift, low_discrepancy=True)
        level = stage.level * uniform((count,), generator)
        dropped = uniform((count,), generator) < stage.caption_dropout
        return self._losses(network, batch, t, level, dropped, generator).mean(), {}

    def _losses(
        self, network: nn.Module, batch: Batch, t: Tensor, level: Tensor, dropped: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Weighted errors (B,) at times t, of items told with noise of a level, `dropped` ones without their text."""
        x = batch["image"]
        cond = tell(condition(batch, x), batch["low"], self.stage.size, level.to(x), generator)
        x_1 = ending(self.stage, cond, generator)
        asked = beside_picture(dropping(network, dropped.to(x.device)), self.stage)
        return diffusion_loss(asked, self.objective, x, cond, t.to(x.device), x_1)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Loss on held-out pictures at evenly spread times, the level of sampling and fixed noise."""
        batch = to_device(self._with_text(self.held_out), device_of(network))
        t = spread_times(batch["image"])
        level = torch.full_like(t, self.run.recipe.settings_for(self.name).latent.level or 0.0)
        nobody = torch.zeros(len(t), dtype=torch.bool, device=t.device)
        return by_time(self._losses(network, batch, t, level, nobody, step_generator(0, 0, 0)))

    def pictures(self, network: nn.Module) -> dict[str, Image.Image]:
        """Held-out pictures: small, enlarged by the model, and as they are."""
        shown = {key: value[:SHOWN] for key, value in self.held_out.items()}
        captions = shown["caption"]
        upscaler = Upscaler.load(self.run, self.name, network)  # type: ignore[arg-type]
        settings = self.run.recipe.settings_for(self.name)
        found = upscaler.enlarge(shown["low"], captions, generators(captions, 0), settings)
        columns = enlarged(shown["low"], self.stage.size), found, shown["image"]
        rows = zip(*(to_pil(column) for column in columns), strict=True)
        return {"enlarged": grid([picture for row in rows for picture in row], columns=len(columns))}

    def facts(self) -> dict[str, Any]:
        """Return what sampling needs to know."""
        stage = self.stage
        return {
            "model": plain(self.config),
            "schedule": plain(stage.schedule),
            **{name: getattr(stage, name) for name in ("prediction", "shift", "size", "source", "start", "level")},
            "text_encoder": self.cache.manifest["text_encoder"],
            "cache": self.cache.manifest["hash"],
        }

    def _with_text(self, items: Batch) -> Batch:
        return {**items, **self.text.rows(items["caption"])._asdict()}


def upscale_config(stage: UpscaleStage, cache: Cache) -> UNetConfig:
    """Fill in the colours, which the picture that the model is told has as well, and what the text encoder decides."""
    return dataclasses.replace(stage.model, channels=3, image_channels=3, **text_sizes(cache))


def train_upscale(run: Run, name: str, stage: UpscaleStage) -> dict[str, Any]:
    """Train a model that enlarges."""
    task = UpscaleTask(run, name, stage)
    facts = train(task, stage.training, run.stage_folder(name), seed=run.recipe.seed, name=name)
    return {**facts, **task.facts()}
