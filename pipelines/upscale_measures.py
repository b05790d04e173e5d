"""The figures of models that enlarge: real pictures made small and large again, beside bicubic interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from eval.blocks import Column, Gallery, Row, Section, Table
from eval.features import quantise
from eval.interval import mean_interval
from eval.reconstruction import psnr
from pipelines.data.decode import two_sizes
from pipelines.data.picture import fit
from pipelines.data.stream import some
from pipelines.judging import Pictures
from pipelines.measures import Evaluation
from pipelines.pictures import to_pil
from pipelines.sampling import chunks, generators
from pipelines.sampling_options import Settings
from pipelines.upscale_sampler import Upscaler

ENLARGED = 200  # held-out pictures that are enlarged
SHOWN = 16  # of them in the report
BATCH = 25


def enlargements(e: Evaluation) -> None:
    """PSNR of enlarged held-out pictures, by the model and bicubic, and how they look."""
    blocks: list[Table | Gallery] = []
    for name in e.run.recipe.of_kind(e.name, "upscale"):
        upscaler, settings = Upscaler.load(e.run, name), e.run.recipe.settings_for(name)
        stage = upscaler.stage
        count = min(ENLARGED, e.stage.reconstructions)
        decode = two_sizes(stage.size, stage.source)
        batch = some(e.run.held_out(), decode, count, seed=e.run.recipe.seed)
        truth, bicubic = quantise(batch["image"]), bicubically(to_pil(batch["low"]), stage.size)
        found = enlarge(upscaler, batch, settings, seed=e.seed)
        about = f"{len(truth)} {e.where} pictures, {stage.source} to {stage.size} pixels"
        how = f"{settings.sampler}, {settings.steps} steps, guidance {settings.guidance:g}"
        decibels = psnr(truth, found)
        e.note(f"{name}.psnr", mean_interval(decibels), f"{name} ({how}), {about}")
        e.note_each("psnr", name, [picture.tobytes() for picture in truth], decibels)
        e.note(f"{name}.bicubic_psnr", mean_interval(psnr(truth, bicubic)), f"bicubic interpolation, {about}")
        rows = [
            Row([name, e.figures[f"{name}.psnr"]]),
            Row(["bicubic interpolation", e.figures[f"{name}.bicubic_psnr"]], "floor"),
        ]
        blocks.append(Table(f"{name}: {about}", ["enlarged by", Column("PSNR", "dB", "higher")], rows))
        blocks.append(_gallery(name, batch, [bicubic, found, truth]))
    if blocks:
        e.sections.append(Section("Enlarged pictures", blocks))


def bicubically(low: list[Image.Image], size: int) -> Pictures:
    """Return pictures enlarged as any picture of a run is that is too small."""
    return np.stack([np.asarray(fit(picture, size)) for picture in low])


def enlarge(upscaler: Upscaler, batch: dict[str, Any], settings: Settings, *, seed: int) -> Pictures:
    """Return the small pictures of a batch as the model enlarges them."""
    items = list(zip(batch["low"], batch["caption"], generators(batch["key"], seed), strict=True))
    parts = []
    for part in chunks(items, BATCH):
        low, captions, draws = zip(*part, strict=True)
        parts.append(quantise(upscaler.enlarge(torch.stack(low), captions, draws, settings)))
    return np.concatenate(parts)


def _gallery(name: str, batch: dict[str, Any], columns: list[Pictures]) -> Gallery:
    large = (columns[0].shape[2], columns[0].shape[1])
    small = [picture.resize(large, Image.Resampling.NEAREST) for picture in to_pil(batch["low"][:SHOWN])]
    rows = zip(small, *(map(Image.fromarray, column) for column in columns), strict=False)
    items = [(list(row), caption) for row, caption in zip(rows, batch["caption"], strict=False)]
    return Gallery(f"{name}: enlarged", items, columns=2, labels=("low", "bicubic", "model", "truth"))
