"""What must hold between a stage and those that it stands on; every error names the stage and the remedy."""

from __future__ import annotations

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
from pipelines.stage_config import (
    FORERUNNERS,
    ArStage,
    ClassifierStage,
    DistillStage,
    LatentStage,
    MdlmStage,
    ScenesData,
    UpscaleStage,
    VAEStage,
    VQVAEStage,
)
from pipelines.text.config import TextData, TextEvalStage, TextModelStage, TextSweepStage

if TYPE_CHECKING:
    from pipelines.recipe import Recipe


def check_needs(recipe: Recipe, name: str) -> None:
    """Raise ValueError where a stage lacks a forerunner, or has one of the wrong kind."""
    stage = recipe.stage[name]
    _check_data(recipe, name)
    match stage:
        case GenerateStage():
            _check_sampler(recipe, name, stage)
        case DistillStage():
            _check_teacher(recipe, name, stage)
    for kind in FORERUNNERS.get(stage.kind, ()):
        if not recipe.of_kind(name, kind):
            raise ValueError(f"stage.{name} ({stage.kind}) needs a stage of kind {kind!r}: add its name to `needs`")


def check_fit(recipe: Recipe, name: str) -> None:
    """Raise ValueError where a stage does not fit its forerunners, all of which have what they need."""
    stage = recipe.stage[name]
    match stage:
        case GenerateStage():
            _check_guides(recipe, name, stage)
            _check_heeded(recipe, name, stage)
            _check_timeless(recipe, name, stage)
        case VAEStage() | VQVAEStage():
            _check_autoencoder(recipe, name, stage)
        case UpscaleStage():
            _check_base(recipe, name, stage)
        case SweepStage():
            _check_sweep(recipe, name, stage)
        case MaskedSweepStage():
            _check_timeless(recipe, name, stage)
        case TextSweepStage():
            _check_texts(recipe, name, stage)
            _check_timeless(recipe, name, stage)
        case TextEvalStage():
            _check_others(recipe, name, stage)
        case TextModelStage():
            _check_documents(recipe, name, stage)


def _check_sampler(recipe: Recipe, name: str, stage: GenerateStage) -> None:
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


def _check_guides(recipe: Recipe, name: str, stage: GenerateStage) -> None:
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


def _check_sweep(recipe: Recipe, name: str, stage: SweepStage) -> None:
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


def _check_texts(recipe: Recipe, name: str, stage: TextSweepStage) -> None:
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


def _check_heeded(recipe: Recipe, name: str, stage: GenerateStage) -> None:
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


def _check_timeless(recipe: Recipe, name: str, stage: GenerateStage | MaskedSweepStage | TextSweepStage) -> None:
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


def _check_documents(recipe: Recipe, name: str, stage: TextModelStage) -> None:
    """Refuse documents of their own for models that can not be told where a text of theirs ends."""
    separated = isinstance(recipe.data, TextData) and recipe.data.separator
    if separated and not isinstance(stage.objective, Autoregressive | Masked):
        raise ValueError(
            f"data.separator is {separated!r}, but stage.{name} has the objective {stage.objective.kind!r}: documents "
            "are read apart by autoregressive and masked models; leave the separator or the stage out"
        )


def _check_others(recipe: Recipe, name: str, stage: TextEvalStage) -> None:
    """Refuse a report on no model, and as another text what the recipe trains or judges on."""
    data = recipe.data
    if not any(isinstance(recipe.stage[need], TextModelStage) for need in stage.needs):
        raise ValueError(f"stage.{name} names no text model in `needs`: add those that the report is about")
    for other in stage.other:
        if isinstance(data, TextData) and other.file in (data.train, data.valid, data.test):
            raise ValueError(f"stage.{name}.other names {other.file!r}, which is the recipe's own: name a text apart")


def _check_data(recipe: Recipe, name: str) -> None:
    """Refuse stages of pictures on text data, and stages of text on pictures."""
    about_text = recipe.stage[name].kind.startswith("text_")
    if about_text != isinstance(recipe.data, TextData):
        wanted = "text" if about_text else "pictures"
        raise ValueError(
            f"stage.{name} is of kind {recipe.stage[name].kind!r}, which needs {wanted}, but data.kind is "
            f"{recipe.data.kind!r}"
        )


def _check_teacher(recipe: Recipe, name: str, stage: DistillStage) -> None:
    """Refuse a student without a teacher, and guidance of a teacher that has none."""
    teacher = recipe.stage[recipe.teacher(name)]
    if isinstance(teacher, DistillStage) and stage.guidance != 1:
        raise ValueError(
            f"stage.{name}.guidance is {stage.guidance:g}, but its teacher is a student itself, which has guidance "
            "inside and no second branch: write guidance = 1"
        )
    if stage.guidance != 1 and recipe.origin(name).caption_dropout == 0:
        raise ValueError(
            f"stage.{name}.guidance is {stage.guidance:g}, but its teacher was trained with caption_dropout = 0 and "
            "has no unconditional branch: write guidance = 1, or train the teacher with 0.1"
        )


def _check_autoencoder(recipe: Recipe, name: str, stage: VAEStage | VQVAEStage) -> None:
    """Refuse pictures that the networks cannot fold or judge, and a distance of features without a tower."""
    if not stage.pretrained and recipe.size % (multiple := stage.multiple):
        fit = max(1, recipe.size // multiple) * multiple
        above = ", or leave model.top out" if isinstance(stage, VQVAEStage) and stage.model.top else ""
        raise ValueError(
            f"stage.{name} reads pictures of {recipe.size} pixels, whose sides must be multiples of {multiple}: write "
            f"data.size = {fit}{above}, or take a smaller factor"
        )
    if stage.adversarial and recipe.size < (least := stage.adversarial.critic.smallest):
        raise ValueError(
            f"data.size is {recipe.size}, but the critic of stage.{name} needs {least} pixels: lower adversarial.critic"
            ".layers"
        )
    if stage.perceptual and recipe.size < (least := stage.perceptual.smallest):
        raise ValueError(
            f"data.size is {recipe.size}, but LPIPS of stage.{name} needs {least} pixels with net = "
            f"{stage.perceptual.net!r}: take larger pictures, or the tower of a clip stage (without trunk and heads)"
        )
    if stage.perceptual and not stage.perceptual.trunk and not recipe.of_kind(name, "clip"):
        raise ValueError(
            f"stage.{name}.perceptual has no files and no tower: name a stage of kind clip in stage.{name}.needs, or "
            "give trunk and heads of LPIPS"
        )


def _check_base(recipe: Recipe, name: str, stage: UpscaleStage) -> None:
    """Refuse a stage that enlarges without one that draws what it enlarges, or with no data of its size."""
    base = recipe.base(name)
    drawn = recipe.size_of(base)
    if drawn != stage.source:
        raise ValueError(
            f"stage.{name}.source is {stage.source}, but {base} draws {drawn} pixels: write source = {drawn}, or "
            f"name a base in `needs` that draws {stage.source}"
        )
    rendered = isinstance(recipe.data, ScenesData) and (recipe.data.render or recipe.data.size)
    if rendered and rendered < stage.size:
        raise ValueError(
            f"stage.{name}.size is {stage.size}, but the scenes have {rendered} pixels: write data.render = "
            f"{stage.size} or more"
        )
