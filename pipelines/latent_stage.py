"""Stage two: latent diffusion over cached latents, as a task of the one loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from backbone.noise import noise_like, uniform
from latent.condition import AnyCondition, Condition
from latent.couple import transport
from latent.loss import diffusion_loss
from latent.predict import Network
from latent.times import sample_times
from pipelines.cache import Cache, open_cache
from pipelines.data.ratios import Shape
from pipelines.hardware import device_of, seeded, step_generator, to_device
from pipelines.latent_sampler import LatentSampler
from pipelines.ledger import Ledger
from pipelines.loop import train
from pipelines.models import build_latent
from pipelines.pictures import grid
from pipelines.runs import Run
from pipelines.sampling import SHOWN, draw
from pipelines.sampling_options import Settings
from pipelines.stage_two_config import LatentConfig, LatentStage
from pipelines.task import HELD_OUT, Batch, Task, Training

TIME_BINS = 4


class CachedLatents:
    """What every task over cached latents stands on: the latents, with the embeddings of their captions."""

    def __init__(self, run: Run, name: str, training: Training) -> None:
        self.run, self.name, self.training = run, name, training
        self.cache = open_cache(run, name)
        self.text = self.cache.text_table()
        self.mean, self.std = (
            torch.tensor(self.cache.manifest[k])[:, None, None] for k in ("latent_mean", "latent_std")
        )
        self.held_out = self.cache.batches(self.cache.held_out, HELD_OUT)  # of one shape each
        self.ledger = Ledger()

    def batches(self, cursor: int, rank: int, world: int) -> Iterator[tuple[Batch, int]]:
        """Shuffled cached latents with the embeddings of their captions."""
        stream = self.cache.stream("train", self.training.batch, self.run.recipe.seed, rank, world)
        for batch, after in self.ledger.watch("train", stream).batches(cursor):
            yield self.with_text(batch), after

    def with_text(self, batch: Batch) -> Batch:
        """Return a batch of the cache with the embeddings of its captions."""
        return {**batch, **self.text.rows(batch["caption"])._asdict()}

    def validating(self, device: torch.device) -> Iterator[Batch]:
        """Yield the latents that validate, with the embeddings of their captions, in batches of one shape each."""
        return (to_device(self.with_text(batch), device) for batch in self.held_out)

    def draw(self, moments: Tensor, generator: torch.Generator) -> Tensor:
        """Draw from the posterior and normalise: (B, 2, c, h, w) -> (B, c, h, w)."""
        mean, log_var = moments.float().unbind(1)
        z = mean + torch.exp(log_var / 2) * noise_like(mean, generator)
        return (z - self.mean.to(z.device)) / self.std.to(z.device)

    def spread(self, moments: Tensor) -> float:
        """Return the posterior's standard deviation in normalised latents: the root mean square of (B, 2, c, h, w)."""
        variance = torch.exp(moments[:, 1].float()) / self.std.to(moments.device) ** 2
        return variance.mean().sqrt().item()


