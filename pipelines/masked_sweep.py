"""Pictures and captions of a masked model against network evaluations, for every sampler, and against guidance."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from eval.scene import score_caption
from pipelines.data.decode import image_and_caption
from pipelines.data.grammar import for_size
from pipelines.data.stream import some
from pipelines.judged_config import MaskedSweepStage
from pipelines.judging import Judges, Pictures, scored
from pipelines.masked_sampler import MaskedSampler
from pipelines.measures import REFERENCE, read_set
from pipelines.runs import Run
from pipelines.sampling import batches, chunks, generators
from pipelines.sampling_options import MaskedOptions, Settings, variant_of
from pipelines.sweep import Judged
from pipelines.sweep_rows import Setting, measure_rows, plain_interval

BATCH = 50
ATTRIBUTES = ("colour", "shape", "relation")
INTERVAL = (0.2, 0.8)  # of guidance in a limited interval


def settings_of_sweep(stage: MaskedSweepStage, model: str) -> Iterator[Setting]:
    """Yield every setting of the sweep: samplers for pictures and for captions, and scales of guidance."""
    pictures = Settings(sampler="", steps=1, guidance=stage.guidance, temperature=stage.temperature)
    captions = dataclasses.replace(pictures, guidance=stage.caption_guidance, temperature=1.0)
    groups: tuple[tuple[Literal["samplers", "captions"], Settings], ...] = (
        ("samplers", pictures),
        ("captions", captions),
    )
    for group, base in groups:
        for sampler in stage.samplers:
            if sampler == "entropy_bound":
                for bound in stage.bounds:
                    options = MaskedOptions(bound=bound)
                    yield Setting(group, model, sampler, dataclasses.replace(base, sampler=sampler, masked=options))
                continue
            for steps in stage.steps:
                settings = dataclasses.replace(base, sampler=sampler, steps=steps)
                yield Setting(group, model, sampler, settings, steps)
        for variant in stage.variants:
            for steps in stage.steps:
                settings = variant_of(dataclasses.replace(base, steps=steps), variant)
                yield Setting(group, model, variant, settings, steps)
    for curve, options in (("plain", MaskedOptions()), ("interval", MaskedOptions(interval=INTERVAL))):
        for scale in stage.scales:
            base = dataclasses.replace(pictures, sampler="masked_ancestral", steps=16, guidance=scale, masked=options)
            yield Setting("guidance", model, curve, base)


@dataclass
class MaskedJudged:
    """What the rows of a masked model are measured against."""

    run: Run
    judged: Judged
    images: torch.Tensor  # (n, 3, H, W), the held-out pictures whose captions are in `judged.real`
    samplers: dict[str, MaskedSampler] = field(default_factory=dict)

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Sample as one setting says, and judge it."""
        if setting.model not in self.samplers:
            self.samplers[setting.model] = MaskedSampler.load(self.run, setting.model)
        sampler = self.samplers[setting.model]
        measure = self._captions if setting.group == "captions" else self._pictures
        figures, evaluations = measure(sampler, setting.settings)
        row = {"group": setting.group, "model": setting.model, "curve": setting.curve, "within": setting.within}
        row |= {"evaluations": round(evaluations, 2), "scale": setting.settings.guidance}
        return {**row, **dataclasses.asdict(setting.settings), "figures": figures}

    def _pictures(self, sampler: MaskedSampler, settings: Settings) -> tuple[dict[str, Any], float]:
        pictures, calls, real = list[Pictures](), 0.0, self.judged.real
        for prompts, draws in batches(real.captions, self.judged.seed, BATCH):
            drawn, each = sampler.illustrate(prompts, draws, settings)
            pictures.append(np.stack([np.asarray(image) for image in drawn]))
            calls += each * len(prompts)
        return self.judged.figures(np.concatenate(pictures), ATTRIBUTES), calls / len(real)

    def _captions(self, sampler: MaskedSampler, settings: Settings) -> tuple[dict[str, Any], float]:
        captions, calls, real = list[str](), 0.0, self.judged.real
        pairs = list(zip(self.images, generators([""] * len(real), self.judged.seed), strict=True))
        for part in chunks(pairs, BATCH):
            words, each = sampler.describe(torch.stack([x for x, _ in part]), [g for _, g in part], settings)
            captions, calls = captions + words, calls + each * len(part)
        grammar = for_size(self.run.recipe.size)
        scores = [score_caption(grammar.parse(c), label) for c, label in zip(captions, real.labels, strict=True)]
        found = scored(scores, real.labels)
        kept = {f"caption_{name}": plain_interval(found[name]) for name in ATTRIBUTES if name in found}
        return kept, calls / len(real)


def masked_sweep(run: Run, name: str, stage: MaskedSweepStage) -> dict[str, Any]:
    """Measure every setting of the sweep; captions only where a grammar can score them."""
    judges, seed = Judges.load(run, name), stage.seed
    real, train = read_set(run, run.held_out_name(), stage.count), read_set(run, "train", REFERENCE)
    images = some(run.held_out(), image_and_caption(run.recipe.size), stage.count, seed=run.recipe.seed)["image"]
    judged = MaskedJudged(run, Judged(judges, real, judges.features(train.pictures), seed), images)
    models = [need for need in stage.needs if run.recipe.stage[need].kind == "mdlm"]
    wanted = [row for model in models for row in settings_of_sweep(stage, model)]
    if not run.recipe.grammatical:
        wanted = [row for row in wanted if row.group != "captions"]
    measure_rows(run.stage_folder(name), name, wanted, judged.measure)
    return {"rows": len(wanted), "count": len(real)}
