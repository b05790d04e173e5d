"""Trained models from their artefacts: configuration and statistics from the manifest, weights from safetensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, assert_never

import torch
from torch import nn

from discrete.layout import Layout
from discrete.model import MaskedTransformer, MaskedTransformerConfig
from discrete.picture_prior import PicturePrior, PicturePriorConfig
from discrete.text_model import TextTransformer, TextTransformerConfig
from eval.scene import SceneJudge, SceneJudgeConfig
from latent.classifier import MatchConfig, NoisyMatch
from latent.condition import TextConditioned
from latent.dit import DiT, DiTConfig
from latent.mmdit import MMDiT, MMDiTConfig
from latent.unet import UNet, UNetConfig
from pipelines.artefact import ArtefactError, load_weights
from pipelines.config import read_config
from pipelines.errors import PalimpsestError
from pipelines.runs import Run
from pipelines.stage_one_config import BPEStage
from pipelines.stage_two_config import ClassifierStage, LatentConfig
from tokenizer.plain import PlainTokenizer
from tokenizer.text import BPE
from tokenizer.vae import VAE, VAEConfig
from tokenizer.vqvae import VQVAE, VQVAEConfig

Module = TypeVar("Module", bound=nn.Module)


def device() -> torch.device:
    """Return the device that models run on: a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def token_layout(captions: BPE | BPEStage, codes: VQVAE, size: int) -> Layout:
    """Return how captions and the codes of pictures of `size` pixels stand in one sequence."""
    return Layout(
        text_length=captions.length,
        text_vocab=captions.vocab_size,
        sides=tuple(side for side, _ in codes.grids(size, size)),
        image_vocabs=codes.config.vocabularies,
    )


def best_weights(folder: Path) -> Path:
    """Return the averaged weights of a stage that keeps an average, else the last ones."""
    average = folder / "ema.safetensors"
    return average if average.exists() else folder / "model.safetensors"


def plain(config: Any) -> dict[str, Any]:
    """Return a configuration as plain values, for a manifest."""
    return dataclasses.asdict(config)


def _load(run: Run, name: str, kind: type[Any], build: Callable[[Any], Module]) -> Module:
    folder, manifest = run.stage_folder(name), run.manifest(name)
    module = build(read_config(kind, manifest["model"], str(folder)))
    load_weights(module, best_weights(folder))
    return module.to(device()).eval().requires_grad_(False)


def load_bpe(run: Run, name: str) -> BPE:
    """Load the text tokenizer of stage `name`."""
    run.manifest(name)
    return BPE.load(run.stage_folder(name) / "bpe.json")


def load_vae(run: Run, name: str) -> VAE:
    """Load the VAE of stage `name`."""
    return _load(run, name, VAEConfig, VAE)


def load_vqvae(run: Run, name: str) -> VQVAE:
    """Load the VQ-VAE of stage `name`."""
    return _load(run, name, VQVAEConfig, VQVAE)


def build_latent(config: LatentConfig) -> TextConditioned:
    """Return a new network of the kind that a configuration is for."""
    match config:
        case DiTConfig():
            return DiT(config)
        case MMDiTConfig():
            return MMDiT(config)
        case UNetConfig():
            return UNet(config)
        case _:
            assert_never(config)


def load_latent(run: Run, name: str) -> TextConditioned:
    """Load the latent model of stage `name`."""
    return _load(run, name, LatentConfig, build_latent)  # type: ignore[arg-type]


def load_classifier(run: Run, name: str) -> NoisyMatch:
    """Load the classifier of stage `name`, on the path that it was trained on."""
    stage = run.recipe.stage[name]
    assert isinstance(stage, ClassifierStage)
    return _load(run, name, MatchConfig, lambda config: NoisyMatch(config, stage.schedule))


def load_masked(run: Run, name: str, layout: Layout) -> MaskedTransformer:
    """Load the masked model of stage `name`; its vocabulary layout must be the one given."""
    _check_layout(run, name, layout)
    return _load(run, name, MaskedTransformerConfig, lambda config: MaskedTransformer(config, layout))


def load_prior(run: Run, name: str, layout: Layout) -> PicturePrior:
    """Load the autoregressive model of stage `name`; its vocabulary layout must be the one given."""
    _check_layout(run, name, layout)
    return _load(run, name, PicturePriorConfig, lambda config: PicturePrior(config, layout))


def _check_layout(run: Run, name: str, layout: Layout) -> None:
    made = run.manifest(name)["layout"]
    if read_config(Layout, made, str(run.stage_folder(name))) != layout:
        raise ArtefactError(
            f"{run.stage_folder(name)} was trained with the vocabulary layout {made}, "
            f"but the cache has {plain(layout)}. "
            f"Delete {run.stage_folder(name)} and train {name} again."
        )


def load_text_model(run: Run, name: str, tokenizer: PlainTokenizer) -> TextTransformer:
    """Load the text model of stage `name`; its tokenizer must be the one given."""
    made = run.manifest(name)["tokenizer"]
    if made != tokenizer.hash:
        raise ArtefactError(
            f"{run.stage_folder(name)} was trained with the tokenizer {made[:12]}, but its text is read with "
            f"{tokenizer.hash[:12]}. Train {name} again, or put the old tokenizer back."
        )
    vocab = tokenizer.vocab_size
    return _load(run, name, TextTransformerConfig, lambda config: TextTransformer(config, vocab))


def load_scene_judge(run: Run, name: str) -> SceneJudge:
    """Load the judge of scenes of stage `name`."""
    return _load(run, name, SceneJudgeConfig, SceneJudge)


def autoencoders(run: Run) -> list[str]:
    """Return the stages of a run's recipe that are autoencoders."""
    return [name for name, stage in run.recipe.stage.items() if stage.kind in ("vae", "vqvae")]


def no_autoencoder(run: Run, name: str) -> PalimpsestError:
    """Return the error of a stage that is named as an autoencoder and is none."""
    known = f"name one of {', '.join(autoencoders(run))}" if autoencoders(run) else "this run has none"
    return PalimpsestError(
        f"stage {name!r} is of kind {run.recipe.stage[name].kind!r}, expected vae or vqvae: {known}."
    )
