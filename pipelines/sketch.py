"""The networks of a recipe's stages, from the recipe alone: for `pipelines.dry`, which builds them without memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from backbone.clip import ContrastiveConfig, construct, read_document
from discrete.layout import Layout
from discrete.model import MaskedTransformer
from discrete.picture_prior import PicturePrior
from discrete.text_model import TextTransformer
from eval.scene import SceneJudge, SceneJudgeConfig
from latent.classifier import NoisyMatch
from latent.unet import UNet
from pipelines.data.grammar import for_size
from pipelines.data.ratios import Shape
from pipelines.data.scenes import describe
from pipelines.models import build_latent, token_layout
from pipelines.recipe import Recipe
from pipelines.stage_config import (
    ArStage,
    BPEStage,
    ClassifierStage,
    ClipStage,
    DistillStage,
    EncodeStage,
    JudgeStage,
    LatentStage,
    MdlmStage,
    SceneJudgeStage,
    UpscaleStage,
    VAEStage,
    VQVAEStage,
)
from pipelines.stage_two_config import LatentConfig
from pipelines.task import Training
from pipelines.text.config import TextModelStage, TextTokensStage
from tokenizer.discriminator import Critic
from tokenizer.exchange import vae_config, vqvae_config
from tokenizer.vae import VAE, VAEConfig
from tokenizer.vqvae import VQVAE


@dataclass(frozen=True, kw_only=True)
class Part:
    """A network of a stage, on the meta device (None: its size is not known yet), and how it trains, if it does."""

    network: nn.Module | None
    training: Training | None = None
    label: str = ""  # where a stage has several


@dataclass(frozen=True)
class Sketch:
    """What a stage is made of, and the shape of what it reads or makes."""

    parts: tuple[Part, ...] = ()
    shape: str = ""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What the encoders of a cache decide: latents (channels, *shape), codes, and the sizes of the text.

    shape: that of most places, where there are several; layout: none where there are no codes.
    """

    channels: int
    shape: Shape
    layout: Layout | None
    text: dict[str, int]


def sketch(recipe: Recipe, name: str) -> Sketch:
    """Build the networks of a stage on the device that torch has as its default."""
    stage, size = recipe.stage[name], getattr(recipe.data, "size", 0)
    match stage:
        case BPEStage():
            return Sketch(shape=f"{stage.length} tokens of at most {stage.vocab_size:,}")
        case VAEStage():
            vae = _vae(stage)
            shape = f"{vae.config.latent_channels} x {_grid(size, vae.downsample)} latents"
            return Sketch((Part(network=vae, training=stage.training), *_critic(stage)), shape)
        case VQVAEStage():
            vqvae = _vqvae(stage)
            _grid(size, vqvae.config.multiple)
            return Sketch((Part(network=vqvae, training=stage.training), *_critic(stage)), _codes(vqvae, size))
        case ClipStage() | JudgeStage():
            towers, text = towers_of(recipe, name)
            return Sketch((Part(network=towers, training=stage.training),), f"text {_sizes(text)}")
        case SceneJudgeStage():
            return Sketch((Part(network=_scene_judge(recipe, stage), training=stage.training),), _pixels(size))
        case EncodeStage():
            made = encoded(recipe, name)
            latents = f"{made.channels} x {made.shape.height} x {made.shape.width} latents"
            latents += f" in {shapes} shapes" if (shapes := len(recipe.buckets)) > 1 else ""
            codes = f", {made.layout.image_length} codes" if made.layout else ""
            return Sketch(shape=f"{latents}{codes}, text {_sizes(made.text)}")
        case LatentStage() | DistillStage():
            model = recipe.origin(name).model
            return _over_latents(recipe, name, stage.training, lambda made: _latent(model, made))
        case ClassifierStage():
            return _over_latents(recipe, name, stage.training, lambda made: _match(stage, made))
        case UpscaleStage():
            config = dataclasses.replace(stage.model, channels=3, image_channels=3, **encoded_for(recipe, name).text)
            shape = f"{stage.source} to {_pixels(stage.size)}"
            return Sketch((Part(network=UNet(config), training=stage.training),), shape)
        case MdlmStage() | ArStage():
            layout = layout_for(recipe, name)
            built = _tokens(stage, layout)
            shape = f"{layout.text_length} + {layout.image_length} tokens of {layout.mask_id + 1:,}"
            return Sketch((Part(network=built, training=stage.training),), shape)
        case TextModelStage():
            return Sketch((Part(network=_text_model(recipe, name, stage), training=stage.training),),
                          f"{stage.length} tokens")  # fmt: skip
        case _:  # it trains nothing
            return Sketch()


def encoded(recipe: Recipe, name: str) -> Encoded:
    """Return what the encoders of the encode stage `name` decide."""
    vae, bpe, clip = (recipe.of_kind(name, kind)[0] for kind in ("vae", "bpe", "clip"))
    continuous, captions = recipe.stage[vae], recipe.stage[bpe]
    assert isinstance(continuous, VAEStage) and isinstance(captions, BPEStage)
    config, layout = _vae_config(continuous), None
    for discrete in recipe.of_kind(name, "vqvae")[:1]:
        model = recipe.stage[discrete]
        assert isinstance(model, VQVAEStage)
        layout = token_layout(captions, _vqvae(model), recipe.size)
    shape, text = recipe.largest.over(config.network.factor), towers_of(recipe, clip)[1]
    return Encoded(channels=config.latent_channels, shape=shape, layout=layout, text=text)


