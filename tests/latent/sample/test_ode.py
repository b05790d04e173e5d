"""Single-step ODE solvers against diffusers, step by step."""

import pytest
import torch

from latent.grid import karras
from latent.predict import Estimate
from latent.sample import heun
from latent.schedule import EDM
from tests.latent.oracle import randn, raw_network


def test_heun_on_the_edm_path_takes_the_steps_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    schedule, steps = EDM(), 10
    scheduler = diffusers.HeunDiscreteScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()  # the inner ones stand twice, once for each call
    times = karras(schedule, steps, sigma_min=sigmas[-2].item(), sigma_max=sigmas[0].item())

    def denoise(x_t, t):
        eps = raw_network(x_t, schedule.sigma(t), ())
        return Estimate(x_t - schedule.sigma(t) * eps, eps)

    x = sigmas[0] * randn(4, 3)
    found = heun(denoise, schedule, x, times)
    for k, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        x = scheduler.step(raw_network(x, sigma, ()), k, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)
