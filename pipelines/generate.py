"""The stages of kind generate: pictures (and texts) of a run's own model for held-out and unseen captions."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch

from pipelines.artefact import write_json
from pipelines.asked import unbiased
from pipelines.data.decode import caption_only, image_and_caption
from pipelines.data.stream import some
from pipelines.judged_config import GenerateStage
from pipelines.masked_sampler import MaskedSampler
from pipelines.pictures import NOT_FINITE
from pipelines.pipeline import Pipeline
from pipelines.progress import meter
from pipelines.runs import Run
from pipelines.sampling import chunks, draw, generators
from pipelines.sampling_options import Settings
from pipelines.saved import below, save_picture, stem

log = logging.getLogger("palimpsest")


def generate(run: Run, name: str, stage: GenerateStage) -> dict[str, Any]:
    """Make the pictures (and texts) of a generate stage: held-out and unseen captions, one picture each."""
    model = run.recipe.base(name)
    pipeline, settings = Pipeline(run), stage.settings()
    sampler = pipeline.sampler(model)
    made = {"model": model, "settings": dataclasses.asdict(settings), "seed": stage.seed}
    made |= below(run, model)
    counts: dict[str, int] = {}
    for split, count in ((run.held_out_name(), stage.count), ("unseen", stage.unseen)):
        if split not in run.splits() or count < 1:
            continue
        batch = some(run.open(split), caption_only, count, seed=stage.seed)
        images = draw(sampler, batch["caption"], settings, seed=stage.seed, batch=stage.batch, name=f"{name} {split}")
        folder = run.stage_folder(name) / split
        rows = zip(batch["key"], batch["caption"], batch["label"], images, strict=True)
        for i, (key, caption, label, image) in enumerate(rows):  # a key comes from a stranger's tar: no file name
            broken = {NOT_FINITE: True} if image.info.get(NOT_FINITE) else {}
            save_picture(folder, stem(i), image, {"key": key, "prompt": caption, "label": label, **broken, **made})
        counts[split] = len(images)
        if lost := sum(bool(image.info.get(NOT_FINITE)) for image in images):
            log.warning("%s %s: %d of %d pictures are NaN or infinite in places.", name, split, lost, len(images))
    if isinstance(sampler, MaskedSampler):
        counts |= _write_words(run, name, stage, sampler, settings)
    return {**made, "counts": counts}


def _write_words(
    run: Run, name: str, stage: GenerateStage, sampler: MaskedSampler, settings: Settings
) -> dict[str, int]:
    """Caption the held-out pictures and write texts without any."""
    batch = some(run.held_out(), image_and_caption(run.recipe.size), stage.count, seed=stage.seed)
    captions: list[str] = []
    pairs = list(zip(batch["image"], generators(batch["key"], stage.seed), strict=True))
    with meter(f"{name} captions", len(pairs)) as shown:
        for part in chunks(pairs, stage.batch):
            x = torch.stack([image for image, _ in part])
            captions += sampler.describe(x, [g for _, g in part], sampler.caption_settings(settings))[0]
            shown.advance(len(part))
    texts = sampler.texts(generators([""] * stage.texts, stage.seed), unbiased(settings, sampler.layout.text_length))
    folder = run.stage_folder(name)
    rows = [
        {"key": key, "label": label, "truth": truth, "caption": caption}
        for key, label, truth, caption in zip(batch["key"], batch["label"], batch["caption"], captions, strict=True)
    ]
    write_json(folder / "captions.json", rows)
    write_json(folder / "texts.json", texts)
    return {"captions": len(captions), "texts": len(texts)}
