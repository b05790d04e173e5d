"""Pictures enlarged by a model of pixels, and cascades: a base draws, each further model enlarges.

Unusual: what a model is told of the small picture carries noise of a known level (arXiv:2106.15282, section 4), so that
it mends what its base draws badly instead of copying it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from backbone.noise import Randomness, noise_like
from latent import guide
from latent.condition import Condition, ImageCondition, TextConditioned
from latent.predict import Denoise, Network, as_model, coefficients, corrupt
from latent.schedule import Flow, expand
from pipelines.errors import PalimpsestError
from pipelines.hardware import device_of
from pipelines.latent_sampler import load_encoder
from pipelines.models import load_latent
from pipelines.pictures import NOT_FINITE, enlarged, from_pil, to_pil
from pipelines.runs import Run, stage_of
from pipelines.samplers import grid_of, refusal, rule_of, run_sampler
from pipelines.sampling import PictureSampler
from pipelines.sampling_options import Settings
from pipelines.stage_config import UpscaleStage
from tokenizer.embed import TextEncoder


def tell(text: Condition, low: Tensor, size: int, level: Tensor, generator: Randomness) -> ImageCondition:
    """Return the text beside the small pictures, made large and noised along the straight path up to their levels.

    low: (B, 3, h, w) in [-1, 1]; level: (B,) in [0, 1), 0 adds nothing.
    """
    large = enlarged(low, size)  # (B, 3, size, size)
    image = corrupt(Flow(), large, noise_like(large, generator), level)
    return ImageCondition(*text, image=image.to(low.dtype), level=level)


def ending(stage: UpscaleStage, cond: ImageCondition, generator: Randomness) -> Tensor:
    """Return what paths end in at t = 1, (B, 3, size, size): noise, or the small picture as the model is told it."""
    return cond.image if stage.start == "pair" else noise_like(cond.image, generator)


def beside_picture(network: Network[ImageCondition], stage: UpscaleStage) -> Network[ImageCondition]:
    """Return the network with the told picture p as its first guess: its own output is what that guess lacks.

        output = network(x_t, t, cond) + a p / (1 - level) + b e,   e = p for pairs, else 0

    (a, b) are those of the target a x + b eps, so that a network that puts out zero takes x for the picture at its own
    contrast, and, for pairs, knows eps. Without it a small network spends its training on passing the picture through.
    """

    def asked(x_t: Tensor, t: Tensor, cond: ImageCondition) -> Tensor:
        a, b = coefficients(stage.prediction, stage.schedule, t)
        share = a / (1 - cond.level) + (b if stage.start == "pair" else 0)
        return network(x_t, t, cond) + expand(share, x_t) * cond.image

    return asked


@dataclass(frozen=True)
class Upscaler:
    """A model that enlarges pictures, with all that it needs for that."""

    stage: UpscaleStage
    network: TextConditioned
    encoder: TextEncoder

    @classmethod
    def load(cls, run: Run, name: str, network: TextConditioned | None = None) -> Self:
        """Load the stage `name`, or take a network that is being trained for it."""
        stage = stage_of(run, name)
        if not isinstance(stage, UpscaleStage):
            raise PalimpsestError(f"stage {name!r} is of kind {stage.kind!r}, expected upscale")
        return cls(stage, network or load_latent(run, name), load_encoder(run, name))

    @torch.no_grad()
    def enlarge(
        self, low: Tensor, captions: Sequence[str], generators: Sequence[torch.Generator], settings: Settings
    ) -> Tensor:
        """Return pictures (B, 3, source, source) in [-1, 1] as (B, 3, size, size).

        Raises PalimpsestError for pictures of another size, and for settings that the model cannot be sampled with.
        """
        times = self._checked(low, settings)
        stage, low = self.stage, low.to(device_of(self.network))
        level = torch.full((len(low),), settings.latent.level or 0.0, device=low.device)
        cond = tell(self.embed(captions), low, stage.size, level, generators)
        x = ending(stage, cond, generators) * stage.schedule.sigma(times[0]).to(low)
        return run_sampler(settings, self.denoise(cond, settings, times), stage.schedule, x, times, generators)

    def embed(self, captions: Sequence[str]) -> Condition:
        """Return the text condition that captions make."""
        return Condition(*(part.to(device_of(self.network)) for part in self.encoder.embed(captions)))

    def denoise(self, cond: ImageCondition, settings: Settings, times: Tensor) -> Denoise:
        """Return the model guided by its text; both branches see the picture."""
        stage, options = self.stage, settings.latent
        model = as_model(beside_picture(self.network, stage), stage.schedule, stage.prediction)
        rule = rule_of(settings, stage.schedule, times, cond.image[0].numel())
        null = self._null(cond, options.negative)
        guided = guide.classifier_free(model, cond, null, rule, interval=options.interval)
        if options.threshold is None:
            return guided
        return guide.thresholded(guided, stage.schedule, limit=options.threshold)

    def _null(self, cond: ImageCondition, negative: str) -> ImageCondition:
        if negative:
            return cond._replace(**self.embed([negative] * len(cond.mask))._asdict())
        return self.network.drop(cond, torch.ones(len(cond.mask), dtype=torch.bool, device=cond.mask.device))

    def _checked(self, low: Tensor, settings: Settings) -> Tensor:
        """Return the time grid of settings that the model can be sampled with."""
        source = self.stage.source
        if low.shape[1:] != (3, source, source):
            raise PalimpsestError(
                f"pictures of shape {tuple(low.shape[1:])}, expected (3, {source}, {source}): resize them to "
                f"{source} pixels first"
            )
        stage, times = self.stage, grid_of(settings, self.stage.schedule, self.stage.shift)
        problem = stage.unfit(settings.sampler, settings.latent)
        if problem := problem or refusal(settings, "this model", stage, stage, times):
            raise PalimpsestError(problem)
        return times


@dataclass(frozen=True)
class Cascade:
    """A base that draws small pictures, with settings of its own, and the model that enlarges them."""

    base: PictureSampler
    base_settings: Settings
    upscaler: Upscaler

    def pictures(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], settings: Settings
    ) -> list[Image.Image]:
        """Draw one picture per prompt; the settings are those of the last model."""
        low = self.base.pictures(prompts, generators, self.base_settings)
        made = to_pil(self.upscaler.enlarge(from_pil(low), prompts, generators, settings))
        for small, large in zip(low, made, strict=True):
            large.info |= {NOT_FINITE: True} if small.info.get(NOT_FINITE) else {}
        return made
