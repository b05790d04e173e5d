"""Models of codes over guidance, temperature and training; masked ones over all samplers, pictures and captions."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from eval.interval import Interval
from eval.scene import score_caption
from pipelines.data.decode import image_and_caption
from pipelines.data.grammar import for_size
from pipelines.data.stream import some
from pipelines.hardware import device_of
from pipelines.judged_config import MaskedSweepStage
from pipelines.judging import scored
from pipelines.masked_sampler import MaskedSampler
from pipelines.provenance import machine
from pipelines.recipe import Recipe
from pipelines.runs import Run
from pipelines.sampling import chunks, generators
from pipelines.sampling_options import AUTOREGRESSIVE, MaskedOptions, Settings, variant_of
from pipelines.stage_config import ArStage
from pipelines.sweep import judged_of
from pipelines.sweep_judged import ATTRIBUTES, BATCH, REAL, USUAL, Figures, Judged, settings_of_real, where
from pipelines.sweep_rows import Setting, measure_rows, timed
from pipelines.sweep_training import settings_of_training
from pipelines.vocabulary import load_vocabulary

INTERVAL = (0.2, 0.8)  # of guidance in a limited interval
STEPS = 16  # while guidance and temperature are compared
CAPTIONS = ("captions", "caption_temperature")  # groups


def settings_of_sweep(recipe: Recipe, stage: MaskedSweepStage, model: str) -> Iterator[Setting]:
    """Yield every setting of a model, those of real data and about its training left out."""
    yield from _autoregressive(recipe, stage, model) if _is_ar(recipe, model) else _masked(stage, model)


def _autoregressive(recipe: Recipe, stage: MaskedSweepStage, model: str) -> Iterator[Setting]:
    """Scales, where there is an unconditional branch, and temperatures; its one sampler takes all steps."""
    usual = recipe.usual(model)
    base = Settings(sampler=AUTOREGRESSIVE, steps=usual.steps, guidance=usual.guidance)
    for scale in stage.scales if recipe.branches(model) else ():
        yield Setting("guidance", model, "plain", dataclasses.replace(base, guidance=scale))
    for temperature in stage.temperatures:
        yield Setting("temperature", model, "pictures", dataclasses.replace(base, temperature=temperature))


def _masked(stage: MaskedSweepStage, model: str) -> Iterator[Setting]:
    """Samplers for pictures and for captions, scales of guidance, and temperatures of both."""
    pictures = Settings(sampler="masked_ancestral", steps=STEPS, guidance=stage.guidance, temperature=stage.temperature)
    captions = dataclasses.replace(pictures, guidance=stage.caption_guidance, temperature=1.0)
    for group, base in (("samplers", pictures), ("captions", captions)):
        yield from _samplers(stage, model, group, dataclasses.replace(base, steps=1))
    for curve, options in (("plain", MaskedOptions()), ("interval", MaskedOptions(interval=INTERVAL))):
        for scale in stage.scales:
            yield Setting("guidance", model, curve, dataclasses.replace(pictures, guidance=scale, masked=options))
    for group, base in (("temperature", pictures), ("caption_temperature", captions)):
        curve = "captions" if group in CAPTIONS else "pictures"
        for temperature in stage.temperatures:
            yield Setting(group, model, curve, dataclasses.replace(base, temperature=temperature))


def _samplers(stage: MaskedSweepStage, model: str, group: str, base: Settings) -> Iterator[Setting]:
    for sampler in stage.samplers:
        if sampler == "entropy_bound":
            for bound in stage.bounds:
                options = MaskedOptions(bound=bound)
                yield Setting(group, model, sampler, dataclasses.replace(base, sampler=sampler, masked=options))
            continue
        for steps in stage.steps:
            yield Setting(group, model, sampler, dataclasses.replace(base, sampler=sampler, steps=steps), steps)
    for variant in stage.variants:
        for steps in stage.steps:
            settings = variant_of(dataclasses.replace(base, steps=steps), variant)
            yield Setting(group, model, variant, settings, steps)


@dataclass
class MaskedJudged:
    """What the rows of models of codes are measured against."""

    run: Run
    judged: Judged  # of `count` captions
    many: Judged  # of as many as the line over 1 / n needs
    images: torch.Tensor  # (n, 3, H, W), the held-out pictures whose captions are in `judged.real`
    samplers: dict[str, MaskedSampler] = field(default_factory=dict)

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Sample as one setting says, and judge it."""
        if setting.group == REAL and setting.model != REAL:
            words = [caption.split() for caption in self.judged.real.captions]
            entropies = {
                "code_entropy": self._real_entropy(setting.model),
                "caption_entropy": self.judged.entropy(words),
            }
            found = Figures(entropies)
            return {**setting.plain, "evaluations": 0, "scale": 1.0, **found.plain()}
        if setting.group in CAPTIONS:
            found, evaluations = self._captions(setting)
            row = {**setting.plain, "evaluations": round(evaluations, 2), "scale": setting.scale}
            return {**row, "machine": machine(), **found.plain()}
        return (self.many if setting.group == USUAL else self.judged).measure(setting)

    @torch.no_grad()
    def _real_entropy(self, model: str) -> Interval:
        """Entropy of the codes within a held-out picture."""
        vqvae = load_vocabulary(self.run, model).vqvae
        codes = [vqvae.codes(part.to(device_of(vqvae))).cpu() for part in self.images.split(BATCH)]
        return self.judged.entropy(torch.cat(codes).tolist())

    def _captions(self, setting: Setting) -> tuple[Figures, float]:
        """Captions of the held-out pictures, parsed by the grammar; evaluations for each."""
        captions, calls, seconds = self._written(setting)
        grammar, labels = for_size(self.run.recipe.size), self.judged.real.labels
        scores = [score_caption(grammar.parse(c), label) for c, label in zip(captions, labels, strict=True)]
        found = scored(scores, labels)
        kept = {f"caption_{name}": found[name] for name in ATTRIBUTES if name in found}
        entropy = self.judged.entropy([caption.split() for caption in captions])
        return Figures({**kept, "caption_entropy": entropy, "seconds": seconds}), calls

    def _written(self, setting: Setting) -> tuple[list[str], float, Interval]:
        """Captions, evaluations and seconds for each; the first batch of a model is written twice, as with pictures."""
        pairs = list(zip(self.images, generators([""] * len(self.images), self.judged.seed), strict=True))
        parts = [
            (torch.stack([x for x, _ in part]), [generator for _, generator in part]) for part in chunks(pairs, BATCH)
        ]
        if setting.model not in self.samplers:
            self.samplers[setting.model] = MaskedSampler.load(self.run, setting.model)
            images = parts[0][0]
            self.samplers[setting.model].describe(images, generators([""] * len(images), 0), setting.settings)
        captions, calls, taken = list[str](), 0.0, list[float]()
        for images, draws in parts:
            begun = time.perf_counter()
            words, each = self.samplers[setting.model].describe(images, draws, setting.settings)
            taken.append(time.perf_counter() - begun)
            captions, calls = captions + words, calls + each * len(words)
        return captions, calls / len(captions), timed(taken, [len(images) for images, _ in parts])


def masked_sweep(run: Run, name: str, stage: MaskedSweepStage) -> dict[str, Any]:
    """Measure every setting of the sweep; captions only where a grammar can score them."""
    judged, many = judged_of(run, name, stage.count, stage.line, stage.seed)
    images = some(run.held_out(), image_and_caption(run.recipe.size), stage.count, seed=run.recipe.seed)["image"]
    wanted = settings_of_real(run)
    real = Settings(sampler=REAL, steps=1, guidance=1.0)
    for model in run.recipe.swept_codes(stage):
        wanted.append(Setting(REAL, model, f"{where(run)} pictures and captions", real))
        wanted += [*settings_of_sweep(run.recipe, stage, model), *settings_of_training(run, stage, model)]
    if not run.recipe.grammatical:
        wanted = [row for row in wanted if row.group not in CAPTIONS]
    rows = measure_rows(run.stage_folder(name), name, wanted, MaskedJudged(run, judged, many, images).measure)
    return {"rows": rows, "count": len(judged.real)}


def _is_ar(recipe: Recipe, model: str) -> bool:
    return isinstance(recipe.stage[model], ArStage)
