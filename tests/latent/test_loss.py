import math

import pytest
import torch

from latent.loss import Objective, diffusion_loss
from latent.predict import Estimate, coefficients, corrupt, target
from latent.schedule import EDM, VP, Cosine, Flow, expand
from latent.times import LogitNormalTimes, sample_times
from tests.latent.oracle import PREDICTIONS, PURE, SCHEDULES, double, generator, name, randn

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


def network_with_errors(objective, x, eps, x_error, t):
    """A network whose estimate of x is off by x_error, and of eps by what then follows from x_t."""

    def network(x_t, seen, cond):
        ratio = objective.schedule.alpha(t) / objective.schedule.sigma(t)
        found = Estimate(x + x_error, eps - expand(ratio, x) * x_error)
        return target(objective.prediction, objective.schedule, found.x, found.eps, t)

    return network


def elbo(schedule, t):
    """-d log_snr / dt / 2, by differentiation."""
    return -torch.func.jvp(schedule.log_snr, (t,), (torch.ones_like(t),))[1] / 2


WEIGHTS = {  # of the squared error of x, given (schedule, t, SNR)
    "simple": lambda schedule, t, snr: snr,
    "elbo": lambda schedule, t, snr: elbo(schedule, t) * snr,
    "min_snr": lambda schedule, t, snr: snr.clamp(max=5.0),
    "edm": lambda schedule, t, snr: 1 + snr,
    "p2": lambda schedule, t, snr: snr / (1 + snr),
}


@every_prediction
@every_schedule
@pytest.mark.parametrize("weighting", WEIGHTS)
def test_a_weighting_weighs_the_same_error_of_x_alike_for_every_prediction(prediction, schedule, weighting):
    x, eps, error, t = randn(3, 4), randn(3, 4, seed=1), randn(3, 4, seed=2), double(0.2, 0.5, 0.9)
    objective = Objective(schedule=schedule, prediction=prediction, weighting=weighting)
    loss = diffusion_loss(network_with_errors(objective, x, eps, error, t), objective, x, (), t, eps)
    snr = schedule.log_snr(t).exp()
    torch.testing.assert_close(loss, WEIGHTS[weighting](schedule, t, snr) * error.square().mean(1))


def test_gamma_is_the_ceiling_of_min_snr_and_the_power_of_p2():
    t = double(0.1, 0.5, 0.9)
    snr = VP().log_snr(t).exp()
    for weighting, gamma, expected in (("min_snr", 3.0, snr.clamp(max=3.0)), ("p2", 0.5, snr / (1 + snr).sqrt())):
        objective = Objective(schedule=VP(), prediction="x", weighting=weighting, gamma=gamma)
        torch.testing.assert_close(objective.weight(t), expected)


def test_edm_weighting_of_an_edm_network_is_the_plain_error_of_its_output():
    t = double(1e-9, 0.3, 0.999)
    for schedule in SCHEDULES:
        weight = Objective(schedule=schedule, prediction="edm", weighting="edm").weight(t)
        torch.testing.assert_close(weight, torch.ones_like(t))


def test_the_edm_loss_is_that_of_karras_for_data_of_standard_deviation_one_half():
    """lambda(sigma) |D(y + n; sigma) - y|^2 with D = c_skip x + c_out F(c_in x) (arXiv:2206.00364, eqs. 7 and 8)."""
    data, sigma_data, eps, t = 0.5 * randn(3, 4), 0.5, randn(3, 4, seed=1), double(0.001, 0.01, 0.4)
    sigma = EDM().sigma(t)[:, None]
    noisy = data + sigma * eps
    total = (sigma**2 + sigma_data**2).sqrt()
    denoised = sigma_data**2 / total**2 * noisy + sigma * sigma_data / total * torch.tanh(noisy / total)
    expected = (total / (sigma * sigma_data)) ** 2 * (denoised - data) ** 2

    unit = EDM(sigma_max=80 / sigma_data)  # the same noise on data of unit variance
    objective = Objective(schedule=unit, prediction="edm", weighting="edm")
    loss = diffusion_loss(lambda x_t, t, cond: torch.tanh(x_t), objective, data / sigma_data, (), t, eps)
    torch.testing.assert_close(loss, expected.mean(1))


@pytest.mark.parametrize("schedule", [VP(), Cosine()], ids=name)
def test_min_snr_has_the_published_form_for_eps_v_and_x(schedule):
    t = torch.linspace(0.01, 0.99, 37, dtype=torch.float64)
    snr = schedule.log_snr(t).exp()
    clipped = snr.clamp(max=5.0)
    for prediction, expected in (("eps", clipped / snr), ("v", clipped / (snr + 1)), ("x", clipped)):
        objective = Objective(schedule=schedule, prediction=prediction, weighting="min_snr")
        torch.testing.assert_close(objective.weight(t), expected)


POSSIBLE = [(p, s) for p in PREDICTIONS for s in SCHEDULES if p not in ("eps", "score") or s not in PURE]


@pytest.mark.parametrize(("prediction", "schedule"), POSSIBLE, ids=str)
@pytest.mark.parametrize("weighting", ["min_snr", "edm", "p2"])
def test_weights_are_finite_wherever_training_times_can_fall(prediction, schedule, weighting):
    weight = Objective(schedule=schedule, prediction=prediction, weighting=weighting).weight(double(2**-53, 1 - 2**-53))
    assert weight.isfinite().all()
    assert (weight >= 0).all()


@every_prediction
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_min_snr_is_finite_at_both_ends_of_every_path(prediction, schedule):
    weight = Objective(schedule=schedule, prediction=prediction, weighting="min_snr").weight(double(0.0, 1e-9, 1.0))
    assert weight.isfinite().all()
    assert (weight >= 0).all()


def test_min_snr_at_zero_terminal_snr_keeps_its_limits():
    one = torch.ones((), dtype=torch.float64)
    for prediction, expected in (("eps", 1.0), ("v", 0.0), ("velocity", 0.0), ("x", 0.0), ("edm", 0.0)):
        objective = Objective(schedule=Cosine(), prediction=prediction, weighting="min_snr")
        assert objective.weight(one).item() == pytest.approx(expected, abs=1e-30)


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan])
def test_an_impossible_gamma_is_refused(gamma):
    with pytest.raises(ValueError, match="the usual choice is 5"):
        Objective(schedule=VP(), prediction="eps", gamma=gamma)


@every_prediction
@every_schedule
def test_a_perfect_network_has_no_loss(prediction, schedule):
    x, eps, times = randn(2, 3, 4), randn(2, 3, 4, seed=1), double(0.3, 0.6)

    def network(x_t, t, cond):
        if prediction != "edm":  # that one scales its input
            torch.testing.assert_close(x_t, corrupt(schedule, x, eps, times))
            torch.testing.assert_close(t, times)
        return target(prediction, schedule, x, eps, times)

    objective = Objective(schedule=schedule, prediction=prediction)
    assert diffusion_loss(network, objective, x, (), times, eps).tolist() == [0, 0]


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
    t = sample_times(LogitNormalTimes(), Flow(), (3,), generator())
    loss = diffusion_loss(lambda x_t, t, cond: layer(x_t.bfloat16()), objective, x, (), t, eps)
    loss.mean().backward()
    assert loss.shape == (3,)
    assert loss.dtype == torch.float32
    assert layer.weight.grad is not None