class LatentTask(CachedLatents, Task):
    """Noise a latent, predict the target: flow matching and DDPM alike."""

    def __init__(self, run: Run, name: str, stage: LatentStage) -> None:
        super().__init__(run, name, stage.training)
        self.stage = stage
        self.config = latent_config(stage, self.cache)
        self.network = seeded(run.recipe.seed, lambda: build_latent(self.config))
        self.objective = stage.objective()

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean weighted error at random times, a share of the captions replaced by the null embedding."""
        z = self.draw(batch["latent"], generator)
        stage, count = self.stage, len(z)
        t = sample_times(stage.times, stage.schedule, (count,), generator, factor=stage.shift, low_discrepancy=True)
        dropped = uniform((count,), generator) < stage.caption_dropout
        eps = noise_like(z, generator)
        if stage.coupling == "transport":
            eps = transport(z, eps)
        return self.losses(network, condition(batch, z), z, t.to(z.device), eps, dropped.to(z.device)).mean(), {}

    def losses(self, network: nn.Module, cond: Condition, z: Tensor, t: Tensor, eps: Tensor, dropped: Tensor) -> Tensor:
        """Weighted errors (B,); `dropped` items are asked without their text."""
        return diffusion_loss(dropping(network, dropped), self.objective, z, cond, t, eps)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Loss on held-out latents at fixed, evenly spread times and fixed noise, in all and per quarter of time."""
        device, generator = device_of(network), step_generator(0, 0, 0)
        times, losses = list[Tensor](), list[Tensor]()
        for batch in self.validating(device):
            z = self.draw(batch["latent"], generator)
            t, nobody = spread_times(z), torch.zeros(len(z), dtype=torch.bool, device=device)
            losses.append(self.losses(network, condition(batch, z), z, t, noise_like(z, generator), nobody))
            times.append(t)
        return by_time(torch.cat(losses)[torch.cat(times).argsort(stable=True)])

    def pictures(self, network: nn.Module) -> dict[str, Image.Image]:
        """Samples for held-out captions, of the shapes of their pictures."""
        sampler = LatentSampler.load(self.run, self.name, network)  # type: ignore[arg-type]
        settings, images = unguided_by_others(self.run.recipe.settings_for(self.name)), list[Image.Image]()
        each = max(1, SHOWN // len(self.held_out))
        for batch in self.held_out[:SHOWN]:
            own = dataclasses.replace(sampler, shape=Shape(*batch["latent"].shape[-2:]))
            images += draw(own, batch["caption"][:each], settings, seed=0)
        return {"samples": grid(images)}

    def facts(self) -> dict[str, Any]:
        """Return what sampling needs to know."""
        stage = self.stage
        return {
            "model": dataclasses.asdict(self.config),
            "schedule": dataclasses.asdict(stage.schedule),
            "prediction": stage.prediction,
            "shift": stage.shift,
            "latent_mean": self.mean.flatten().tolist(),
            "latent_std": self.std.flatten().tolist(),
            "latent_size": self.cache.manifest["latent_size"],
            "cache": self.cache.manifest["hash"],
        }


def unguided_by_others(settings: Settings) -> Settings:
    """Return settings that ask no other stage for guidance: it may not be there yet while this one trains."""
    options = dataclasses.replace(settings.latent, weak="", classifier="", classifier_scale=1.0)
    return dataclasses.replace(settings, guidance=1.0 if settings.latent.weak else settings.guidance, latent=options)


def condition(batch: Batch, z: Tensor) -> Condition:
    """Return the text of a batch in the dtype of the latents z."""
    return Condition(batch["tokens"].to(z.dtype), batch["mask"], batch["pooled"].to(z.dtype))


def dropping(network: nn.Module, dropped: Tensor) -> Network[AnyCondition]:
    """Return the network with the text of the `dropped` items, (B,) bool, left out."""

    def asked(x_t: Tensor, t: Tensor, cond: AnyCondition) -> Tensor:
        return network(x_t, t, cond, dropped)

    return asked


def spread_times(x: Tensor) -> Tensor:
    """Return evenly spread times for the items of x (B, ...), rising, (B,) float64."""
    return (torch.arange(len(x), device=x.device, dtype=torch.float64) + 0.5) / len(x)


def mean_of(figures: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Return the mean of figures of batches, each of which counts as often as it has items."""
    whole = sum(count for count, _ in figures)
    return {name: sum(count * found[name] for count, found in figures) / whole for name in figures[0][1]}


def by_time(losses: Tensor) -> dict[str, float]:
    """Return the mean of losses at rising, evenly spread times, (B,), in all and per quarter of time."""
    bins = {
        f"loss_t{i / TIME_BINS:.2f}-{(i + 1) / TIME_BINS:.2f}": float(part.mean())
        for i, part in enumerate(losses.tensor_split(TIME_BINS))
    }
    return {"loss": float(losses.mean()), **bins}


def latent_config(stage: LatentStage, cache: Cache) -> LatentConfig:
    """Fill in what the encoders decide: latent channels and text sizes."""
    return dataclasses.replace(stage.model, channels=len(cache.manifest["latent_mean"]), **text_sizes(cache))


def text_sizes(cache: Cache) -> dict[str, int]:
    """Return the fields of a network's configuration that the text encoder decides."""
    made = cache.manifest
    return {
        "text_width": made["text_width"],
        "pooled_width": made["pooled_width"],
        "text_length": made["embedding_length"],
    }


def train_latent(run: Run, name: str, stage: LatentStage) -> dict[str, Any]:
    """Train a latent model."""
    task = LatentTask(run, name, stage)
    facts = train(task, stage.training, run.stage_folder(name), seed=run.recipe.seed, name=name)
    return {**facts, **task.facts()}
