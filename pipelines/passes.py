"""One pass of each network that a recipe trains, as its training makes it, on inputs that have shapes and no meaning.

`pipelines.cost` runs them without memory, to count what a step costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbone.clip import pair_features
from latent.condition import Condition, ImageCondition
from pipelines.data.ratios import Shape
from pipelines.recipe import Recipe
from pipelines.sketch import Part, encoded, encoded_for, layout_for, sketch, towers_of
from pipelines.stage_config import (
    ArStage,
    ClassifierStage,
    ClipStage,
    DistillStage,
    JudgeStage,
    LatentStage,
    MdlmStage,
    SceneJudgeStage,
    UpscaleStage,
)
from pipelines.stage_one_config import AutoencoderStage
from pipelines.text.config import TextModelStage
from tokenizer.discriminator import Critic
from tokenizer.perceptual import LPIPS, FeatureDistance, PerceptualDistance
from tokenizer.vae import VAE
from tokenizer.vqvae import VQVAE

Pass = Callable[[nn.Module, int], Tensor]
"""(network, items) -> a scalar () that depends on all that the network gives."""


@dataclass(frozen=True, kw_only=True)
class Player:
    """A network that a stage trains, and a pass of its training. frozen: a network that the pass asks beside it."""

    part: Part
    run: Pass
    frozen: nn.Module | None = None

    @property
    def network(self) -> nn.Module:
        """The network."""
        assert self.part.network is not None
        return self.part.network


def players_of(recipe: Recipe, name: str) -> list[Player]:
    """Return the networks that stage `name` trains, of meta tensors; none where only the data tells how large."""
    with torch.device("meta"):
        stage, parts = recipe.stage[name], sketch(recipe, name).parts
        learn = [part for part in parts if part.network is not None and part.training is not None]
        if not isinstance(stage, AutoencoderStage):
            return [Player(part=part, run=_pass(recipe, name)) for part in learn]
    return _autoencoder(recipe, name, stage, learn)


def encoders_of(recipe: Recipe, name: str) -> list[Player]:
    """Return, made of meta tensors, the frozen networks that the encode stage `name` asks."""
    with torch.device("meta"):
        run = _encoding(recipe.largest, encoded(recipe, name).text["text_length"])
        names = (encoder for kind in ("vae", "vqvae", "clip") for encoder in recipe.of_kind(name, kind)[:1])
        return [Player(part=sketch(recipe, encoder).parts[0], run=run) for encoder in names]


def _encoding(shape: Shape, length: int) -> Pass:
    def run(network: nn.Module, items: int) -> Tensor:
        x = torch.randn(items, 3, *shape)
        if isinstance(network, VAE):
            return network.encode(x).mean.sum()
        if isinstance(network, VQVAE):
            return network.codes(x).sum()
        return network.encode_text(torch.ones(items, length, dtype=torch.long)).sum()  # type: ignore[operator]

    return run


def _autoencoder(recipe: Recipe, name: str, stage: AutoencoderStage, parts: Sequence[Part]) -> list[Player]:
    networks = [part.network for part in parts]
    critic = next((network for network in networks if isinstance(network, Critic)), None)
    distance, own = _distance(recipe, name, stage), _judging(recipe.largest)
    looked = Looked(recipe.largest, critic, distance)
    return [
        Player(part=part, run=own) if part.network is critic else Player(part=part, run=looked, frozen=distance)
        for part in parts
    ]


def _distance(recipe: Recipe, name: str, stage: AutoencoderStage) -> PerceptualDistance | None:
    """Return what the pictures of an autoencoder are compared by beside their colours."""
    if (look := stage.perceptual) is None:
        return None
    if look.trunk:
        return LPIPS(Path(look.trunk), Path(look.heads), look.net)
    with torch.device("meta"):
        return FeatureDistance(towers_of(recipe, recipe.of_kind(name, "clip")[0])[0], "")


def _pass(recipe: Recipe, name: str) -> Pass:
    """Return a pass of the one network that stage `name` trains."""
    match recipe.stage[name]:
        case ClipStage() | JudgeStage():
            return _contrast(recipe.size, towers_of(recipe, name)[1]["text_length"])
        case SceneJudgeStage():
            return lambda network, items: summed(network(torch.randn(items, 3, recipe.size, recipe.size)))
        case LatentStage() | DistillStage():
            made = encoded_for(recipe, name)
            return _denoising(made.channels, made.shape, made.text)
        case ClassifierStage():
            made = encoded_for(recipe, name)
            return _matching(made.channels, made.shape, made.text["pooled_width"])
        case UpscaleStage() as stage:
            return _denoising(3, Shape(stage.size, stage.size), encoded_for(recipe, name).text, image=True)
        case MdlmStage() | ArStage():
            layout = layout_for(recipe, name)
            return _windows(layout.text_length + layout.image_length)
        case TextModelStage() as stage:
            return _windows(stage.length)
        case stage:
            raise TypeError(f"a stage of kind {stage.kind} trains nothing")


@dataclass(frozen=True)
class Looked:
    """An autoencoder's pass: reconstruct, and let the networks beside it look at the picture.

    shape: of the pictures, of several buckets the one of most pixels.
    """

    shape: Shape
    critic: Critic | None = None
    distance: PerceptualDistance | None = None

    def __call__(self, network: nn.Module, items: int) -> Tensor:
        """Return a scalar () that depends on all outputs; the codes of a codebook are found, and not counted."""
        x = torch.randn(items, 3, *self.shape)
        for level in network.levels if isinstance(network, VQVAE) else ():
            level.eval()  # how often codes come depends on values
        made = network(x, torch.Generator()) if isinstance(network, VAE) else network(x)
        total = summed(made)
        if self.distance is not None:
            total = total + self.distance(made.x_hat, x)
        if self.critic is not None:
            total = total + self.critic.judge(made.x_hat)
        return total


def _judging(shape: Shape) -> Pass:
    """Return a critic's own pass on real and made pictures."""

    def run(network: nn.Module, items: int) -> Tensor:
        real, fake = torch.randn(2, items, 3, *shape)
        return network(real, fake, torch.Generator()).total

    return run


