"""Quality against network evaluations for every sampler, and against the scale for every rule of guidance."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.features import quantise
from eval.kernel import kid_interval
from pipelines.judged_config import SweepStage
from pipelines.judging import Judges, Pictures, scene_figures
from pipelines.latent_likelihood import latent_bits
from pipelines.latent_sampler import LatentSampler
from pipelines.measures import REFERENCE, Set, read_set
from pipelines.progress import ticking
from pipelines.recipe import Recipe
from pipelines.runs import Run
from pipelines.samplers import steps_within
from pipelines.sampling import batches
from pipelines.sampling_options import SIGNAL_SAMPLERS, LatentOptions, Settings
from pipelines.stage_config import DistillStage
from pipelines.sweep_rows import Setting, measure_rows, plain_interval
from pipelines.usual import usual_of_student

BATCH = 50
START = 0.999  # of samplers that need some signal
INTERVAL = (0.1, 0.8)  # of guidance in a limited interval
CLASSIFIED = (0.0, 0.9)  # where a classifier is asked: in noise alone an error of its gradient counts a hundredfold
LIMIT = 3.0  # of thresholding, in standard deviations of the latents
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 0.001)  # of dormand_prince, in place of numbers of evaluations


class LatentSetting(Setting):
    """A row of a latent model, in the group samplers, guidance or students."""

    @property
    def scale(self) -> float:
        """The scale of what guides."""
        options = self.settings.latent
        return options.classifier_scale if options.classifier else self.settings.guidance


def settings_of_sweep(recipe: Recipe, stage: SweepStage) -> Iterator[LatentSetting]:
    """Yield every setting of the sweep."""
    models = recipe.swept(stage)
    for model in models:
        yield from (row for sampler in stage.samplers for row in _sampler_rows(model, sampler, stage))
        for curve, options in guidances(recipe, model, stage):
            yield from (_guidance_row(model, curve, options, scale) for scale in stage.scales)
    for steps in stage.student_steps:
        for model in models:
            settings = Settings(sampler="ddim", steps=steps, guidance=stage.guidance)
            yield LatentSetting("students", model, f"{model} (the teacher, ddim)", settings, steps)
        for model in stage.needs:
            if isinstance(student := recipe.stage[model], DistillStage):
                settings = Settings(**dataclasses.asdict(usual_of_student(student, steps)))
                yield LatentSetting("students", model, f"{model} ({student.method})", settings, steps)


def guidances(recipe: Recipe, model: str, stage: SweepStage) -> Iterator[tuple[str, LatentOptions]]:
    """Yield (curve, options) of every way to guide a model: the rules, and the guides in `needs` that fit it."""
    yield from ((rule, LatentOptions(rule=rule)) for rule in stage.rules)
    yield "interval", LatentOptions(interval=INTERVAL)
    yield "thresholded", LatentOptions(threshold=LIMIT)
    if stage.weak and not recipe.misfit(stage.weak, "latent", model):
        yield "autoguidance", LatentOptions(weak=stage.weak)
    for need in stage.needs:
        if recipe.stage[need].kind == "classifier" and not recipe.misfit(need, "classifier", model):
            yield "classifier", LatentOptions(classifier=need, interval=CLASSIFIED)


def _guidance_row(model: str, curve: str, options: LatentOptions, scale: float) -> LatentSetting:
    """One scale of a curve: of the classifier's gradient where there is one, else of the two branches."""
    guidance = 1.0 if options.classifier else scale
    options = dataclasses.replace(options, classifier_scale=scale) if options.classifier else options
    return LatentSetting(
        "guidance", model, curve, Settings(sampler="dpmpp_2m", steps=16, guidance=guidance, latent=options)
    )


def _sampler_rows(model: str, sampler: str, stage: SweepStage) -> Iterator[LatentSetting]:
    start = START if sampler in SIGNAL_SAMPLERS else 1.0
    if sampler == "dormand_prince":
        for tolerance in TOLERANCES:
            options = LatentOptions(tolerance=tolerance)
            settings = Settings(sampler=sampler, steps=1, guidance=stage.guidance, latent=options)
            yield LatentSetting("samplers", model, sampler, settings)
        return
    for calls in stage.evaluations:
        options = LatentOptions(start=start, langevin_steps=min(8, max(1, calls // 4)))
        steps = steps_within(sampler, calls, options.langevin_steps)
        settings = Settings(sampler=sampler, steps=steps, guidance=stage.guidance, latent=options)
        yield LatentSetting("samplers", model, sampler, settings, calls)


@dataclass
class Judged:
    """What rows are measured against, made once."""

    judges: Judges
    real: Set
    reference: NDArray[np.float32]
    seed: int
    samplers: dict[str, LatentSampler] = field(default_factory=dict)

    def measure(self, run: Run, setting: LatentSetting) -> dict[str, Any]:
        """Draw the pictures of one setting and judge them."""
        if setting.model not in self.samplers:
            self.samplers[setting.model] = LatentSampler.load(run, setting.model)
        sampler = self.samplers[setting.model]
        pictures, calls = [], 0
        for prompts, draws in batches(self.real.captions, self.seed, BATCH):
            drawn = sampler.draw(prompts, draws, setting.settings)
            pictures.append(quantise(sampler.decode(drawn.z)))
            calls = drawn.evaluations
        figures = self.figures(np.concatenate(pictures), ("colour", "shape"))
        row = {"group": setting.group, "model": setting.model, "curve": setting.curve, "within": setting.within}
        row |= {"evaluations": calls, "scale": setting.scale, **dataclasses.asdict(setting.settings)}
        return {**row, "figures": figures}

    def figures(self, made: Pictures, attributes: Sequence[str]) -> dict[str, dict[str, float]]:
        """Judge pictures (n, H, W, 3) of the captions of `real`: their distance, and the attributes as asked for."""
        found = {"kd": kid_interval(self.judges.features(made), self.reference)}
        if self.real.labelled and self.judges.scene:
            scenes = scene_figures(self.judges, made, self.real.labels)
            found |= {name: scenes[name] for name in attributes if name in scenes}
        return {name: plain_interval(value) for name, value in found.items()}


def sweep(run: Run, name: str, stage: SweepStage) -> dict[str, Any]:
    """Measure every setting of the sweep."""
    wanted = list(settings_of_sweep(run.recipe, stage))
    judges = Judges.load(run, name)
    real, train = read_set(run, run.held_out_name(), stage.count), read_set(run, "train", REFERENCE)
    judged = Judged(judges, real, judges.features(train.pictures), stage.seed)
    measure_rows(run.stage_folder(name), name, wanted, lambda setting: judged.measure(run, setting))
    bits = {model: _bits(run, model, stage.likelihoods) for model in run.recipe.swept(stage)}
    return {"rows": len(wanted), "count": len(real), "bits_per_dim": bits}


def _bits(run: Run, model: str, count: int) -> dict[str, dict[str, float]]:
    if count < 2:
        return {}
    with ticking(f"{model} likelihood"):
        return {name: plain_interval(value) for name, value in latent_bits(run, model, count).items()}
