import math

import pytest
import torch
from diffusers import DDPMScheduler

from latent.grid import uniform
from latent.guide import thresholded
from latent.predict import Estimate, corrupt, estimate
from latent.sample import ddim, heun
from latent.schedule import VP, Flow
from tests.latent.guide.pairs import gaussian
from tests.latent.oracle import SCHEDULES, double, name, randn

SHAPE = (3, 4, 6, 5)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


def fixed(schedule, x, x_t, t):
    """A denoiser that estimates x."""
    return lambda *_: estimate("x", schedule, x_t, x, t)


@pytest.mark.parametrize("limit", [1.0, 2.5])
@pytest.mark.parametrize("percentile", [0.7, 0.995, 1.0])
@pytest.mark.parametrize("size", [0.2, 1.0, 5.0])
def test_thresholding_agrees_with_diffusers(size, percentile, limit):
    """Which knows the limit 1 alone: for others x is given in units of the limit."""
    oracle = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=percentile, sample_max_value=math.inf)
    x = size * randn(*SHAPE) * double(0.1, 1.0, 3.0).reshape(3, 1, 1, 1)
    x_t, t = randn(*SHAPE, seed=1), double(0.5)[0]
    found = thresholded(fixed(Flow(), x, x_t, t), Flow(), percentile=percentile, limit=limit)(x_t, t)
    torch.testing.assert_close(found.x, limit * oracle._threshold_sample(x / limit))


@every_schedule
def test_a_bounded_estimate_stays_on_the_path(schedule):
    x_t, t = randn(*SHAPE, seed=1), double(0.6)[0]
    found = thresholded(fixed(schedule, 3 * randn(*SHAPE), x_t, t), schedule)(x_t, t)
    assert isinstance(found, Estimate)
    assert found.x.abs().max() <= 1
    torch.testing.assert_close(corrupt(schedule, found.x, found.eps, t), x_t)


@every_schedule
def test_an_estimate_within_the_limit_is_left_as_it_is(schedule):
    denoise = gaussian(schedule, 1.5, 0.5)
    x_t, t = randn(*SHAPE), double(0.3)[0]
    torch.testing.assert_close(thresholded(denoise, schedule, limit=1e6)(x_t, t), denoise(x_t, t), rtol=0, atol=0)


@pytest.mark.parametrize("sampler", [heun, ddim], ids=lambda f: f.__name__)
@pytest.mark.parametrize("schedule", [Flow(), VP()], ids=name)
def test_samples_end_within_the_limit_in_single_precision_as_in_double(sampler, schedule):
    """Data around 1.5 with a limit of 1: nearly every step is bounded."""
    denoise = thresholded(gaussian(schedule, 1.5, 0.5), schedule)
    times = torch.cat([uniform(20, 0.999, 0.01), double(1e-4, 0.0)])
    single, double_ = (sampler(denoise, schedule, randn(4, 8).to(d), times) for d in (torch.float32, torch.float64))
    assert single.dtype == torch.float32
    assert single.abs().max() <= 1
    torch.testing.assert_close(single.double(), double_, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("percentile", [0.0, 1.1, 99.5])
def test_an_impossible_percentile_is_refused(percentile):
    with pytest.raises(ValueError, match=f"percentile is {percentile}, expected a share 0 < percentile <= 1"):
        thresholded(gaussian(Flow(), 0.0, 1.0), Flow(), percentile=percentile)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_limit_is_refused(limit):
    with pytest.raises(ValueError, match=f"limit is {limit}, expected 0 < limit < infinity"):
        thresholded(gaussian(Flow(), 0.0, 1.0), Flow(), limit=limit)
