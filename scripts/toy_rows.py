"""The rows of the page of toys: paths, samplers and guidance rules. A new entry is one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from latent import sample
from latent.grid import discrete, karras, uniform
from latent.guide import (
    autoguidance,
    classifier,
    classifier_free,
    extrapolate,
    projected,
    rescaled,
    thresholded,
    zero_star,
)
from latent.loss import Objective, Weighting
from latent.predict import Counted, Denoise, Estimate, Model, Prediction, bind
from latent.schedule import DDPM, EDM, VE, VP, Cosine, Flow, Schedule, SubVP
from latent.times import LogNormalTimes, TimeLaw, UniformTimes


@dataclass(frozen=True, kw_only=True)
class Path2D:
    """A path with what is predicted on it, the times to train at, and a grid to sample on, by its number of steps."""

    objective: Objective
    times: TimeLaw = field(default_factory=UniformTimes)
    grid: Callable[[int], Tensor] = uniform


def _path(schedule: Schedule, prediction: Prediction, weighting: Weighting = "none") -> Path2D:
    return Path2D(objective=Objective(schedule=schedule, prediction=prediction, weighting=weighting))


def _scaled(schedule: VE | EDM) -> Path2D:
    """Paths of large sigma: inputs, outputs and times in the way of EDM."""
    objective = Objective(schedule=schedule, prediction="edm")
    return Path2D(objective=objective, times=LogNormalTimes(), grid=partial(karras, schedule))


PATHS: Mapping[str, Path2D] = {
    "Flow": _path(Flow(), "velocity"),
    "Flow, sigma_min 0.02": _path(Flow(sigma_min=0.02), "velocity"),
    "VP": _path(VP(), "score", "simple"),
    "VP, zero terminal": _path(VP(zero_terminal=True), "v"),
    "SubVP": _path(SubVP(), "x", "min_snr"),
    "Cosine": _path(Cosine(), "v"),
    "DDPM": Path2D(objective=Objective(schedule=DDPM(), prediction="eps"), grid=discrete),
    "VE": _scaled(VE()),
    "EDM": _scaled(EDM()),
}


class Sampled(NamedTuple):
    """Points (n, 2), and how many evaluations each took."""

    points: Tensor
    calls: int


Run = Callable[[Denoise, Path2D, int, int], Sampled | None]
"""(denoise, path, points, evaluations) -> Sampled with at most so many evaluations; None where they are too few."""


class SamplerRow(NamedTuple):
    """How to run a sampler, and on the network of which path."""

    run: Run
    path: str = "Flow"


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own for every draw, so that no panel depends on another."""
    return torch.Generator().manual_seed(seed)


def start(schedule: Schedule, times: Tensor, points: int) -> Tensor:
    """Noise at times[0], (points, 2); the same noise for every sampler."""
    return schedule.sigma(times[0]).float() * torch.randn(points, 2, generator=seeded())


def _stepping(sampler: Callable[..., Tensor], steps: Callable[[int], int] = int, *, cloud: bool = False) -> Run:
    """Run a sampler on a grid. steps: how many steps a number of evaluations pays for.

    cloud: all points are one item, for a sampler that measures items: the length of two numbers tells it nothing.
    """

    def run(denoise: Denoise, path: Path2D, points: int, evaluations: int) -> Sampled | None:
        if steps(evaluations) < 1:
            return None
        schedule, times = path.objective.schedule, path.grid(steps(evaluations))
        counted, x = Counted(denoise), start(schedule, times, points)
        x = sampler(counted, schedule, x[None] if cloud else x, times)
        return Sampled(x.reshape(points, 2), counted.calls)

    return run


