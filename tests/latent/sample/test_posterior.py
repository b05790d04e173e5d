"""DDIM and the ancestral sampler against diffusers, step by step."""

import math
from functools import partial

import pytest
import torch

from latent.grid import discrete, uniform
from latent.predict import Estimate, as_model, bind
from latent.sample import ancestral, ddim
from latent.schedule import VP, Cosine
from tests.latent.oracle import MEAN, SCHEDULES, double, exact, generator, name, randn, raw_network


def diffusers_path(kind, prediction, schedule, total=100, steps=20, configured=None, **settings):
    """The trajectory of a diffusers scheduler that has the alphas of our schedule at k / total."""
    diffusers = pytest.importorskip("diffusers")
    names = {"eps": "epsilon", "v": "v_prediction", "x": "sample"}
    scheduler = getattr(diffusers, kind)(
        num_train_timesteps=total,
        clip_sample=False,
        timestep_spacing="trailing",
        prediction_type=names[prediction],
        **(configured or {}),
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
VARIANCES = ["small", "large"]
every_variance = pytest.mark.parametrize("variance", VARIANCES)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


def possible(prediction, schedule):
    return prediction != "eps" or schedule.kind == "vp"


PAIRS = [(p, s) for p in ("eps", "v", "x") for s in DISCRETE if possible(p, s)]
every_pair = pytest.mark.parametrize(("prediction", "schedule"), PAIRS, ids=lambda value: str(value))


@every_pair
@pytest.mark.parametrize(("variance", "steps"), [("small", 20), ("small", 100), ("large", 100)])
def test_ancestral_takes_the_steps_of_diffusers_ddpm(prediction, schedule, variance, steps):
    """With fixed_large theirs adds noise to the result too, unless the last step is from level 1: hence every level."""
    settings = {"configured": {"variance_type": f"fixed_{variance}"}, "generator": generator(3), "steps": steps}
    expected = diffusers_path("DDPMScheduler", prediction, schedule, **settings)
    found = our_path(partial(ancestral, generator=generator(3), variance=variance), prediction, schedule, steps=steps)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def gaussian(schedule, std):
    """E[x | x_t] and E[eps | x_t] for data N(MEAN, std^2)."""

    def denoise(x_t, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        off = (x_t - alpha * MEAN) / ((alpha * std) ** 2 + sigma**2)
        return Estimate(x=MEAN + alpha * std**2 * off, eps=sigma * off)

    return denoise


@every_schedule
@pytest.mark.parametrize(("variance", "std"), [("small", 0.0), ("large", 1.0)])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_each_variance_is_exact_for_its_own_data_at_any_number_of_steps(schedule, variance, std, steps):
    times = uniform(steps, start=0.99, stop=0.2)
    total, last = (torch.hypot(schedule.alpha(t) * std, schedule.sigma(t)) for t in (times[0], times[-1]))
    noise = torch.special.ndtri((torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000)
    x = schedule.alpha(times[0]) * MEAN + total * noise
    samples = ancestral(gaussian(schedule, std), schedule, x, times, generator=generator(1), variance=variance)
    off = (samples - schedule.alpha(times[-1]) * MEAN) / last
    assert off.mean().item() == pytest.approx(0, abs=0.02)
    assert off.std().item() == pytest.approx(1, abs=0.012)


@every_schedule
@every_variance
def test_one_ancestral_step_has_the_variance_of_the_posterior(schedule, variance):
    """Var(x_s | x_t) by conditioning one Gaussian on the other: Var x_s - Cov^2 / Var x_t."""
    std = 1.0 if variance == "large" else 0.0
    t, s = times = double(0.8, 0.45)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ((schedule.alpha(time), schedule.sigma(time)) for time in (t, s))
    x_t_variance, x_s_variance = (alpha_t * std) ** 2 + sigma_t**2, (alpha_s * std) ** 2 + sigma_s**2
    expected = x_s_variance - (alpha_t / alpha_s * x_s_variance) ** 2 / x_t_variance
    x = torch.full((3, 7), 0.3, dtype=torch.float64)
    z = torch.randn(3, 7, dtype=torch.float64, generator=generator(6))
    drawn = ancestral(gaussian(schedule, std), schedule, x, times, generator=generator(6), variance=variance)
    mean = alpha_s * MEAN + alpha_t / alpha_s * x_s_variance / x_t_variance * (x - alpha_t * MEAN)
    torch.testing.assert_close(drawn, mean + expected.sqrt() * z, rtol=1e-9, atol=1e-9)


@every_variance
def test_the_last_ancestral_step_to_zero_adds_no_noise(variance):
    sampler = partial(ancestral, generator=generator(), variance=variance)
    found = sampler(lambda x_t, t: Estimate(torch.full_like(x_t, 0.7), x_t), VP(), randn(3, 2), uniform(4))
    torch.testing.assert_close(found, torch.full_like(found, 0.7), rtol=0, atol=1e-15)


@every_schedule
def test_both_variances_run_the_whole_path_without_nan(schedule):
    for variance in VARIANCES:
        sampler = partial(ancestral, generator=generator(), variance=variance)
        assert sampler(exact(schedule), schedule, randn(3, 2), uniform(7)).isfinite().all()


def test_an_unknown_variance_is_refused():
    with pytest.raises(ValueError, match="'learned', expected 'small' or 'large'"):
        ancestral(exact(VP()), VP(), randn(2, 3), uniform(3), generator=generator(), variance="learned")


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
