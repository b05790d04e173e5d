"""What must hold between a stage and those that it stands on; every error names the stage and the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from discrete.objective import Autoregressive, Masked
from pipelines.data.config import MoreScenes, ScenesData, Sets, name_of
from pipelines.judged_config import GenerateStage, MaskedSweepStage, SweepStage
from pipelines.sampling_checks import (
    check_averages,
    check_codes,
    check_guides,
    check_heeded,
    check_sampler,
    check_sweep,
    check_texts,
    check_timeless,
)
from pipelines.stage_config import (
    FORERUNNERS,
    ArStage,
    BPEStage,
    DistillStage,
    MdlmStage,
    UpscaleStage,
    VAEStage,
    VQVAEStage,
)
from pipelines.text.config import TextData, TextEvalStage, TextModelStage, TextSweepStage

if TYPE_CHECKING:
    from pipelines.recipe import Recipe


def check_sets(recipe: Recipe) -> None:
    """Raise ValueError where sets are mixed in that no stage could use as they are."""
    data = recipe.data
    if not isinstance(data, Sets):
        return
    for one in data.pictures:
        if isinstance(one, MoreScenes) and (pixels := one.render or one.size) < data.size:
            raise ValueError(
                f"data.more: the scenes {name_of(one)} have {pixels} pixels, less than data.size = {data.size}: write "
                f"size or render = {data.size}"
            )
    texts = ", ".join(map(name_of, data.texts))
    if texts and not any(isinstance(stage, BPEStage | MdlmStage) for stage in recipe.stage.values()):
        raise ValueError(
            f"data.more: {texts} has no pictures, and no stage of the recipe reads texts alone: they are for stages of "
            "kind bpe and mdlm; leave it out"
        )
    for name, stage in recipe.stage.items() if texts else ():
        if isinstance(stage, MdlmStage):
            _check_alone(recipe, name, stage, texts)


def _check_alone(recipe: Recipe, name: str, stage: MdlmStage, texts: str) -> None:
    """Refuse two sources of texts alone, and weights that make no whole number of them in a batch."""
    assert isinstance(recipe.data, Sets)
    if stage.texts is not None:
        raise ValueError(f"stage.{name}.texts and data.more ({texts}) both name texts alone: leave one of them out")
    count = recipe.data.texts_per_picture() * stage.training.batch
    if count.denominator > 1:
        raise ValueError(
            f"the weight of {texts} makes {float(count):g} texts for a batch of {stage.training.batch} pictures in "
            f"stage.{name}: expected a whole number of at least 1"
        )


def check_needs(recipe: Recipe, name: str) -> None:
    """Raise ValueError where a stage lacks a forerunner, or has one of the wrong kind."""
    stage = recipe.stage[name]
    _check_data(recipe, name)
    match stage:
        case GenerateStage():
            check_sampler(recipe, name, stage)
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
            check_guides(recipe, name, stage)
            check_heeded(recipe, name, stage)
            check_timeless(recipe, name, stage)
        case VAEStage() | VQVAEStage():
            _check_autoencoder(recipe, name, stage)
        case UpscaleStage():
            _check_base(recipe, name, stage)
        case MdlmStage() | ArStage():
            _check_codes(recipe, name)
        case SweepStage():
            check_sweep(recipe, name, stage)
            check_averages(recipe, name, recipe.swept(stage), stage.ema_lengths)
        case MaskedSweepStage():
            check_timeless(recipe, name, stage)
            check_codes(recipe, name, stage)
            check_averages(recipe, name, recipe.swept_codes(stage), stage.ema_lengths)
        case TextSweepStage():
            check_texts(recipe, name, stage)
            check_timeless(recipe, name, stage)
        case TextEvalStage():
            _check_others(recipe, name, stage)
        case TextModelStage():
            _check_documents(recipe, name, stage)


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
    sides = ((min(shape), f"the shorter side of data.buckets, {shape},") for shape in recipe.buckets)
    least_side, what = min([(recipe.size, "data.size"), *sides])
    for shape in recipe.buckets:
        if not stage.pretrained and (shape.height % stage.multiple or shape.width % stage.multiple):
            raise ValueError(
                f"data.buckets has {shape}, but stage.{name} needs sides that are multiples of {stage.multiple}: write "
                f"such sizes, or multiple = {stage.multiple}"
            )
    if stage.adversarial and least_side < (least := stage.adversarial.critic.smallest):
        raise ValueError(
            f"{what} is {least_side}, but the critic of stage.{name} needs {least} pixels: lower adversarial.critic"
            ".layers"
        )
    if stage.perceptual and least_side < (least := stage.perceptual.smallest):
        raise ValueError(
            f"{what} is {least_side}, but LPIPS of stage.{name} needs {least} pixels with net = "
            f"{stage.perceptual.net!r}: take larger pictures, or the tower of a clip stage (without trunk and heads)"
        )
    if stage.perceptual and not stage.perceptual.trunk and not recipe.of_kind(name, "clip"):
        raise ValueError(
            f"stage.{name}.perceptual has no files and no tower: name a stage of kind clip in stage.{name}.needs, or "
            "give trunk and heads of LPIPS"
        )


def _check_codes(recipe: Recipe, name: str) -> None:
    """Refuse a model of codes whose cache holds none."""
    encode = recipe.of_kind(name, "encode")[0]
    if not recipe.of_kind(encode, "vqvae"):
        raise ValueError(
            f"stage.{name} learns from codes, but stage.{encode} caches none: add a stage of kind 'vqvae' to "
            f"stage.{encode}.needs"
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
    sets = (recipe.data, *recipe.data.pictures) if isinstance(recipe.data, Sets) else ()
    for one in sets:
        rendered = isinstance(one, ScenesData | MoreScenes) and (one.render or one.size)
        if rendered and rendered < stage.size:
            raise ValueError(
                f"stage.{name}.size is {stage.size}, but the scenes have {rendered} pixels: write data.render = "
                f"{stage.size} or more"
            )
