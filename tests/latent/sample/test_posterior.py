"""DDIM and the ancestral sampler against diffusers, step by step."""

import math
from functools import partial

import pytest
import torch

from latent.grid import discrete, uniform
from latent.predict import as_model, bind
from latent.sample import ancestral, ddim
from latent.schedule import VP, Cosine
from tests.latent.oracle import exact, generator, randn, raw_network


def diffusers_path(kind, prediction, schedule, total=100, steps=20, **settings):
    """The trajectory of a diffusers scheduler that has the alphas of our schedule at k / total."""
    diffusers = pytest.importorskip("diffusers")
    names = {"eps": "epsilon", "v": "v_prediction", "x": "sample"}
    scheduler = getattr(diffusers, kind)(
        num_train_timesteps=total, clip_sample=False, timestep_spacing="trailing", prediction_type=names[prediction]
    )
    scheduler.alphas_cumprod = schedule.alpha(torch.arange(1, total + 1, dtype=torch.float64) / total) ** 2
    scheduler.set_timesteps(steps)
    x = randn(4, 3, 2)
    for k in scheduler.timesteps:
        t = (k.double() + 1) / total
        x = scheduler.step(raw_network(x, t, ()), k, x, **settings).prev_sample
    return x


def our_path(sampler, prediction, schedule, total=100, steps=20):
    denoise = bind(as_model(raw_network, schedule, prediction), ())
    return sampler(denoise, schedule, randn(4, 3, 2), discrete(steps, total, start=total))


DISCRETE = [VP(), Cosine(offset=0.008)]


def possible(prediction, schedule):
    return prediction != "eps" or schedule.kind == "vp"


PAIRS = [(p, s) for p in ("eps", "v", "x") for s in DISCRETE if possible(p, s)]
every_pair = pytest.mark.parametrize(("prediction", "schedule"), PAIRS, ids=lambda value: str(value))


@every_pair
def test_ancestral_takes_the_steps_of_diffusers_ddpm(prediction, schedule):
    expected = diffusers_path("DDPMScheduler", prediction, schedule, generator=generator(3))
    found = our_path(partial(ancestral, generator=generator(3)), prediction, schedule)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@every_pair
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_takes_the_steps_of_diffusers_ddim(prediction, schedule, eta):
    expected = diffusers_path("DDIMScheduler", prediction, schedule, eta=eta, generator=generator(3))
    found = our_path(partial(ddim, eta=eta, generator=generator(3)), prediction, schedule)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_an_impossible_eta_is_refused(eta):
    with pytest.raises(ValueError, match="0 <= eta <= 1"):
        ddim(exact(VP()), VP(), randn(2, 3), uniform(3), eta=eta, generator=generator())


def test_noisy_ddim_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="generator"):
        ddim(exact(VP()), VP(), randn(2, 3), uniform(3), eta=0.5)
