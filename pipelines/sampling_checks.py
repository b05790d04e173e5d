"""What must hold between a stage that samples, the model that it samples and those that guide it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from discrete.objective import Autoregressive, Masked
from pipelines.errors import PalimpsestError
from pipelines.judged_config import GenerateStage, MaskedSweepStage, SweepStage
from pipelines.samplers import grid_of, idle, refusal
from pipelines.sampling_options import (
    AUTOREGRESSIVE,
    LATENT_SAMPLERS,
    MASKED_SAMPLERS,
    OF_AUTOREGRESSIVE,
    LatentOptions,
    MaskedOptions,
    differing,
    heeded,
    refuse_idle,
)
from pipelines.stage_config import ArStage, ClassifierStage, DistillStage, LatentStage, MdlmStage, UpscaleStage
from pipelines.text.config import TextModelStage, TextSweepStage

if TYPE_CHECKING:
    from pipelines.recipe import Recipe


def check_sampler(recipe: Recipe, name: str, stage: GenerateStage) -> None:
    """Refuse a generate stage without a model, or with a sampler of the other kind of model."""
    match recipe.stage[recipe.base(name)]:
        case MdlmStage():
            fitting, what = MASKED_SAMPLERS, "a masked one"
        case ArStage():
            fitting, what = (AUTOREGRESSIVE,), "an autoregressive one"
        case _:
            fitting, what = LATENT_SAMPLERS, ""
    if stage.sampler not in fitting:
        known = ", ".join(fitting)
        raise ValueError(f"stage.{name}.sampler is {stage.sampler!r}, which its model cannot use; it can use {known}")
    options = stage.latent
    if what and options != LatentOptions():
        raise ValueError(f"stage.{name}.latent holds options of latent models, but its model is {what}")
    if not what and stage.masked != MaskedOptions():
        raise ValueError(f"stage.{name}.masked holds options of masked models, but its model is a latent one")
    weak = recipe.stage.get(options.weak) if options.weak in stage.needs else None
    if options.weak and (weak is None or weak.kind != "latent" or options.weak == recipe.base(name)):
        raise ValueError(
            f"stage.{name}.latent.weak is {options.weak!r}: expected another latent stage in `needs`, behind the model"
        )
    if options.classifier and options.classifier not in stage.needs:
        raise ValueError(f"stage.{name}.latent.classifier is {options.classifier!r}: add that stage to `needs`")


def check_guides(recipe: Recipe, name: str, stage: GenerateStage) -> None:
    """Refuse guides that do not fit the model, and a classifier asked about noise alone."""
    options = stage.latent
    model = recipe.base(name)
    drawing = recipe.stage[model]
    settings = stage.settings()
    if isinstance(drawing, UpscaleStage) and (problem := drawing.unfit(settings.sampler, options)):
        raise ValueError(f"stage.{name}: {problem}")
    if isinstance(drawing, ArStage) and (problem := drawing.unfit(settings.guidance)):
        raise ValueError(f"stage.{name}: {problem}")
    if isinstance(drawing, LatentStage | DistillStage | UpscaleStage):
        path = drawing if isinstance(drawing, UpscaleStage) else recipe.origin(model)
        times = grid_of(settings, path.schedule, path.shift)
        if problem := refusal(settings, model, drawing, path, times) or idle(settings):
            raise ValueError(f"stage.{name}: {problem}")
    for base, found in recipe.settings_below(model).items():
        for guide in (found.latent.weak, found.latent.classifier):
            if guide and guide not in recipe.forerunners(name):
                raise ValueError(f"stage.{name} draws from {base}, which {guide} guides: add {guide} to its `needs`")
    if options.level is not None and not isinstance(drawing, UpscaleStage):
        raise ValueError(f"stage.{name}.latent.level is {options.level}, but {model} starts from no picture")
    for guide, kind in ((options.weak, "latent"), (options.classifier, "classifier")):
        if guide and (problem := recipe.misfit(guide, kind, model)):
            raise ValueError(f"stage.{name}: {problem}")
    classifier = recipe.stage.get(options.classifier)
    from_noise = options.grid == "uniform" and options.start == options.interval[1] == 1
    if isinstance(classifier, ClassifierStage) and from_noise and classifier.schedule.alpha(torch.ones(())) == 0:
        raise ValueError(
            f"stage.{name}.latent.classifier would be asked at t = 1, where {classifier.schedule} is noise alone: "
            "give interval = [0.0, 0.9], or a start below 1"
        )


def check_sweep(recipe: Recipe, name: str, stage: SweepStage) -> None:
    """Refuse guides that fit none of the models that a sweep compares."""
    for model in recipe.swept(stage):
        if not recipe.branches(model):
            raise ValueError(
                f"stage.{name} compares guidance, but {model} has caption_dropout = 0 and no unconditional branch: "
                "train it with 0.1, or leave it out"
            )
    guides = {need: "classifier" for need in stage.needs if recipe.stage[need].kind == "classifier"}
    if stage.weak and stage.weak not in stage.needs:
        raise ValueError(f"stage.{name}.weak is {stage.weak!r}: add that stage to `needs`")
    for guide, kind in {**guides, **({stage.weak: "latent"} if stage.weak else {})}.items():
        problems = [recipe.misfit(guide, kind, model) for model in recipe.swept(stage)]
        if all(problems):
            raise ValueError(f"stage.{name}: {guide} guides none of its models. {'; '.join(problems)}")


def check_averages(recipe: Recipe, name: str, models: Sequence[str], lengths: Sequence[float] | None) -> None:
    """Refuse lengths of averages where no model of a sweep keeps snapshots of its training."""
    if lengths and not any(recipe.tracks(model) for model in models):
        raise ValueError(
            f"stage.{name}.ema_lengths is {list(lengths)}, but no snapshots are kept of {' or '.join(models) or 'any'}"
            ": set training.posthoc = { every = 500 } there, or leave ema_lengths out"
        )


def check_codes(recipe: Recipe, name: str, stage: MaskedSweepStage) -> None:
    """Refuse a sweep over models of codes that names none."""
    if not recipe.swept_codes(stage):
        raise ValueError(f"stage.{name} names no model of codes: add a stage of kind 'mdlm' or 'ar' to `needs`")


def check_texts(recipe: Recipe, name: str, stage: TextSweepStage) -> None:
    """Refuse a judge of texts whose costs are bounds, and models that cannot write what the sweep asks for."""
    judge = recipe.stage.get(stage.judge) if stage.judge in stage.needs else None
    if not isinstance(judge, TextModelStage) or not isinstance(judge.objective, Autoregressive):
        raise ValueError(
            f"stage.{name}.judge is {stage.judge!r}: expected a text model in `needs` with an autoregressive objective"
        )
    models = {need: found for need in stage.needs if isinstance(found := recipe.stage[need], TextModelStage)}
    tokens = {recipe.of_kind(model, "text_tokens")[0] for model in models}
    if len(tokens) > 1:
        raise ValueError(f"stage.{name} compares texts of {', '.join(sorted(tokens))}: name models of one of them")
    for model, found in models.items():
        if found.length < stage.length:
            raise ValueError(
                f"stage.{name}.length is {stage.length}, but {model} was trained on {found.length} tokens: write at "
                "most that"
            )
        try:
            found.objective.check(stage.length, timed=found.model.time)
        except ValueError as error:
            raise ValueError(f"stage.{name}.length is {stage.length}, which {model} cannot write: {error}") from error
    if not set(models) - {stage.judge}:
        raise ValueError(f"stage.{name} needs a text model beside its judge {stage.judge!r}: add its name to `needs`")


def check_heeded(recipe: Recipe, name: str, stage: GenerateStage) -> None:
    """Refuse options that the sampler of a masked or an autoregressive model makes no use of."""
    model, settings = recipe.base(name), stage.settings()
    names = differing(settings)
    match recipe.stage[model]:
        case MdlmStage():
            known = heeded(settings.sampler)
        case ArStage():
            known = OF_AUTOREGRESSIVE
            names |= {"steps"} if settings.steps != recipe.usual(model).steps else set()
            names -= {"caption_guidance"} if stage.caption_guidance == GenerateStage.caption_guidance else set()
        case _:
            return
    try:
        refuse_idle(names, known, f"the sampler {settings.sampler!r}")
    except PalimpsestError as error:
        raise ValueError(f"stage.{name}: {error}") from error


def check_timeless(recipe: Recipe, name: str, stage: GenerateStage | MaskedSweepStage | TextSweepStage) -> None:
    """Refuse `cached` for a network that sees the time, which never stands still."""
    samplers = (stage.sampler,) if isinstance(stage, GenerateStage) else stage.samplers
    for need in stage.needs if "cached" in samplers else ():
        match recipe.stage[need]:
            case MdlmStage(model=model) | TextModelStage(objective=Masked(), model=model):
                timed = model.time
            case _:
                timed = False
        if timed:
            raise ValueError(
                f"stage.{name} samples with 'cached', but stage.{need}.model.time is true, and a network that sees the "
                "time cannot be remembered: leave one of them out"
            )