def _contrast(size: int, length: int) -> Pass:
    """Return a pass of contrastive towers over pairs."""

    def run(network: nn.Module, items: int) -> Tensor:
        tokens = torch.ones(items, length, dtype=torch.long)
        return summed(pair_features(network, torch.randn(items, 3, size, size), tokens))

    return run


def _denoising(channels: int, shape: Shape, text: Mapping[str, int], *, image: bool = False) -> Pass:
    """Return a pass of a network that is told text, and with `image` a picture as large as what it denoises."""

    def run(network: nn.Module, items: int) -> Tensor:
        x_t, t, told = torch.randn(items, channels, *shape), torch.rand(items), _told(text, items)
        cond = ImageCondition(*told, x_t, t) if image else told
        return summed(network(x_t, t, cond))

    return run


def _matching(channels: int, shape: Shape, pooled_width: int) -> Pass:
    """Return a pass of a classifier of noisy latents."""

    def run(network: nn.Module, items: int) -> Tensor:
        latents = torch.randn(items, channels, *shape)
        return summed(network(latents, torch.rand(items), torch.randn(items, pooled_width)))

    return run


def _windows(length: int) -> Pass:
    """Return a pass of a network over so many tokens."""
    return lambda network, items: summed(network(torch.zeros(items, length, dtype=torch.long)))


def _told(text: Mapping[str, int], items: int) -> Condition:
    """Return the text of so many items; text: the sizes that a text encoder gives."""
    length = text["text_length"]
    tokens, mask = torch.randn(items, length, text["text_width"]), torch.ones(items, length, dtype=torch.bool)
    return Condition(tokens, mask, torch.randn(items, text["pooled_width"]))


def summed(found: Any) -> Tensor:
    """Return the sum of all floating-point tensors in nested tuples and dictionaries."""
    return torch.stack([value.float().sum() for value in _tensors(found) if value.is_floating_point()]).sum()


def _tensors(found: Any) -> Sequence[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, tuple | list) else ()
    return [value for part in parts for value in _tensors(part)]
