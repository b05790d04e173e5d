"""Stage two: latent diffusion and masked diffusion over cached codes, as tasks of the one loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from backbone.block import Block
from backbone.noise import noise_like, uniform
from discrete.layout import Layout
from discrete.model import MaskedTransformer
from discrete.task import losses
from latent.dit import Condition, DiT, DiTConfig
from latent.loss import Objective, diffusion_loss, sample_times
from pipelines.cache import Cache, open_cache
from pipelines.hardware import device_of, seeded, step_generator, to_device
from pipelines.latent_sampler import LatentSampler
from pipelines.loop import train
from pipelines.masked_sampler import MaskedSampler
from pipelines.models import load_bpe, load_vqvae, plain
from pipelines.pictures import grid
from pipelines.runs import Run
from pipelines.sampling import PictureSampler, Settings, draw, settings_for
from pipelines.stage_config import LatentStage, MdlmStage
from pipelines.task import Batch, Task
from pipelines.text_bound import caption_bound

HELD_OUT = 256
SHOWN = 16


class LatentTask(Task):
    """Noise a latent, predict the target: flow matching and DDPM alike."""

    def __init__(self, run: Run, name: str, stage: LatentStage) -> None:
        self.run, self.name, self.stage = run, name, stage
        self.cache = open_cache(run, name)
        self.text = self.cache.text_table()
        self.config = latent_config(stage, self.cache)
        self.network = seeded(run.recipe.seed, lambda: DiT(self.config))
        self.objective = Objective(schedule=stage.schedule, prediction=stage.prediction, weighting=stage.weighting)
        self.mean, self.std = (
            torch.tensor(self.cache.manifest[k])[:, None, None] for k in ("latent_mean", "latent_std")
        )
        self.held_out = self.cache.batch(self.cache.held_out, HELD_OUT)

    def compiled_parts(self) -> list[nn.Module]:
        """The transformer blocks."""
        return blocks_of(self.network)

    def batches(self, cursor: int, rank: int, world: int) -> Iterator[tuple[Batch, int]]:
        """Shuffled cached latents with the embeddings of their captions."""
        stream = self.cache.stream("train", self.stage.training.batch, self.run.recipe.seed, rank, world)
        for batch, after in stream.batches(cursor):
            yield {**batch, **self.text.rows(batch["caption"])._asdict()}, after

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean weighted error at random times, a share of the captions replaced by the null embedding."""
        z = self._draw(batch["latent"], generator)
        stage, count = self.stage, len(z)
        t = sample_times(
            stage.times, (count,), generator, mean=stage.times_mean, std=stage.times_std, low_discrepancy=True
        )
        dropped = uniform((count,), generator) < stage.caption_dropout
        losses = self._losses(network, batch, z, t.to(z.device), noise_like(z, generator), dropped.to(z.device))
        return losses.mean(), {}

    def _losses(self, network: nn.Module, batch: Batch, z: Tensor, t: Tensor, eps: Tensor, dropped: Tensor) -> Tensor:
        cond = Condition(batch["tokens"].to(z.dtype), batch["mask"], batch["pooled"].to(z.dtype))
        return diffusion_loss(lambda x_t, t, c: network(x_t, t, c, dropped), self.objective, z, cond, t.float(), eps)

    def _draw(self, moments: Tensor, generator: torch.Generator) -> Tensor:
        """Draw from the posterior and normalise: (B, 2, c, h, w) -> (B, c, h, w)."""
        mean, log_var = moments.float().unbind(1)
        z = mean + torch.exp(log_var / 2) * noise_like(mean, generator)
        return (z - self.mean.to(z.device)) / self.std.to(z.device)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Loss on held-out latents at fixed, evenly spread times and fixed noise."""
        device, generator = device_of(network), step_generator(0, 0, 0)
        batch = to_device({**self.held_out, **self.text.rows(self.held_out["caption"])._asdict()}, device)
        z = self._draw(batch["latent"], generator)
        t = (torch.arange(len(z), device=device) + 0.5) / len(z)
        losses = self._losses(
            network, batch, z, t, noise_like(z, generator), torch.zeros(len(z), dtype=torch.bool, device=device)
        )
        return {"loss": float(losses.mean())}

    def pictures(self, network: nn.Module) -> dict[str, Image.Image]:
        """Samples for held-out captions."""
        sampler = LatentSampler.load(self.run, self.name, network)  # type: ignore[arg-type]
        return {"samples": sample_grid(sampler, self.held_out["caption"], settings_for(self.run.recipe, self.name))}

    def facts(self) -> dict[str, Any]:
        """Return what sampling needs to know."""
        stage = self.stage
        return {
            "model": dataclasses.asdict(self.config),
            "schedule": dataclasses.asdict(stage.schedule),
            "prediction": stage.prediction,
            "latent_mean": self.mean.flatten().tolist(),
            "latent_std": self.std.flatten().tolist(),
            "latent_size": self.cache.manifest["latent_size"],
            "cache": self.cache.manifest["hash"],
        }


def latent_config(stage: LatentStage, cache: Cache) -> DiTConfig:
    """Fill in what the encoders decide: latent channels, text widths and length."""
    made = cache.manifest
    return dataclasses.replace(
        stage.model,
        channels=len(made["latent_mean"]),
        text_width=made["text_width"],
        pooled_width=made["pooled_width"],
        text_length=made["embedding_length"],
    )


class MdlmTask(Task):
    """Masked diffusion over [text | image tokens]: several tasks, one network (discrete.task)."""

    unit = "sequences"

    def __init__(self, run: Run, name: str, stage: MdlmStage) -> None:
        self.run, self.name, self.stage = run, name, stage
        self.cache = open_cache(run, name)
        self.layout = Layout(**self.cache.manifest["layout"])
        self.network = seeded(run.recipe.seed + 1, self._build)
        self.held_out = self.cache.batch(self.cache.held_out, HELD_OUT)
        self.pad_id = load_bpe(run, run.need(name, "bpe")[0]).pad_id

    def _build(self) -> MaskedTransformer:
        network = MaskedTransformer(self.stage.model, self.layout)
        vqvae = load_vqvae(self.run, self.run.need(self.name, "vqvae")[0])
        network.initialise_codes(vqvae.quantizer.codebook.cpu(), step_generator(self.run.recipe.seed, 0, 0))
        return network

    def compiled_parts(self) -> list[nn.Module]:
        """The transformer blocks."""
        return blocks_of(self.network)

    def batches(self, cursor: int, rank: int, world: int) -> Iterator[tuple[Batch, int]]:
        """Shuffled cached tokens."""
        stream = self.cache.stream("train", self.stage.training.batch, self.run.recipe.seed + 1, rank, world)
        return stream.batches(cursor)

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted cross-entropies of the task mix."""
        x = self.layout.join(batch["text"], batch["codes"].long())  # (B, L)
        total, *parts = losses(network, x, self.layout, self.stage.tasks, generator)
        return total, {name: part.detach() for name, part in zip(("image", "text", "text_alone"), parts, strict=True)}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Bound on held-out captions in nats per token, and the losses of the task mix, at fixed masks."""
        model: MaskedTransformer = network  # type: ignore[assignment]
        text = caption_bound(model, self.layout, self.held_out["text"], self.pad_id, rounds=3)
        batch = {key: self.held_out[key].to(device_of(network)) for key in ("text", "codes")}
        total, parts = self.loss(network, batch, step_generator(0, 0, 0))
        values = {name: float(value) for name, value in parts.items()}
        return {"nats_per_token": text.per_token, "loss": float(total), **values}

    def pictures(self, network: nn.Module) -> dict[str, Image.Image]:
        """Samples for held-out captions."""
        sampler = MaskedSampler.load(self.run, self.name, network)  # type: ignore[arg-type]
        return {"samples": sample_grid(sampler, self.held_out["caption"], settings_for(self.run.recipe, self.name))}


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks of a network: many of one shape, so that compiling one serves all."""
    return [module for module in network.modules() if isinstance(module, Block)]


def sample_grid(sampler: PictureSampler, captions: list[str], settings: Settings) -> Image.Image:
    """Draw the first held-out captions, always with the same noise."""
    return grid(draw(sampler, captions[:SHOWN], settings, seed=0))


def train_latent(run: Run, name: str, stage: LatentStage) -> dict[str, Any]:
    """Train a latent model."""
    task = LatentTask(run, name, stage)
    facts = train(task, stage.training, run.stage_folder(name), seed=run.recipe.seed, name=name)
    return {**facts, **task.facts()}


def train_mdlm(run: Run, name: str, stage: MdlmStage) -> dict[str, Any]:
    """Train a masked model."""
    task = MdlmTask(run, name, stage)
    facts = train(task, stage.training, run.stage_folder(name), seed=run.recipe.seed + 1, name=name)
    return {
        **facts,
        "model": plain(stage.model),
        "layout": plain(task.layout),
        "mask_id": task.layout.mask_id,
        "tokenizer": task.cache.manifest["tokenizer"],
    }
