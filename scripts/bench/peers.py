"""The samplers that we and diffusers both have, as loops over one network. A new pair is one line in PEERS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
from torch import Tensor

from latent.condition import Condition
from latent.grid import discrete, karras, uniform
from latent.guide import classifier_free
from latent.predict import Prediction, as_model
from latent.sample import ancestral, ddim, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, euler, heun, unipc
from latent.schedule import DDPM, EDM, VP, Flow, Schedule

SCALE = 3.0


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A sampler of ours on a path with a prediction, and the scheduler of diffusers that does the same work."""

    sampler: Callable[..., Tensor]
    schedule: Schedule
    prediction: Prediction
    grid: Callable[[int], Tensor]
    scheduler: Callable[[], Any]
    noisy: bool = False
    second: bool = False  # two calls per step, one less at the end

    def calls(self, steps: int) -> int:
        """How often either asks the network."""
        return 2 * steps - 1 if self.second else steps


def _open(steps: int) -> Tensor:
    return uniform(steps, start=0.999)  # eps cannot be read at alpha = 0, and diffusers starts at level 999 as well


_vp: Mapping[str, Any] = {"schedule": VP(), "prediction": "eps", "grid": _open}
_edm: Mapping[str, Any] = {"schedule": EDM(), "prediction": "edm", "grid": partial(karras, EDM())}
_ddpm: Mapping[str, Any] = {"schedule": DDPM(), "prediction": "eps", "grid": discrete}
_solver = diffusers.DPMSolverMultistepScheduler

# Networks of these pairs predict alike; DDPM's clipping is off, since ours is a wrapper (`latent.guide.thresholded`).
PEERS: Mapping[str, Peer] = {
    "Euler, flow": Peer(
        sampler=euler,
        schedule=Flow(),
        prediction="velocity",
        grid=uniform,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler,
    ),
    "Euler": Peer(sampler=euler, scheduler=diffusers.EulerDiscreteScheduler, **_edm),
    "Euler, EDM": Peer(sampler=euler, scheduler=diffusers.EDMEulerScheduler, **_edm),
    "Heun": Peer(sampler=heun, scheduler=diffusers.HeunDiscreteScheduler, second=True, **_edm),
    "DDIM": Peer(sampler=ddim, scheduler=partial(diffusers.DDIMScheduler, clip_sample=False), **_ddpm),
    "DDPM": Peer(sampler=ancestral, scheduler=partial(diffusers.DDPMScheduler, clip_sample=False), noisy=True, **_ddpm),
    "DPM-Solver++ 2M": Peer(sampler=dpmpp_2m, scheduler=_solver, **_vp),
    "DPM-Solver++ 3M": Peer(sampler=dpmpp_3m, scheduler=partial(_solver, solver_order=3), **_vp),
    "DPM-Solver++ 2M SDE": Peer(
        sampler=dpmpp_2m_sde, scheduler=partial(_solver, algorithm_type="sde-dpmsolver++"), noisy=True, **_vp
    ),
    "UniPC": Peer(sampler=unipc, scheduler=diffusers.UniPCMultistepScheduler, **_vp),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is sampled with guidance: a network (x_t, t (B,), cond), its conditions, noise, and how many steps."""

    network: Callable[..., Tensor]
    cond: Condition
    null: Condition
    noise: Tensor
    steps: int
    generator: torch.Generator

    @property
    def both(self) -> Condition:
        """The conditions of the batch that the network sees."""
        return Condition(*(torch.cat(pair) for pair in zip(self.null, self.cond, strict=True)))

    @property
    def seen(self) -> Tensor:
        """A batch as large as the network sees."""
        return torch.cat([self.noise] * 2)


def bare(work: Work, calls: int) -> Callable[[], None]:
    """Calls of the network alone."""
    x, cond = work.seen, work.both
    t = torch.full((len(x),), 0.5, device=x.device)

    @torch.no_grad()
    def run() -> None:
        for _ in range(calls):
            work.network(x, t, cond)

    return run


def ours(peer: Peer, work: Work) -> Callable[[], Tensor]:
    """A function of latent.sample, its grid being made."""
    model, times = as_model(work.network, peer.schedule, peer.prediction), peer.grid(work.steps)
    denoise = classifier_free(model, work.cond, work.null, SCALE)
    x = peer.schedule.sigma(times[0]).to(work.noise) * work.noise
    settings = {"generator": work.generator} if peer.noisy else {}
    return partial(peer.sampler, denoise, peer.schedule, x, times, **settings)


def theirs(peer: Peer, work: Work) -> Callable[[], Tensor]:
    """The loop of the pipelines of diffusers, without callbacks and progress bar, its grid being made."""
    scheduler, cond = peer.scheduler(), work.both
    scheduler.set_timesteps(work.steps)
    scales = hasattr(scheduler, "scale_model_input")
    settings = {"generator": work.generator} if peer.noisy else {}

    @torch.no_grad()
    def run() -> Tensor:
        x = work.noise * getattr(scheduler, "init_noise_sigma", 1.0)
        for t in scheduler.timesteps.to(x.device):
            seen = torch.cat([x] * 2)
            seen = scheduler.scale_model_input(seen, t) if scales else seen
            without, given = work.network(seen, t.expand(len(seen)), cond).chunk(2)
            x = scheduler.step(without + SCALE * (given - without), t, x, return_dict=False, **settings)[0]
        return x

    return run
