import math

import pytest
import torch
from scipy import special, stats

from latent.loss import Objective, diffusion_loss, sample_times
from latent.predict import Estimate, coefficients, corrupt, target
from latent.schedule import VP, Cosine, Flow, expand
from tests.latent.oracle import PREDICTIONS, SCHEDULES, double, generator, name, randn

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


@pytest.mark.parametrize("low_discrepancy", [False, True])
def test_uniform_times_are_uniform(low_discrepancy):
    t = sample_times("uniform", (20_000,), generator(), low_discrepancy=low_discrepancy)
    assert t.dtype == torch.float64
    assert 0 < t.min() < t.max() < 1
    assert stats.kstest(t.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("low_discrepancy", [False, True])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 1.5)])
def test_logit_normal_times_have_the_moments_of_scipy(mean, std, low_discrepancy):
    t = sample_times("logit_normal", (50_000,), generator(1), mean=mean, std=std, low_discrepancy=low_discrepancy)
    assert stats.kstest(special.logit(t.numpy()), stats.norm(mean, std).cdf).pvalue > 1e-3
    for power in (1, 2):
        expected = stats.norm(mean, std).expect(lambda n, p=power: special.expit(n) ** p)
        assert t.pow(power).mean().item() == pytest.approx(expected, abs=0.005)


def test_low_discrepancy_times_are_evenly_spread_over_the_batch():
    t = sample_times("uniform", (64,), generator(), low_discrepancy=True)
    assert (64 * t).long().sort().values.tolist() == list(range(64))


def test_low_discrepancy_leaves_the_distribution_of_a_single_time():
    source = generator()
    first = torch.cat([sample_times("uniform", (8,), source, low_discrepancy=True)[:1] for _ in range(2_000)])
    assert stats.kstest(first.numpy(), "uniform").pvalue > 1e-3


def test_low_discrepancy_makes_the_batch_mean_steadier():
    def spread(low_discrepancy):
        draws = [
            sample_times("logit_normal", (32,), generator(s), low_discrepancy=low_discrepancy).mean() for s in range(99)
        ]
        return torch.stack(draws).std()

    assert spread(True) < spread(False) / 5


def test_times_of_an_item_with_its_own_generator_do_not_depend_on_the_batch():
    full = sample_times("logit_normal", (5,), [generator(s) for s in range(5)])
    torch.testing.assert_close(full[3:4], sample_times("logit_normal", (1,), [generator(3)]), rtol=0, atol=0)


def test_low_discrepancy_with_one_generator_per_item_is_refused():
    with pytest.raises(ValueError, match="single generator"):
        sample_times("uniform", (2,), [generator(0), generator(1)], low_discrepancy=True)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_a_logit_normal_without_width_is_refused(std):
    with pytest.raises(ValueError, match="std > 0"):
        sample_times("logit_normal", (2,), generator(), std=std)


def network_with_errors(objective, x, eps, x_error):
    """A network whose estimate of x is off by x_error, and of eps by what then follows from x_t."""

    def network(x_t, t, cond):
        ratio = objective.schedule.alpha(t) / objective.schedule.sigma(t)
        found = Estimate(x + x_error, eps - expand(ratio, x) * x_error)
        return target(objective.prediction, objective.schedule, found.x, found.eps, t)

    return network


@every_prediction
@every_schedule
def test_simple_weighting_is_the_error_of_eps_for_every_prediction(prediction, schedule):
    x, eps, error, t = randn(3, 4), randn(3, 4, seed=1), randn(3, 4, seed=2), double(0.2, 0.5, 0.9)
    objective = Objective(schedule=schedule, prediction=prediction, weighting="simple")
    loss = diffusion_loss(network_with_errors(objective, x, eps, error), objective, x, (), t, eps)
    snr = schedule.log_snr(t).exp()
    torch.testing.assert_close(loss, snr * error.square().mean(1))


@every_prediction
@every_schedule
def test_min_snr_is_the_clipped_error_of_x_for_every_prediction(prediction, schedule):
    x, eps, error, t = randn(3, 4), randn(3, 4, seed=1), randn(3, 4, seed=2), double(0.2, 0.5, 0.9)
    objective = Objective(schedule=schedule, prediction=prediction, weighting="min_snr", gamma=3.0)
    loss = diffusion_loss(network_with_errors(objective, x, eps, error), objective, x, (), t, eps)
    snr = schedule.log_snr(t).exp()
    torch.testing.assert_close(loss, snr.clamp(max=3.0) * error.square().mean(1))


