"""What all samplers share: settings, generators that tie a picture to its prompt, and drawing in batches."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, assert_never

import torch
from PIL import Image

from pipelines.errors import PalimpsestError
from pipelines.pictures import grid
from pipelines.progress import meter
from pipelines.recipe import Recipe
from pipelines.sampling_options import LatentOptions
from pipelines.stage_config import DistillStage, GenerateStage

Item = TypeVar("Item")
SHOWN = 16  # samples that training shows


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to sample."""

    sampler: str
    steps: int
    guidance: float
    latent: LatentOptions = field(default_factory=LatentOptions)  # of a latent model
    temperature: float = 1.0
    choice_temperature: float = 0.0  # of the confidence sampler's order
    caption_guidance: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        if self.steps < 1:
            raise PalimpsestError(f"steps is {self.steps}, expected at least 1; 12 is usual for pictures")
        if self.temperature <= 0:
            raise PalimpsestError(
                f"temperature is {self.temperature}, expected a number above 0; 1 is the model itself"
            )


DEFAULTS = {
    "latent": GenerateStage(sampler="ancestral_large", steps=12, guidance=3.0),
    "upscale": GenerateStage(sampler="dpmpp_2m", steps=8, guidance=1.5),
    "mdlm": GenerateStage(sampler="masked_ancestral", steps=12, guidance=2.5, temperature=0.7),
}


def settings_for(recipe: Recipe, model: str) -> Settings:
    """Return the settings that the recipe generates with from the stage `model`, or its kind's usual ones."""
    for stage in recipe.stage.values():
        if isinstance(stage, GenerateStage) and model in stage.needs:
            return settings_of(stage)
    stage = recipe.stage[model]
    return student_settings(stage) if isinstance(stage, DistillStage) else settings_of(DEFAULTS[stage.kind])


def student_settings(student: DistillStage, steps: int | None = None) -> Settings:
    """Return how a student is sampled: with the steps it was trained for, its guidance inside it."""
    match student.method:
        case "progressive":
            return Settings(sampler="ddim", steps=steps or student.steps, guidance=1.0)
        case "reflow":
            return Settings(sampler="euler", steps=steps or student.steps, guidance=1.0)
        case "consistency":
            return Settings(sampler="consistency", steps=steps or 2, guidance=1.0)
        case _:
            assert_never(student.method)


def settings_of(stage: GenerateStage) -> Settings:
    """Return the sampling settings of a stage."""
    return Settings(**{field.name: getattr(stage, field.name) for field in dataclasses.fields(Settings)})


class PictureSampler(Protocol):
    """What draws pictures: a latent or a masked model, or a cascade."""

    def pictures(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], settings: Settings
    ) -> list[Image.Image]:
        """Return one picture per prompt."""
        ...


def generators(prompts: Sequence[str], seed: int) -> list[torch.Generator]:
    """Return one generator per prompt, a function of (seed, prompt, number of equal prompts before it)."""
    seen: Counter[str] = Counter()
    made = []
    for prompt in prompts:
        key = hashlib.sha256(f"{seed}/{seen[prompt]}/{prompt}".encode("utf-8", "replace")).digest()
        made.append(torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1))
        seen[prompt] += 1
    return made


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Cut a sequence into pieces of `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def batches(prompts: Sequence[str], seed: int, size: int) -> Iterator[tuple[list[str], list[torch.Generator]]]:
    """Yield the prompts in batches, each prompt with its generator."""
    for part in chunks(list(zip(prompts, generators(prompts, seed), strict=True)), size):
        yield [prompt for prompt, _ in part], [generator for _, generator in part]


def draw(
    sampler: PictureSampler, prompts: Sequence[str], settings: Settings, *, seed: int, batch: int = 50, name: str = ""
) -> list[Image.Image]:
    """Draw one picture per prompt, in batches."""
    images: list[Image.Image] = []
    with meter(name or "pictures", len(prompts)) as shown:
        for part, draws in batches(prompts, seed, batch):
            images += sampler.pictures(part, draws, settings)
            shown.advance(len(part), "pictures")
    return images


def sample_grid(sampler: PictureSampler, captions: list[str], settings: Settings) -> Image.Image:
    """Draw the first held-out captions, always with the same noise."""
    return grid(draw(sampler, captions[:SHOWN], settings, seed=0))