def encoded_for(recipe: Recipe, name: str) -> Encoded:
    """Return what the encoders behind stage `name` decide."""
    return encoded(recipe, recipe.of_kind(name, "encode")[0])


def layout_for(recipe: Recipe, name: str) -> Layout:
    """Return how the tokens stand that the model of codes `name` reads."""
    layout = encoded_for(recipe, name).layout
    assert layout is not None  # the recipe is refused otherwise
    return layout


def _over_latents(
    recipe: Recipe, name: str, training: Training, build: Callable[[Encoded], tuple[nn.Module, int, int]]
) -> Sketch:
    """Sketch a model of latents; build: the network, what must divide the latents' sides, and the patch it reads."""
    made = encoded_for(recipe, name)
    network, factor, patch = build(made)
    if not made.shape.fits(factor):
        raise ValueError(
            f"the latents are {made.shape.height} x {made.shape.width}, and the model reads multiples of {factor}: "
            "take a smaller patch or fewer levels, or another data.size"
        )
    return Sketch(
        (Part(network=network, training=training),), f"{math.prod(made.shape.over(patch))} tokens, patch {patch}"
    )


def _latent(model: LatentConfig, made: Encoded) -> tuple[nn.Module, int, int]:
    config = dataclasses.replace(model, channels=made.channels, **made.text)
    return build_latent(config), config.factor, config.patch


def _match(stage: ClassifierStage, made: Encoded) -> tuple[nn.Module, int, int]:
    """Build a classifier with as many captions in its bank as it may have."""
    config = dataclasses.replace(stage.model, channels=made.channels, pooled_width=made.text["pooled_width"])
    return NoisyMatch(config, stage.schedule), config.patch, config.patch


def _tokens(stage: MdlmStage | ArStage, layout: Layout) -> nn.Module:
    if isinstance(stage, MdlmStage):
        return MaskedTransformer(stage.model, layout)
    return PicturePrior(stage.model, layout)


def _text_model(recipe: Recipe, name: str, stage: TextModelStage) -> nn.Module | None:
    """Build a text model, unless the text alone tells how many characters there are."""
    tokens = recipe.stage[recipe.of_kind(name, "text_tokens")[0]]
    assert isinstance(tokens, TextTokensStage)
    return TextTransformer(stage.model, tokens.vocab_size) if tokens.vocab_size else None


def _scene_judge(recipe: Recipe, stage: SceneJudgeStage) -> nn.Module | None:
    """Build the judge of scenes, unless the data's own manifest has to say what is in them."""
    if not recipe.grammatical:
        return None
    made = describe(for_size(recipe.size))
    config = SceneJudgeConfig(attributes=made["attributes"], slots=len(made["objects"]), widths=stage.widths)
    return SceneJudge(config)


def _vae_config(stage: VAEStage) -> VAEConfig:
    return vae_config(Path(stage.pretrained), stage.model) if stage.pretrained else stage.model


def _vae(stage: VAEStage) -> VAE:
    return VAE(_vae_config(stage))


def _vqvae(stage: VQVAEStage) -> VQVAE:
    return VQVAE(vqvae_config(Path(stage.pretrained), stage.model) if stage.pretrained else stage.model)


def _critic(stage: VAEStage | VQVAEStage) -> tuple[Part, ...]:
    """Return the second player of an autoencoder, which keeps no average and is AdamW's."""
    if stage.adversarial is None or stage.training is None:
        return ()
    training = dataclasses.replace(stage.training, ema=None, optimizer="adamw")
    return (Part(network=Critic(stage.adversarial.critic), training=training, label="critic"),)


def towers_of(recipe: Recipe, name: str) -> tuple[nn.Module, dict[str, int]]:
    """Return the contrastive towers of stage `name`, and what a latent model needs to know of their text."""
    stage = recipe.stage[name]
    assert isinstance(stage, ClipStage | JudgeStage)
    if stage.pretrained is not None:
        document = read_document(Path(stage.pretrained))
        text = document["model_cfg"]["text_cfg"]
        width, length = text.get("width", 512), text.get("context_length", 77)
        sizes = {"text_width": width, "pooled_width": document["model_cfg"]["embed_dim"], "text_length": length}
        return construct(document), sizes
    bpe = recipe.stage[recipe.of_kind(name, "bpe")[0]]
    assert isinstance(bpe, BPEStage)
    config = ContrastiveConfig(
        **vars(stage.model), image_size=recipe.size, vocab_size=bpe.vocab_size, context_length=bpe.length, end_id=1
    )
    sizes = {"text_width": config.text_width, "pooled_width": config.embed_dim, "text_length": config.context_length}
    return config.build(seed=0), sizes


def _grid(size: int, multiple: int) -> str:
    """Return the grid of positions that pictures become. Raises ValueError where it does not fit."""
    if size % multiple:
        raise ValueError(f"pictures of {size} pixels, expected a multiple of {multiple}: change data.size")
    return f"{size // multiple} x {size // multiple}"


def _codes(model: VQVAE, size: int) -> str:
    grids = zip(model.grids(size, size), model.config.vocabularies, strict=True)
    return ", ".join(f"{h} x {w} codes of {codes:,}" for (h, w), codes in grids)


def _sizes(text: dict[str, int]) -> str:
    return f"{text['text_length']} x {text['text_width']}, pooled {text['pooled_width']}"


def _pixels(size: int) -> str:
    return f"{size} x {size} pixels"
