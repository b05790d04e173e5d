"""Data N(MEAN, STD^2) and a classifier p(y | x) = N(y; SLOPE x, SPREAD^2), so that the posterior is normal too."""

import math

import pytest
import torch

from latent.grid import karras, uniform
from latent.guide import classifier, classifier_free
from latent.predict import as_model, corrupt
from latent.sample import euler, heun
from latent.schedule import VP, Flow
from tests.latent.guide.pairs import COND, NULL, gaussian, network
from tests.latent.oracle import MEAN, PURE, SCHEDULES, STD, double, exact, marginal, name, quantiles, randn

SLOPE, SPREAD, Y = 0.8, 0.4, 2.0
PRECISION = 1 / STD**2 + (SLOPE / SPREAD) ** 2
POSTERIOR_STD = PRECISION**-0.5
POSTERIOR_MEAN = (MEAN / STD**2 + SLOPE * Y / SPREAD**2) / PRECISION
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


def log_likelihood(schedule):
    """log p(y | x_t): a normal around SLOPE E[x | x_t] with variance SLOPE^2 Var[x | x_t] + SPREAD^2."""

    def log_prob(x_t, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        left = (STD * sigma) ** 2 / ((alpha * STD) ** 2 + sigma**2)  # Var[x | x_t]
        normal = torch.distributions.Normal(SLOPE * exact(schedule)(x_t, t).x, (SLOPE**2 * left + SPREAD**2).sqrt())
        return normal.log_prob(torch.full_like(x_t, Y)).flatten(1).sum(1)

    return log_prob


def guided(schedule, scale=1.0):
    return classifier(exact(schedule), schedule, log_likelihood(schedule), scale)


@pytest.mark.parametrize("t", double(0.99, 0.5, 0.05))
@every_schedule
def test_scale_one_is_the_denoiser_of_the_posterior(schedule, t):
    x_t = corrupt(schedule, MEAN + STD * randn(5, 3), randn(5, 3, seed=1), t)
    found = guided(schedule)(x_t, t)
    torch.testing.assert_close(found, gaussian(schedule, POSTERIOR_MEAN, POSTERIOR_STD)(x_t, t))
    torch.testing.assert_close(corrupt(schedule, found.x, found.eps, t), x_t)


def posterior_marginal(schedule, t):
    """Mean and standard deviation of x_t for data from the posterior."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return alpha * POSTERIOR_MEAN, torch.sqrt((alpha * POSTERIOR_STD) ** 2 + sigma**2)


@pytest.mark.parametrize("sampler", [euler, heun], ids=lambda f: f.__name__)
@every_schedule
def test_samples_have_the_mean_and_deviation_of_the_posterior(sampler, schedule):
    slow = sampler is euler and schedule.kind == "ve"  # sigma is convex in t there
    times = karras(schedule, 2048 if slow else 256) if schedule.kind in ("ve", "edm") else uniform(256, 0.999)
    (mean, std), (start, width) = marginal(schedule, times[0]), posterior_marginal(schedule, times[0])
    x = start + width * (quantiles(schedule, times[0])[:, None] - mean) / std
    samples = sampler(guided(schedule), schedule, x, times)
    mean, std = posterior_marginal(schedule, times[-1])
    assert samples.mean().item() == pytest.approx(mean.item(), abs=0.01)
    assert samples.std().item() == pytest.approx(std.item(), abs=0.02 if sampler is euler else 0.005)


def test_a_larger_scale_sharpens_the_classifier():
    """p(y | x)^w is the likelihood of spread / sqrt(w), known here where sigma is small."""
    t = double(1e-3)[0]
    x_t = MEAN + STD * randn(5, 3)
    sharper = 1 / STD**2 + 3 * (SLOPE / SPREAD) ** 2
    mean = (MEAN / STD**2 + 3 * SLOPE * Y / SPREAD**2) / sharper
    torch.testing.assert_close(
        guided(Flow(), 3.0)(x_t, t).eps, gaussian(Flow(), mean, sharper**-0.5)(x_t, t).eps, rtol=1e-3, atol=1e-3
    )


def test_samples_in_single_precision_keep_their_digits_down_to_the_last_step():
    for schedule in (Flow(), VP()):
        times = torch.cat([uniform(20, 0.99, 0.01), double(1e-4, 0.0)])
        single, double_ = (
            heun(guided(schedule), schedule, randn(4, 8).to(dtype), times) for dtype in (torch.float32, torch.float64)
        )
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double_, rtol=1e-4, atol=1e-4)


def test_the_gradient_is_taken_where_the_sampler_builds_no_graph():
    with torch.no_grad():
        found = guided(VP())(randn(3, 4), double(0.5)[0])
    assert not found.x.requires_grad
    assert not found.eps.requires_grad


def test_scale_zero_never_asks_the_classifier():
    def log_prob(x_t, t):
        raise AssertionError("the classifier was asked")

    denoise, x_t, t = exact(VP()), randn(3, 4), double(0.5)[0]
    found = classifier(denoise, VP(), log_prob, 0.0)(x_t, t)
    torch.testing.assert_close(found, denoise(x_t, t), rtol=0, atol=0)


def test_a_classifier_guides_a_guided_model_as_well():
    """Two likelihoods add up: their gradients do not depend on the model that they guide."""
    plain = classifier_free(as_model(network, VP(), "v"), COND, NULL, 3.0)
    x_t, t = randn(3, 4), double(0.5)[0]
    log_prob = log_likelihood(VP())
    twice = classifier(classifier(plain, VP(), log_prob, 0.5), VP(), log_prob, 1.5)
    torch.testing.assert_close(twice(x_t, t), classifier(plain, VP(), log_prob, 2.0)(x_t, t))


@pytest.mark.parametrize("schedule", PURE, ids=name)
def test_pure_noise_is_refused_with_a_remedy(schedule):
    with pytest.raises(ValueError, match=r"t = 1.0 where .* has alpha = 0, expected alpha > 0; start sampling below"):
        guided(schedule)(randn(3, 4), double(1.0)[0])
    assert math.isfinite(guided(schedule)(randn(3, 4), double(0.999)[0]).x.sum())