@pytest.mark.parametrize("schedule", [VP(), Cosine()], ids=name)
def test_min_snr_has_the_published_form_for_eps_v_and_x(schedule):
    t = torch.linspace(0.01, 0.99, 37, dtype=torch.float64)
    snr = schedule.log_snr(t).exp()
    clipped = snr.clamp(max=5.0)
    for prediction, expected in (("eps", clipped / snr), ("v", clipped / (snr + 1)), ("x", clipped)):
        objective = Objective(schedule=schedule, prediction=prediction, weighting="min_snr")
        torch.testing.assert_close(objective.weight(t), expected)


@every_prediction
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_min_snr_is_finite_at_both_ends_of_every_path(prediction, schedule):
    weight = Objective(schedule=schedule, prediction=prediction, weighting="min_snr").weight(double(0.0, 1e-9, 1.0))
    assert weight.isfinite().all()
    assert (weight >= 0).all()


def test_min_snr_at_zero_terminal_snr_keeps_its_limits():
    one = torch.ones((), dtype=torch.float64)
    for prediction, expected in (("eps", 1.0), ("v", 0.0), ("velocity", 0.0), ("x", 0.0)):
        objective = Objective(schedule=Cosine(), prediction=prediction, weighting="min_snr")
        assert objective.weight(one).item() == pytest.approx(expected, abs=1e-30)


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan])
def test_an_impossible_gamma_is_refused(gamma):
    with pytest.raises(ValueError, match="the usual choice is 5"):
        Objective(schedule=VP(), prediction="eps", gamma=gamma)


@every_prediction
@every_schedule
def test_a_perfect_network_has_no_loss(prediction, schedule):
    x, eps, t = randn(2, 3, 4), randn(2, 3, 4, seed=1), double(0.3, 0.6)

    def network(x_t, t, cond):
        torch.testing.assert_close(x_t, corrupt(schedule, x, eps, t))
        return target(prediction, schedule, x, eps, t)

    objective = Objective(schedule=schedule, prediction=prediction)
    assert diffusion_loss(network, objective, x, (), t, eps).tolist() == [0, 0]


def test_the_loss_of_an_item_is_its_own_mean_squared_error():
    x, eps, t = randn(3, 2, 5), randn(3, 2, 5, seed=1), double(0.1, 0.5, 0.9)
    objective = Objective(schedule=Flow(), prediction="velocity")
    loss = diffusion_loss(lambda x_t, t, cond: cond[0] * torch.ones_like(x_t), objective, x, (double(2.0),), t, eps)
    torch.testing.assert_close(loss, (2 - (eps - x)).square().mean((1, 2)))


def test_the_least_loss_is_reached_by_the_conditional_mean():
    """For standard normal data the best velocity is linear in x_t; its slope is a closed form."""
    x, eps, t = randn(200_000, 1), randn(200_000, 1, seed=1), torch.tensor(0.3, dtype=torch.float64)
    schedule = VP()
    a, b = coefficients("velocity", schedule, t)
    best = a * schedule.alpha(t) + b * schedule.sigma(t)  # E[target | x_t] = best x_t on a path of unit variance
    objective = Objective(schedule=schedule, prediction="velocity")
    slopes = best + double(-0.05, 0, 0.05)
    losses = [diffusion_loss(lambda x_t, t, cond, k=k: k * x_t, objective, x, (), t, eps).mean() for k in slopes]
    assert losses[1] == min(losses)


def test_the_loss_in_half_precision_is_wide_and_trains_the_network():
    layer = torch.nn.Linear(4, 4, dtype=torch.bfloat16)
    objective = Objective(schedule=Flow(), prediction="velocity", weighting="min_snr")
    x, eps = randn(3, 4).bfloat16(), randn(3, 4, seed=1).bfloat16()
    t = sample_times("logit_normal", (3,), generator())
    loss = diffusion_loss(lambda x_t, t, cond: layer(x_t.bfloat16()), objective, x, (), t, eps)
    loss.mean().backward()
    assert loss.shape == (3,)
    assert loss.dtype == torch.float32
    assert layer.weight.grad is not None
