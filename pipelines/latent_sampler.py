"""Pictures from a latent model: caption -> embedding -> guided sampler -> latents -> decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, assert_never

import torch
from PIL import Image
from torch import Tensor

from backbone.noise import noise_like
from latent import grid, guide, sample
from latent.condition import Condition, TextConditioned
from latent.predict import Denoise, Estimate, Model, as_model, bind
from latent.schedule import Schedule
from pipelines.artefact import ArtefactError
from pipelines.cache import open_cache
from pipelines.errors import PalimpsestError
from pipelines.hardware import device_of
from pipelines.models import device, load_classifier, load_latent, load_vae
from pipelines.pictures import to_pil
from pipelines.recipe import Recipe
from pipelines.runs import Run, stage_of
from pipelines.sampling import Settings
from pipelines.stage_config import LATENT_SAMPLERS, DistillStage, LatentOptions, LatentStage
from tokenizer.embed import TextEncoder, load_text_encoder
from tokenizer.vae import VAE


class Drawn(NamedTuple):
    """Pictures (B, 3, H, W), their normalised latents z and the noise eps that these come from (B, c, h, w)."""

    pictures: Tensor
    z: Tensor
    eps: Tensor
    evaluations: int  # calls of the model; both branches of guidance are one


@dataclass
class Counted:
    """A denoiser that counts its calls."""

    denoise: Denoise
    calls: int = 0

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        """Count, and pass on."""
        self.calls += 1
        return self.denoise(x_t, t)


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
    size: int  # side of the latents

    @classmethod
    def load(cls, run: Run, name: str, network: TextConditioned | None = None) -> Self:
        """Load the stage `name`, or take a network that is being trained for it."""
        made = open_cache(run, name).manifest
        return cls(
            run=run,
            name=name,
            network=network or load_latent(run, name),
            origin=origin_of(run.recipe, name),
            encoder=load_encoder(run, name),
            vae=load_vae(run, run.need(name, "vae")[0]),
            mean=torch.tensor(made["latent_mean"], device=device())[:, None, None],
            std=torch.tensor(made["latent_std"], device=device())[:, None, None],
            size=made["latent_size"],
        )

    @property
    def schedule(self) -> Schedule:
        """The path that the model was trained on."""
        return self.origin.schedule

    def pictures(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], settings: Settings
    ) -> list[Image.Image]:
        """Draw one picture per prompt."""
        return to_pil(self.draw(prompts, generators, settings).pictures)

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], generators: Sequence[torch.Generator], settings: Settings) -> Drawn:
        """Draw one picture per prompt, and keep what it came from."""
        times = grid_of(settings, self.schedule, self.origin.shift)
        denoise = Counted(self.denoise(self.embed(prompts), settings, times))
        start = torch.zeros(len(prompts), len(self.mean), self.size, self.size, device=self.mean.device)
        eps = noise_like(start, generators)
        x = eps * self.schedule.sigma(times[0]).to(start)
        z = run_sampler(settings, denoise, self.schedule, x, times, generators)
        return Drawn(self.vae.decode(z * self.std + self.mean), z, eps, denoise.calls)

    def embed(self, prompts: Sequence[str]) -> Condition:
        """Return the condition that prompts make."""
        return Condition(*(part.to(device_of(self.network)) for part in self.encoder.embed(prompts)))

    def denoise(self, cond: Condition, settings: Settings, times: Tensor) -> Denoise:
        """Return the model with its condition and all guidance that the settings ask for."""
        options, model = settings.latent, self._model(self.network)
        rule = rule_of(settings, self.schedule, times, len(self.mean) * self.size**2)
        if options.weak:
            guided = guide.autoguidance(bind(model, cond), self._weak(cond, options), rule, interval=options.interval)
        else:
            check_branches(settings, self.origin.caption_dropout)
            guided = guide.classifier_free(model, cond, self._null(cond, options), rule, interval=options.interval)
        if options.classifier:
            guided = self._classified(guided, cond, options)
        if options.threshold is not None:
            guided = guide.thresholded(guided, self.schedule, limit=options.threshold)
        return guided

    def _weak(self, cond: Condition, options: LatentOptions) -> Denoise:
        """Return the weaker model, whose prediction is its own."""
        name = self._guide(options.weak, "latent")
        network, prediction = load_latent(self.run, name), origin_of(self.run.recipe, name).prediction
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

    def _model(self, network: TextConditioned) -> Model[Condition]:
        return as_model(network, self.schedule, self.origin.prediction)

    def _null(self, cond: Condition, options: LatentOptions) -> Condition:
        if options.negative:
            return self.embed([options.negative] * len(cond.mask))
        return Condition(*self.network.null_condition(len(cond.mask))[:3])


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


def rule_of(settings: Settings, schedule: Schedule, times: Tensor, numbers: int) -> float | guide.Rule:
    """Return the guidance rule that the settings name for items of so many numbers; plain guidance is its scale."""
    scale = settings.guidance
    match settings.latent.rule:
        case "plain":
            return scale
        case "rescaled":
            return guide.rescaled(schedule, scale)
        case "projected":  # the paper's threshold, for as many numbers as an item has here
            return guide.projected(schedule, scale, threshold=15 * math.sqrt(numbers / 65536))
        case "zero_star":  # the paper's share of steps that stand still, at least one
            still = times[max(1, round(0.04 * settings.steps))].item()
            return guide.zero_star(schedule, scale, zero_above=max(still, 1e-9))
        case _:
            assert_never(settings.latent.rule)


def check_branches(settings: Settings, caption_dropout: float) -> None:
    """Refuse guidance away from a condition that means nothing to the model."""
    if settings.guidance == 1 and settings.latent.negative:
        raise PalimpsestError(
            f"a negative prompt ({settings.latent.negative!r:.60}) does nothing at guidance 1: give more guidance, "
            "such as 3; a distilled student has no second branch, draw with its teacher instead"
        )
    if settings.guidance != 1 and caption_dropout == 0 and not settings.latent.negative:
        raise PalimpsestError(
            f"guidance {settings.guidance:g} needs an unconditional branch, but the model was trained with "
            "caption_dropout = 0: use guidance 1, a negative prompt, or a weaker model (latent.weak)"
        )


def origin_of(recipe: Recipe, name: str) -> LatentStage:
    """Return the latent stage that `name` is, or that the teachers of the student `name` go back to."""
    stage = recipe.stage[name]
    while isinstance(stage, DistillStage):
        stage = recipe.stage[teacher_of(recipe, name)]
        name = teacher_of(recipe, name)
    if not isinstance(stage, LatentStage):
        raise PalimpsestError(f"stage {name!r} is of kind {stage.kind!r}, expected latent or distill")
    return stage


def teacher_of(recipe: Recipe, name: str) -> str:
    """Return the stage that the student `name` learns from: the first model in its needs."""
    found = [need for need in recipe.stage[name].needs if recipe.stage[need].kind in ("latent", "distill")]
    if not found:
        raise PalimpsestError(f"stage.{name} has no teacher: name a stage of kind latent or distill in its `needs`")
    return found[0]


def grid_of(settings: Settings, schedule: Schedule, shift: float) -> Tensor:
    """Return the time grid that the settings name, with the model's resolution shift."""
    steps, start = settings.steps, settings.latent.start
    match settings.latent.grid:
        case "uniform":
            return grid.shift(grid.uniform(steps, start), shift)
        case "levels":
            return grid.discrete(steps, start=None if start == 1 else round(1000 * start))
        case "karras":
            return grid.karras(schedule, steps)
        case "log_snr":
            return grid.even_log_snr(schedule, steps)
        case _:
            assert_never(settings.latent.grid)


