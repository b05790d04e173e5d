"""How probable held-out latents are to a latent model that knows their captions, in bits per dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eval.interval import Interval, mean_interval
from latent.grid import at_log_snr
from latent.likelihood import bits_per_dim, log_density, variational_bound
from latent.predict import as_model, bind
from latent.schedule import Schedule
from pipelines.hardware import device_of, step_generator, to_device
from pipelines.latent_sampler import LatentSampler
from pipelines.latent_stage import CachedLatents, condition
from pipelines.runs import Run
from pipelines.stage_config import LatentStage
from pipelines.task import HELD_OUT

START = 1e-3
"""The time of the ODE that stands for the data: latents are draws of a posterior, and hold noise of their own."""
TOLERANCE = 1e-3


def latent_bits(run: Run, model: str, count: int) -> dict[str, Interval]:
    """Return bits per dimension of `count` held-out latents: along the probability-flow ODE, and the bound.

    The latents are normalised, so N(0, I) costs 2.05 bits. The density is that of the sampler without guidance. The
    bound is on the reverse SDE that ends at `last_noise`, with as much noise as latents have of their own. Below that
    there is nothing to learn, and training times like `logit_normal` hardly go there; but every unit of log-SNR costs
    half the network's squared error in eps, where the ODE asks for its divergence alone.
    """
    stage = run.recipe.stage[model]
    assert isinstance(stage, LatentStage)
    data, sampler = CachedLatents(run, model, stage.training), LatentSampler.load(run, model)
    device, generator = device_of(sampler.network), step_generator(0, 0, 0)
    found: dict[str, list[Tensor]] = {"ode": [], "bound": []}
    for chosen in data.cache.batches(data.cache.held_out, min(count, HELD_OUT)):
        batch = to_device(data.with_text(chosen), device)
        z = data.draw(batch["latent"], generator)
        denoise = bind(as_model(sampler.network, stage.schedule, stage.prediction), condition(batch, z))
        dims = math.prod(z.shape[1:])
        ode = log_density(denoise, stage.schedule, z, generator=generator, start=START, tolerance=TOLERANCE).log_p
        start = last_noise(stage.schedule, data.spread(batch["latent"]))
        with torch.no_grad():
            bound = variational_bound(denoise, stage.schedule, z, generator=generator, start=start, samples=64).nats
        found["ode"].append(bits_per_dim(ode, dims))
        found["bound"].append(bits_per_dim(-bound, dims))
    return {name: mean_interval(torch.cat(bits).double().cpu().numpy()) for name, bits in found.items()}


def last_noise(schedule: Schedule, spread: float) -> float:
    """Return the time at which sigma / alpha is the posterior's standard deviation, from START to a half."""
    t = at_log_snr(schedule, torch.tensor(-2 * math.log(max(spread, 1e-9)), dtype=torch.float64))
    return min(max(t.item(), START), 0.5)
