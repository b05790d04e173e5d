"""Multistep solvers against diffusers, step by step."""

import pytest
import torch

from latent.predict import as_model, bind
from latent.sample import dpmpp_2m
from latent.schedule import Flow
from tests.latent.oracle import randn, raw_network


def test_dpmpp_2m_takes_the_steps_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    schedule, steps = Flow(), 12
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, lower_order_final=False, flow_shift=1.0
    )
    scheduler.set_timesteps(steps)
    times = scheduler.sigmas.double()
    x = randn(4, 3)
    denoise = bind(as_model(raw_network, schedule, "velocity"), ())
    found = dpmpp_2m(denoise, schedule, x, times)
    for k, t in zip(scheduler.timesteps, times, strict=False):
        x = scheduler.step(raw_network(x, t, ()), k, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)
