"""What all samplers share: settings, generators that tie a picture to its prompt, and drawing in batches."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import torch
from PIL import Image

from pipelines.pictures import grid
from pipelines.progress import meter
from pipelines.sampling_options import Settings

Item = TypeVar("Item")
SHOWN = 16  # samples that training shows


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
