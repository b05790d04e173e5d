"""Pictures from a latent model: caption -> embedding -> guided sampler -> latents -> decoder."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from PIL import Image
from torch import Tensor

from backbone.noise import noise_like
from latent import guide
from latent.condition import Condition, TextConditioned
from latent.predict import Counted, Denoise, as_model, bind
from latent.schedule import Schedule
from pipelines.artefact import ArtefactError
from pipelines.cache import open_cache
from pipelines.data.ratios import Shape
from pipelines.errors import PalimpsestError
from pipelines.hardware import device_of
from pipelines.models import device, load_classifier, load_latent, load_vae
from pipelines.pictures import to_pil
from pipelines.runs import Run, stage_of
from pipelines.samplers import grid_of, refusal, rule_of, run_sampler
from pipelines.sampling_options import LatentOptions, Settings
from pipelines.stage_config import LatentStage
from tokenizer.embed import TextEncoder, load_text_encoder
from tokenizer.vae import VAE

log = logging.getLogger("palimpsest")


class Drawn(NamedTuple):
    """Normalised latents z and the noise eps that they come from, (B, c, h, w) each."""

    z: Tensor
    eps: Tensor
    evaluations: int  # calls of the model; both branches of guidance are one


@dataclass(frozen=True)
class LatentSampler:
    """A latent model with all that stands between a caption and a picture."""

    run: Run
    name: str
    network: TextConditioned
    origin: LatentStage  # how the model, or the first teacher of a student, was trained
    encoder: TextEncoder
    vae: VAE
    mean: Tensor  # (c, 1, 1)
    std: Tensor  # (c, 1, 1)
    shape: Shape  # of the latents
    trained: tuple[Shape, ...]  # the shapes of the pictures that it was trained on

    @classmethod
    def load(cls, run: Run, name: str, network: TextConditioned | None = None) -> Self:
        """Load the stage `name`, or take a network that is being trained for it."""
        cache = open_cache(run, name)
        made = cache.manifest
        return cls(
            run=run,
            name=name,
            network=network or load_latent(run, name),
            origin=run.recipe.origin(name),
            encoder=load_encoder(run, name),
            vae=load_vae(run, run.need(name, "vae")[0]),
            mean=torch.tensor(made["latent_mean"], device=device())[:, None, None],
            std=torch.tensor(made["latent_std"], device=device())[:, None, None],
            shape=Shape(made["latent_size"], made["latent_size"]),
            trained=cache.shapes,
        )

    def sized(self, size: Shape) -> Self:
        """Return the sampler for pictures of another size, with a warning where the model has seen none of it.

        Raises PalimpsestError where decoder and network cannot make it.
        """
        multiple = self.vae.downsample * self.origin.model.factor
        if not size.fits(multiple):
            raise PalimpsestError(
                f"size is {size}, but {self.name} draws pictures whose sides are multiples of {multiple}: the nearest "
                f"is {size.near(multiple)}"
            )
        if size not in self.trained:
            known = ", ".join(map(str, self.trained))
            log.warning("%s has seen no picture of %s, only %s: it may draw worse there.", self.name, size, known)
        return dataclasses.replace(self, shape=size.over(self.vae.downsample))

    @property
    def schedule(self) -> Schedule:
        """The path that the model was trained on."""
        return self.origin.schedule

    def pictures(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], settings: Settings
    ) -> list[Image.Image]:
        """Draw one picture per prompt."""
        return to_pil(self.decode(self.draw(prompts, generators, settings).z))

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], generators: Sequence[torch.Generator], settings: Settings) -> Drawn:
        """Draw one latent per prompt, and keep what it came from."""
        times = grid_of(settings, self.schedule, self.origin.shift)
        if problem := refusal(settings, self.name, stage_of(self.run, self.name), self.origin, times):
            raise PalimpsestError(problem)
        denoise = Counted(self.denoise(self.embed(prompts), settings, times))
        start = torch.zeros(len(prompts), len(self.mean), *self.shape, device=self.mean.device)
        eps = noise_like(start, generators)
        x = eps * self.schedule.sigma(times[0]).to(start)
        z = run_sampler(settings, denoise, self.schedule, x, times, generators)
        return Drawn(z, eps, denoise.calls)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return the pictures (B, 3, H, W) of normalised latents (B, c, h, w)."""
        return self.vae.decode(z * self.std + self.mean)

    def embed(self, prompts: Sequence[str]) -> Condition:
        """Return the condition that prompts make."""
        return Condition(*(part.to(device_of(self.network)) for part in self.encoder.embed(prompts)))

    def denoise(self, cond: Condition, settings: Settings, times: Tensor) -> Denoise:
        """Return the model with its condition and all guidance that the settings ask for."""
        options, model = settings.latent, as_model(self.network, self.schedule, self.origin.prediction)
        rule = rule_of(settings, self.schedule, times, len(self.mean) * math.prod(self.shape))
        if options.weak:
            guided = guide.autoguidance(bind(model, cond), self._weak(cond, options), rule, interval=options.interval)
        else:
            guided = guide.classifier_free(model, cond, self._null(cond, options), rule, interval=options.interval)
        if options.classifier:
            guided = self._classified(guided, cond, options)
        if options.threshold is not None:
            guided = guide.thresholded(guided, self.schedule, limit=options.threshold)
        return guided

    def _weak(self, cond: Condition, options: LatentOptions) -> Denoise:
        """Return the weaker model, whose prediction is its own."""
        name = self._guide(options.weak, "latent")
        network, prediction = load_latent(self.run, name), self.run.recipe.origin(name).prediction
        return bind(as_model(network, self.schedule, prediction), cond)

    def _classified(self, denoise: Denoise, cond: Condition, options: LatentOptions) -> Denoise:
        """Add the gradient of a classifier at the times at which guidance acts."""
        match = load_classifier(self.run, self._guide(options.classifier, "classifier"))
        low, high = options.interval

        def log_prob(x_t: Tensor, t: Tensor) -> Tensor:
            return match.log_prob(x_t, t, cond.pooled)

        guided = guide.classifier(denoise, self.schedule, log_prob, options.classifier_scale)
        return lambda x_t, t: (guided if low <= t <= high else denoise)(x_t, t)

    def _guide(self, name: str, kind: str) -> str:
        """Return the stage that guides. Raises PalimpsestError where it does not fit the model."""
        stage_of(self.run, name)
        if problem := self.run.recipe.misfit(name, kind, self.name):
            raise PalimpsestError(problem)
        return name

    def _null(self, cond: Condition, options: LatentOptions) -> Condition:
        if options.negative:
            return self.embed([options.negative] * len(cond.mask))
        return self.network.null_condition(len(cond.mask))


def load_encoder(run: Run, name: str) -> TextEncoder:
    """Load the text encoder of stage `name`. Raises ArtefactError where its cache was made by another one."""
    wanted, clip = open_cache(run, name).manifest["text_encoder"], run.need(name, "clip")[0]
    encoder = load_text_encoder(run.stage_folder(clip)).to(device())
    if encoder.identity != wanted:
        raise ArtefactError(
            f"{run.stage_folder(clip)} is the text encoder {encoder.identity}, but {name} was trained with "
            f"{wanted}. Train {name} again, or put the old encoder back."
        )
    return encoder
