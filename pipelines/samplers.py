"""From the settings of sampling to the functions of `latent`: grids, guidance rules and samplers by their names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import assert_never

import torch
from torch import Tensor

from latent import grid, guide, sample
from latent.predict import Denoise
from latent.schedule import DDPM, Schedule
from pipelines.errors import PalimpsestError
from pipelines.sampling_options import LATENT_SAMPLERS, SIGNAL_SAMPLERS, Settings
from pipelines.stage_config import AnyStage
from pipelines.stage_two_config import DenoisingStage, DistillStage


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
        case "zero_star":  # the paper's share of steps that stand still, none of few
            still = round(0.04 * settings.steps)
            return guide.zero_star(schedule, scale, zero_above=times[still].item() if still else 1.0)
        case _:
            assert_never(settings.latent.rule)


def refusal(settings: Settings, model: str, stage: AnyStage, path: DenoisingStage, times: Tensor) -> str:
    """Return why `model` cannot be sampled so, or nothing where it can.

    stage: its own; path: the stage whose path, and whose unconditional branch, it has; times: see `grid_of`.
    """
    scale, negative, weak = settings.guidance, settings.latent.negative, settings.latent.weak
    if isinstance(stage, DistillStage) and (negative or (scale != 1 and not weak)):
        return (
            f"{model} is a student with its teacher's guidance inside and no second branch: use guidance 1 without a "
            "negative prompt, or draw with its teacher"
        )
    if scale == 1 and negative:
        return (
            f"a negative prompt ({negative!r:.60}) does nothing at guidance 1: give more guidance, such as 3, or leave "
            "it out"
        )
    if scale != 1 and path.caption_dropout == 0 and not negative and not weak:
        return (
            f"guidance {scale:g} needs an unconditional branch, but {model} was trained with caption_dropout = 0: use "
            "guidance 1, a negative prompt, or a weaker model (latent.weak)"
        )
    if settings.sampler in SIGNAL_SAMPLERS and path.schedule.alpha(times[0]) == 0:
        return (
            f"{settings.sampler} needs some signal, but at t = {times[0].item():g} {path.schedule} is noise alone: "
            "start a little below, with start = 0.999 under `latent` in a recipe or --start 0.999"
        )
    return ""


def idle(settings: Settings) -> str:
    """Return why a weaker model that is named guides nothing, or nothing where it guides."""
    if settings.latent.weak and settings.guidance == 1:
        return f"{settings.latent.weak} as weak does nothing at guidance 1: give more guidance, such as 2"
    return ""


def grid_of(settings: Settings, schedule: Schedule, shift: float) -> Tensor:
    """Return the time grid that the settings name; `shift`, the model's resolution shift, moves the uniform one.

    The others have places of their own: by log-SNR, or on the levels of the training.
    """
    steps, start = settings.steps, settings.latent.start
    match settings.latent.grid:
        case "uniform":
            return grid.shift(grid.uniform(steps, start), shift)
        case "levels":
            levels = schedule.levels if isinstance(schedule, DDPM) else 1000
            return grid.discrete(steps, levels, None if start == 1 else round(levels * start))
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


def calls_of(sampler: str, steps: int, langevin_steps: int) -> int | None:
    """Return how often a sampler asks the network in so many steps; None where it chooses its own steps."""
    match sampler:
        case "heun" | "edm_stochastic" | "predictor_corrector":
            return 2 * steps - 1
        case "midpoint":
            return 2 * steps
        case "rk4":
            return 4 * steps - 2
        case "annealed_langevin":
            return langevin_steps * steps + 1
        case "dormand_prince":
            return None
        case _:
            return steps


def run_sampler(
    settings: Settings,
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Run the sampler that the settings name. Raises PalimpsestError for an unknown one."""
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