def steps_within(sampler: str, calls: int, langevin_steps: int) -> int:
    """Return the most steps with which a sampler asks the network at most `calls` times, at least 1."""
    match sampler:
        case "heun" | "edm_stochastic" | "predictor_corrector":
            return max(1, (calls + 1) // 2)  # 2 N - 1
        case "midpoint":
            return max(1, calls // 2)
        case "rk4":
            return max(1, (calls + 2) // 4)  # 4 N - 2
        case "annealed_langevin":
            return max(1, (calls - 1) // langevin_steps)
        case _:
            return calls


def run_sampler(
    settings: Settings,
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Run the sampler that the settings name."""
    match settings.sampler:
        case "euler":
            return sample.euler(denoise, schedule, x, times)
        case "heun":
            return sample.heun(denoise, schedule, x, times)
        case "midpoint":
            return sample.midpoint(denoise, schedule, x, times)
        case "rk4":
            return sample.rk4(denoise, schedule, x, times)
        case "dormand_prince":
            start, tolerance = times[0].item(), settings.latent.tolerance
            return sample.dormand_prince(denoise, schedule, x, start=start, tolerance=tolerance)
        case "ddim":
            return sample.ddim(denoise, schedule, x, times)
        case "dpmpp_2m":
            return sample.dpmpp_2m(denoise, schedule, x, times)
        case "dpmpp_3m":
            return sample.dpmpp_3m(denoise, schedule, x, times)
        case "unipc":
            return sample.unipc(denoise, schedule, x, times)
        case "ancestral":
            return sample.ancestral(denoise, schedule, x, times, generator=generators)
        case "ancestral_large":
            return sample.ancestral(denoise, schedule, x, times, generator=generators, variance="large")
        case "dpmpp_2m_sde":
            return sample.dpmpp_2m_sde(denoise, schedule, x, times, generator=generators)
        case "edm_stochastic":
            return sample.edm_stochastic(denoise, schedule, x, times, generator=generators)
        case "euler_maruyama":
            return sample.euler_maruyama(denoise, schedule, x, times, generator=generators)
        case "predictor_corrector":
            return sample.predictor_corrector(denoise, schedule, x, times, generator=generators)
        case "annealed_langevin":
            per_level = settings.latent.langevin_steps
            return sample.annealed_langevin(
                denoise, schedule, x, times, generator=generators, steps_per_level=per_level
            )
        case "consistency":
            return sample.consistency(denoise, schedule, x, times, generator=generators)
        case other:
            known = ", ".join(LATENT_SAMPLERS)
            raise PalimpsestError(f"a latent model samples with one of {known}, not {other!r}")
