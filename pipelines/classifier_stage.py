"""A classifier of noisy latents by their captions, as a task of the one loop; its gradient guides a latent model."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from backbone.noise import noise_like
from latent.classifier import MatchConfig, NoisyMatch, contrastive_loss, top_one
from latent.times import sample_times
from pipelines.data.decode import caption_only
from pipelines.data.stream import some
from pipelines.hardware import device_of, seeded, step_generator
from pipelines.latent_stage import CachedLatents, mean_of, spread_times
from pipelines.loop import train
from pipelines.models import plain
from pipelines.runs import Run
from pipelines.stage_config import ClassifierStage
from pipelines.task import Batch, Task

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # times at which validation counts the captions that are found
BANK_SAMPLES = 20_000  # of the training split, at most, whose captions are looked through for the bank


class ClassifierTask(CachedLatents, Task):
    """Noise a latent, tell its caption from those of the batch."""

    def __init__(self, run: Run, name: str, stage: ClassifierStage) -> None:
        super().__init__(run, name, stage.training)
        self.stage = stage
        captions = self._bank()
        self.config = self._config(len(captions))
        self.network = seeded(run.recipe.seed + 2, lambda: NoisyMatch(self.config, stage.schedule))
        self.network.bank.copy_(self.text.rows(captions).pooled)

    def _bank(self) -> list[str]:
        """Distinct captions of training samples, drawn by the seed; all of them where there are few."""
        drawn = some(self.cache.split("train"), caption_only, BANK_SAMPLES, seed=self.run.recipe.seed)
        return list(dict.fromkeys(drawn["caption"]))[: self.stage.model.bank]

    def _config(self, captions: int) -> MatchConfig:
        """Fill in what the encoders and the captions decide."""
        made = self.cache.manifest
        channels = len(made["latent_mean"])
        return dataclasses.replace(
            self.stage.model, channels=channels, pooled_width=made["pooled_width"], bank=captions
        )

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Contrastive loss at random times."""
        z, stage = self.draw(batch["latent"], generator), self.stage
        t = sample_times(stage.times, stage.schedule, (len(z),), generator, low_discrepancy=True).to(z.device)
        eps, pooled = noise_like(z, generator), batch["pooled"].to(z.dtype)
        return contrastive_loss(network, stage.schedule, z, pooled, t, eps), {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Loss at evenly spread times, and the share of captions found in the batch at fixed times; noise is fixed."""
        generator, figures = step_generator(0, 0, 0), list[tuple[int, dict[str, float]]]()
        for batch in self.validating(device_of(network)):
            z = self.draw(batch["latent"], generator)
            eps, pooled = noise_like(z, generator), batch["pooled"].to(z.dtype)
            figures.append((len(z), self._figures(network, z, pooled, eps)))
        return mean_of(figures)

    def _figures(self, network: nn.Module, z: Tensor, pooled: Tensor, eps: Tensor) -> dict[str, float]:
        """Return those of latents (B, c, h, w), with the pooled text and the noise of each."""
        schedule = self.stage.schedule
        spread = spread_times(z)
        found = {
            f"match_t{level}": float(top_one(network, schedule, z, pooled, torch.full_like(spread, level), eps))
            for level in LEVELS
        }
        loss = contrastive_loss(network, schedule, z, pooled, spread, eps)
        return {"loss": float(loss.detach()), **found}

    def facts(self) -> dict[str, Any]:
        """Return what guidance needs to know."""
        return {
            "model": plain(self.config),
            "schedule": plain(self.stage.schedule),
            "latent_mean": self.mean.flatten().tolist(),
            "latent_std": self.std.flatten().tolist(),
            "text_encoder": self.cache.manifest["text_encoder"],
            "cache": self.cache.manifest["hash"],
        }


def train_classifier(run: Run, name: str, stage: ClassifierStage) -> dict[str, Any]:
    """Train a classifier."""
    task = ClassifierTask(run, name, stage)
    facts = train(task, stage.training, run.stage_folder(name), seed=run.recipe.seed + 2, name=name)
    return {**facts, **task.facts()}
