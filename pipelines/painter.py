"""Any model of pictures behind one call: prompts in, pictures with their cost out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from eval.features import quantise
from pipelines.ar_sampler import ArSampler
from pipelines.judging import Pictures
from pipelines.kept_weights import USED, Weights, put
from pipelines.latent_sampler import LatentSampler
from pipelines.masked_sampler import MaskedSampler
from pipelines.runs import Run
from pipelines.sampling_options import Settings
from pipelines.stage_config import ArStage, MdlmStage


class Painted(NamedTuple):
    """Pictures (B, H, W, 3); evaluations of the network for each; the codes (B, L) that they are of, if of codes."""

    pictures: Pictures
    evaluations: float
    codes: NDArray[np.int64] | None = None


Paint = Callable[[Sequence[str], Sequence[torch.Generator], Settings], Painted]


class Painter(NamedTuple):
    """A model that draws; error: how far its weights are from the average that was asked for, a share."""

    paint: Paint
    error: float = 0.0


def load_painter(run: Run, name: str, weights: Weights = USED) -> Painter:
    """Load the model of stage `name` with its usual weights, or with others that its training left."""
    stage = run.recipe.stage[name]
    if isinstance(stage, MdlmStage):
        network, paint = _masked(run, name)
    elif isinstance(stage, ArStage):
        network, paint = _autoregressive(run, name)
    else:
        network, paint = _latent(run, name)
    return Painter(paint, put(network, run.stage_folder(name), weights) if weights != USED else 0.0)


def _latent(run: Run, name: str) -> tuple[nn.Module, Paint]:
    sampler = LatentSampler.load(run, name)

    def paint(prompts: Sequence[str], draws: Sequence[torch.Generator], settings: Settings) -> Painted:
        drawn = sampler.draw(prompts, draws, settings)
        return Painted(quantise(sampler.decode(drawn.z)), drawn.evaluations)

    return sampler.network, paint


def _masked(run: Run, name: str) -> tuple[nn.Module, Paint]:
    sampler = MaskedSampler.load(run, name)

    def paint(prompts: Sequence[str], draws: Sequence[torch.Generator], settings: Settings) -> Painted:
        codes, evaluations = sampler.codes(prompts, draws, settings)
        return Painted(_stacked(sampler.decode(codes)), evaluations, codes.cpu().numpy())

    return sampler.network, paint


def _autoregressive(run: Run, name: str) -> tuple[nn.Module, Paint]:
    sampler = ArSampler.load(run, name)

    def paint(prompts: Sequence[str], draws: Sequence[torch.Generator], settings: Settings) -> Painted:
        codes = sampler.codes(prompts, draws, settings)
        return Painted(_stacked(sampler.decode(codes)), codes.shape[1], codes.cpu().numpy())

    return sampler.network, paint


def _stacked(pictures: Sequence[Image.Image]) -> Pictures:
    return np.stack([np.asarray(picture) for picture in pictures])