def _noisy(sampler: Callable[..., Tensor], steps: Callable[[int], int] = int, *, cloud: bool = False) -> Run:
    """The same for a sampler that adds noise."""

    def with_noise(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Tensor:
        return sampler(denoise, schedule, x, times, generator=seeded(1))

    return _stepping(with_noise, steps, cloud=cloud)


def _adaptive(denoise: Denoise, path: Path2D, points: int, evaluations: int) -> Sampled | None:
    """Dormand-Prince at the smallest tolerance, by factors of 3, that is paid for; all points are one item."""
    schedule = path.objective.schedule
    found = None
    for exponent in range(12):
        counted, x = Counted(denoise), start(schedule, torch.ones(1), points)
        x = sample.dormand_prince(counted, schedule, x[None], tolerance=3.0**-exponent)
        if counted.calls > evaluations:
            break
        found = Sampled(x.reshape(points, 2), counted.calls)
    return found


_LANGEVIN = partial(sample.annealed_langevin, steps_per_level=3, step=1.0)
SAMPLERS: Mapping[str, SamplerRow] = {
    "euler": SamplerRow(_stepping(sample.euler)),
    "heun": SamplerRow(_stepping(sample.heun, lambda n: (n + 1) // 2)),
    "midpoint": SamplerRow(_stepping(sample.midpoint, lambda n: n // 2)),
    "rk4": SamplerRow(_stepping(sample.rk4, lambda n: (n + 2) // 4)),
    "dormand_prince": SamplerRow(_adaptive),
    "ddim": SamplerRow(_stepping(sample.ddim)),
    "ddim, eta 0.5": SamplerRow(_noisy(partial(sample.ddim, eta=0.5))),
    "ancestral, small variance": SamplerRow(_noisy(sample.ancestral)),
    "ancestral, large variance": SamplerRow(_noisy(partial(sample.ancestral, variance="large"))),
    "dpmpp_2m": SamplerRow(_stepping(sample.dpmpp_2m)),
    "dpmpp_3m": SamplerRow(_stepping(sample.dpmpp_3m)),
    "dpmpp_2m_sde": SamplerRow(_noisy(sample.dpmpp_2m_sde)),
    "unipc, order 2": SamplerRow(_stepping(sample.unipc)),
    "unipc, order 3": SamplerRow(_stepping(partial(sample.unipc, order=3))),
    "euler_maruyama": SamplerRow(_noisy(sample.euler_maruyama), "EDM"),
    "predictor_corrector": SamplerRow(_noisy(sample.predictor_corrector, lambda n: (n + 1) // 2, cloud=True), "EDM"),
    "edm_stochastic": SamplerRow(_noisy(sample.edm_stochastic, lambda n: (n + 1) // 2), "EDM"),
    "consistency": SamplerRow(_noisy(sample.consistency)),
    "annealed_langevin": SamplerRow(_noisy(_LANGEVIN, lambda n: (n - 1) // 3), "EDM"),
}


class Taught(NamedTuple):
    """What guidance starts from: two items, the classes, of n points each."""

    schedule: Schedule
    model: Model[tuple[Tensor]]
    cond: tuple[Tensor]  # ((2, n, 2),), one-hot
    null: tuple[Tensor]  # zeros
    weak: Denoise
    log_prob: Callable[[Tensor, Tensor], Tensor]

    def free(self, scale: float | Callable[..., Estimate], low: float = 0.0, high: float = 1.0) -> Denoise:
        """Classifier-free guidance by a scale or a rule."""
        return classifier_free(self.model, self.cond, self.null, scale, interval=(low, high))


GUIDANCE: Mapping[str, Callable[[Taught, float], Denoise]] = {
    "classifier_free": lambda net, scale: net.free(scale),
    "interval, 0.2 to 0.7": lambda net, scale: net.free(scale, 0.2, 0.7),
    "extrapolate, less with time": lambda net, scale: net.free(
        lambda main, weak, x_t, t: extrapolate(main, weak, 1 + (scale - 1) * t)
    ),
    "rescaled": lambda net, scale: net.free(rescaled(net.schedule, scale)),
    "projected": lambda net, scale: net.free(projected(net.schedule, scale)),
    "zero_star": lambda net, scale: net.free(zero_star(net.schedule, scale)),
    "thresholded": lambda net, scale: thresholded(net.free(scale), net.schedule, percentile=0.98, limit=2.0),
    "autoguidance": lambda net, scale: autoguidance(bind(net.model, net.cond), net.weak, scale),
    "classifier": lambda net, scale: classifier(bind(net.model, net.null), net.schedule, net.log_prob, scale),
}
