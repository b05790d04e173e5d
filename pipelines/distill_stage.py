"""Students of a latent model that take few steps: progressive distillation, reflow and consistency distillation.

A student has its teacher's network, path and prediction, starts from the teacher's weights, and keeps the teacher's
guidance inside: it is sampled with guidance 1, at half the cost of a step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, assert_never

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from backbone.noise import noise_like
from latent import grid
from latent.condition import Condition
from latent.distill import consistency, noise_beside, progressive
from latent.guide import classifier_free
from latent.predict import Denoise, as_model, bind, corrupt
from latent.times import sample_times
from pipelines.artefact import save_weights
from pipelines.data.order import Shuffle
from pipelines.hardware import device_of, step_generator, to_device
from pipelines.latent_sampler import LatentSampler
from pipelines.latent_stage import LatentTask, condition, mean_of
from pipelines.loop import train
from pipelines.models import load_latent
from pipelines.progress import meter
from pipelines.runs import Run
from pipelines.sampling import batches
from pipelines.sampling_options import Settings
from pipelines.stage_config import DistillStage
from pipelines.task import Batch

PAIRS = "pairs.safetensors"
PAIRS_AT_ONCE = 100


class DistillTask(LatentTask):
    """Ask the student for what the teacher's steps say; the loss is the teacher's own."""

    def __init__(self, run: Run, name: str, stage: DistillStage, folder: Path) -> None:
        super().__init__(run, name, dataclasses.replace(run.recipe.origin(name), training=stage.training))
        self.distill, self.teacher = stage, load_latent(run, run.recipe.teacher(name))
        self.network.load_state_dict(self.teacher.state_dict())
        self.halves = 2 if stage.method == "progressive" else 1  # steps of the teacher for one of the student
        self.times = grid.shift(grid.uniform(self.halves * stage.steps), self.stage.shift)
        self.pairs = self._draw_pairs(folder / PAIRS) if stage.method == "reflow" else {}

    def batches(self, cursor: int, rank: int, world: int) -> Iterator[tuple[Batch, int]]:
        """Shuffled cached latents, or the teacher's pairs in an order of their own."""
        if self.distill.method != "reflow":
            yield from super().batches(cursor, rank, world)
            return
        size = self.stage.training.batch // world
        order = Shuffle([len(self.pairs["x"])], self.run.recipe.seed)
        for start in count(cursor + rank * size, size * world):
            rows = torch.tensor([order.number(position) for position in range(start, start + size)])
            yield {name: part[rows] for name, part in self.pairs.items()}, start - rank * size + size * world

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean weighted error of what the student is asked for."""
        z, eps, t, following = self._drawn(batch, generator)
        schedule, cond = self.stage.schedule, condition(batch, z)
        x_t = corrupt(schedule, z, eps, t)
        match self.distill.method:
            case "progressive":
                z = progressive(self._teacher(cond), schedule, x_t, t, *following)
                eps = noise_beside(schedule, x_t, z, t)
            case "consistency":
                student = bind(as_model(network, schedule, self.stage.prediction), cond)
                z = consistency(self._teacher(cond), student, schedule, x_t, t, *following)
                eps = noise_beside(schedule, x_t, z, t)
            case "reflow":
                pass  # the pair says it
            case _:
                assert_never(self.distill.method)
        nobody = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        return self.losses(network, cond, z, t, eps, nobody).mean(), {}

    def _drawn(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Data, noise, times and the times of the teacher's steps from there."""
        if self.distill.method == "reflow":
            stage = self.stage
            t = sample_times(stage.times, stage.schedule, (len(batch["x"]),), generator, factor=stage.shift)
            return batch["x"], batch["eps"], t.to(batch["x"].device), []
        z = self.draw(batch["latent"], generator)
        first = self.halves * torch.randint(self.distill.steps, (len(z),), generator=generator)
        t, *following = (self.times[first + i].to(z.device) for i in range(self.halves + 1))
        return z, noise_like(z, generator), t, following

    def _teacher(self, cond: Condition) -> Denoise:
        """The teacher with the guidance that the student is to have inside."""
        model = as_model(self.teacher, self.stage.schedule, self.stage.prediction)
        return classifier_free(model, cond, self.teacher.null_condition(len(cond.mask)), self.distill.guidance)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """The loss at fixed draws: on held-out latents, for reflow on the first of its pairs."""
        device, generator, figures = device_of(network), step_generator(0, 0, 0), list[tuple[int, dict[str, float]]]()
        for batch in self._first_pairs(device) if self.distill.method == "reflow" else self.validating(device):
            loss, _ = self.loss(network, batch, generator)
            figures.append((len(batch["mask"]), {"loss": float(loss)}))
        return mean_of(figures)

    def _first_pairs(self, device: torch.device) -> Iterator[Batch]:
        """Yield as many pairs, at most, as there are latents that validate."""
        count = sum(len(batch["caption"]) for batch in self.held_out)
        yield to_device({name: part[:count] for name, part in self.pairs.items()}, device)

    def _draw_pairs(self, path: Path) -> dict[str, Tensor]:
        """Let the teacher draw its pairs of noise and sample, once: an interrupted stage finds them."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_weights(path, self._made_pairs())
        return {**load_file(path), **self.text.rows(self._captions())._asdict()}

    def _captions(self) -> list[str]:
        """Captions of the training split, again from the start where there are fewer than pairs."""
        found = self.cache.batch("train", self.distill.pairs)["caption"]
        return [found[i % len(found)] for i in range(self.distill.pairs)]

    def _made_pairs(self) -> dict[str, Tensor]:
        sampler = LatentSampler.load(self.run, self.run.recipe.teacher(self.name))
        settings = Settings(sampler="dpmpp_2m", steps=self.distill.teacher_steps, guidance=self.distill.guidance)
        parts: dict[str, list[Tensor]] = {"x": [], "eps": []}
        captions = self._captions()
        with meter(f"{self.name} pairs", len(captions)) as shown:
            for prompts, draws in batches(captions, self.run.recipe.seed, PAIRS_AT_ONCE):
                drawn = sampler.draw(prompts, draws, settings)
                parts["x"].append(drawn.z.cpu())
                parts["eps"].append(drawn.eps.cpu())
                shown.advance(len(prompts), "pairs")
        return {name: torch.cat(rows) for name, rows in parts.items()}

    def facts(self) -> dict[str, Any]:
        """Return what sampling needs to know, and who taught."""
        teacher = self.run.recipe.teacher(self.name)
        taught = {"stage": teacher, "hash": self.run.manifest(teacher)["hash"], "guidance": self.distill.guidance}
        return {**super().facts(), "teacher": taught, "method": self.distill.method, "steps": self.distill.steps}


def train_distill(run: Run, name: str, stage: DistillStage) -> dict[str, Any]:
    """Train a student."""
    folder = run.stage_folder(name)
    task = DistillTask(run, name, stage, folder)
    facts = train(task, stage.training, folder, seed=run.recipe.seed, name=name)
    (folder / PAIRS).unlink(missing_ok=True)
    return {**facts, **task.facts()}
