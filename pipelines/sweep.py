"""Quality against network evaluations for every sampler, and against the scale for every rule of guidance."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from pipelines.judged_config import SweepStage
from pipelines.judging import Judges
from pipelines.latent_likelihood import latent_bits
from pipelines.measures import REFERENCE, read_set
from pipelines.progress import ticking
from pipelines.recipe import Recipe
from pipelines.runs import Run
from pipelines.samplers import steps_within
from pipelines.sampling_options import SIGNAL_SAMPLERS, LatentOptions, Settings
from pipelines.stage_config import DistillStage
from pipelines.sweep_judged import USUAL, Judged, settings_of_real
from pipelines.sweep_rows import Setting, measure_rows, plain_interval
from pipelines.sweep_training import settings_of_training
from pipelines.usual import usual_of_student

START = 0.999  # of samplers that need some signal
INTERVAL = (0.1, 0.8)  # of guidance in a limited interval
CLASSIFIED = (0.0, 0.9)  # where a classifier is asked: in noise alone an error of its gradient counts a hundredfold
LIMIT = 3.0  # of thresholding, in standard deviations of the latents
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 0.001)  # of dormand_prince, in place of numbers of evaluations


def settings_of_sweep(recipe: Recipe, stage: SweepStage) -> Iterator[Setting]:
    """Yield every setting of the sweep."""
    models = recipe.swept(stage)
    for model in models:
        yield from (row for sampler in stage.samplers for row in _sampler_rows(model, sampler, stage))
        for curve, options in guidances(recipe, model, stage):
            yield from (_guidance_row(model, curve, options, scale) for scale in stage.scales)
    for steps in stage.student_steps:
        for model in models:
            settings = Settings(sampler="ddim", steps=steps, guidance=stage.guidance)
            yield Setting("students", model, f"{model} (the teacher, ddim)", settings, steps)
        for model in stage.needs:
            if isinstance(student := recipe.stage[model], DistillStage):
                settings = Settings(**dataclasses.asdict(usual_of_student(student, steps)))
                yield Setting("students", model, f"{model} ({student.method})", settings, steps)


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


def _guidance_row(model: str, curve: str, options: LatentOptions, scale: float) -> Setting:
    """One scale of a curve: of the classifier's gradient where there is one, else of the two branches."""
    guidance = 1.0 if options.classifier else scale
    options = dataclasses.replace(options, classifier_scale=scale) if options.classifier else options
    return Setting("guidance", model, curve, Settings(sampler="dpmpp_2m", steps=16, guidance=guidance, latent=options))


def _sampler_rows(model: str, sampler: str, stage: SweepStage) -> Iterator[Setting]:
    start = START if sampler in SIGNAL_SAMPLERS else 1.0
    if sampler == "dormand_prince":
        for tolerance in TOLERANCES:
            options = LatentOptions(tolerance=tolerance)
            settings = Settings(sampler=sampler, steps=1, guidance=stage.guidance, latent=options)
            yield Setting("samplers", model, sampler, settings)
        return
    for calls in stage.evaluations:
        options = LatentOptions(start=start)
        if sampler == "annealed_langevin":
            options = dataclasses.replace(options, langevin_steps=min(8, max(1, calls // 4)))
        steps = steps_within(sampler, calls, options.langevin_steps)
        settings = Settings(sampler=sampler, steps=steps, guidance=stage.guidance, latent=options)
        yield Setting("samplers", model, sampler, settings, calls)


def sweep(run: Run, name: str, stage: SweepStage) -> dict[str, Any]:
    """Measure every setting of the sweep."""
    models = run.recipe.swept(stage)
    wanted = [*settings_of_real(run), *settings_of_sweep(run.recipe, stage)]
    wanted += [row for model in models for row in settings_of_training(run, stage, model)]
    judged, many = judged_of(run, name, stage.count, stage.line, stage.seed)
    rows = measure_rows(
        run.stage_folder(name), name, wanted, lambda row: (many if row.group == USUAL else judged).measure(row)
    )
    bits = {model: _bits(run, model, stage.likelihoods) for model in models}
    return {"rows": rows, "count": len(judged.real), "bits_per_dim": bits}


def judged_of(run: Run, name: str, count: int, line: int, seed: int) -> tuple[Judged, Judged]:
    """Return what rows of `count` captions that judge are measured against, and those of `line` captions."""
    judges = Judges.load(run, name)
    real, train = read_set(run, run.held_out_name(), max(count, line)), read_set(run, "train", REFERENCE)
    judged = Judged(run, judges, real.first(count), judges.features(train.pictures), seed)
    return judged, dataclasses.replace(judged, real=real.first(line))


def _bits(run: Run, model: str, count: int) -> dict[str, dict[str, float | None]]:
    if count < 2:
        return {}
    with ticking(f"{model} likelihood"):
        return {name: plain_interval(value) for name, value in latent_bits(run, model, count).items()}
