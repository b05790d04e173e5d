"""Single-step ODE solvers against diffusers, torchdiffeq, scipy and closed forms."""

import math

import pytest
import scipy
import torch
from torchdiffeq import odeint

from latent.grid import karras, uniform
from latent.predict import Estimate, as_model, bind
from latent.sample import dormand_prince, euler, heun, midpoint, rk4
from latent.sample.step import slope
from latent.schedule import EDM, VE, VP, Cosine, Flow
from tests.latent.oracle import SCHEDULES, double, exact, flow_map, name, quantiles, randn, raw_network

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
velocity = bind(as_model(raw_network, Flow(), "velocity"), ())


def noise_prediction(x_t, t):
    """On the EDM path, whose network is given sigma."""
    sigma = EDM().sigma(t)
    eps = raw_network(x_t, sigma, ())
    return Estimate(x_t - sigma * eps, eps)


def their_path(scheduler, steps, outputs, x):
    """Sample with a diffusers scheduler: outputs: (x, step) -> tensor."""
    scheduler.set_timesteps(steps)
    for k, timestep in enumerate(scheduler.timesteps):
        scheduler.is_scale_input_called = True  # the network is given x as it is
        x = scheduler.step(outputs(x, k), timestep, x).prev_sample
    return x


def edm_times(scheduler, steps):
    """The grid of a scheduler in float64, for EDM()."""
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()
    return karras(EDM(), steps, sigma_min=sigmas[-2].item(), sigma_max=sigmas[0].item())


def test_heun_on_the_edm_path_takes_the_steps_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.HeunDiscreteScheduler(use_karras_sigmas=True)
    times = edm_times(scheduler, 10)
    sigmas = scheduler.sigmas.double()  # the inner ones stand twice, once for each call
    x = sigmas[0] * randn(4, 3)
    expected = their_path(scheduler, 10, lambda x_t, k: raw_network(x_t, sigmas[k], ()), x)
    torch.testing.assert_close(heun(noise_prediction, EDM(), x, times), expected, rtol=1e-5, atol=1e-5)


# The Euler schedulers of diffusers round x and their sigmas to float32 in every step: no closer than 1e-5.
def test_euler_on_the_edm_path_takes_the_steps_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, sigma_min=0.002, sigma_max=80.0)
    times = edm_times(scheduler, 10)
    x = EDM().sigma(times[0]) * randn(4, 3)
    expected = their_path(scheduler, 10, lambda x_t, k: raw_network(x_t, EDM().sigma(times[k]), ()), x)
    torch.testing.assert_close(euler(noise_prediction, EDM(), x, times), expected, rtol=1e-5, atol=1e-5)


def test_euler_takes_the_steps_of_the_edm_euler_scheduler_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EDMEulerScheduler()
    times = edm_times(scheduler, 10)
    x = EDM().sigma(times[0]) * randn(4, 3)

    def denoise(x_t, t):
        sigma = EDM().sigma(t)
        x_hat = scheduler.precondition_outputs(x_t, raw_network(x_t, t, ()), sigma)
        return Estimate(x_hat, (x_t - x_hat) / sigma)

    expected = their_path(scheduler, 10, lambda x_t, k: raw_network(x_t, times[k], ()), x)
    torch.testing.assert_close(euler(denoise, EDM(), x, times), expected, rtol=1e-5, atol=1e-5)


def test_euler_on_the_straight_path_takes_the_steps_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)  # from 1 down to 0.001, then 0
    times, x = scheduler.sigmas.double(), randn(4, 3)
    expected = their_path(scheduler, 10, lambda x_t, k: raw_network(x_t, times[k], ()), x)
    torch.testing.assert_close(euler(velocity, Flow(), x, times), expected, rtol=1e-5, atol=1e-5)


def test_midpoint_takes_the_steps_of_torchdiffeq():
    schedule, times, x = VP(), uniform(10, 1.0, 0.1), randn(4, 3)
    denoise = bind(as_model(raw_network, schedule, "v"), ())
    path = odeint(lambda t, x_t: slope(denoise(x_t, t), schedule, t), x, times, method="midpoint")
    torch.testing.assert_close(midpoint(denoise, schedule, x, times), path[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (midpoint, 2), (rk4, 4)])
def test_a_step_on_exponential_growth_is_the_taylor_polynomial(sampler, order):
    """dx/dt = x: one step of -h multiplies by the first terms of exp(-h)."""
    schedule = EDM(sigma_max=1.0)
    found = sampler(lambda x_t, t: Estimate(x_t, x_t), schedule, randn(4, 3), double(0.9, 0.2))
    factor = sum((-0.7) ** k / math.factorial(k) for k in range(order + 1))
    torch.testing.assert_close(found, factor * randn(4, 3), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("schedule", [Flow(), VP(), Cosine(offset=0.008)], ids=name)
def test_rk4_ends_with_a_midpoint_step(schedule):
    times, x = uniform(4), randn(4, 3)
    found = rk4(exact(schedule), schedule, x, times)
    before = rk4(exact(schedule), schedule, x, times[:-1])
    torch.testing.assert_close(found, midpoint(exact(schedule), schedule, before, times[-2:]), rtol=0, atol=0)


def noise_free(schedule):
    return schedule.sigma(double(0.0)).item() == 0


def counted(denoise):
    seen = []

    def counting(x_t, t):
        assert t.shape == ()
        assert t.dtype == torch.float64
        seen.append(t.item())
        return denoise(x_t, t)

    return counting, seen


def adaptive_ends(schedule, x, start, stop):
    """What an exact solver returns."""
    if not noise_free(schedule):
        return flow_map(schedule, x, double(start), double(0.0))
    there = flow_map(schedule, x, double(start), double(stop))
    return schedule.alpha(double(0.0)) * exact(schedule)(there, double(stop)).x


def adaptive_run(schedule, tolerance):
    """Root mean square error and number of calls of a whole run."""
    denoise, seen = counted(exact(schedule))
    x = quantiles(schedule, double(1.0), 50)
    error = dormand_prince(denoise, schedule, x, tolerance=tolerance) - adaptive_ends(schedule, x, 1.0, 1e-3)
    return error.square().mean().sqrt(), len(seen)


@every_schedule
def test_dormand_prince_costs_the_same_on_every_path(schedule):
    error, calls = adaptive_run(schedule, 1e-5)
    assert error < 1e-5
    assert calls - noise_free(schedule) in (44, 50, 56)  # 7 to 9 steps of 6, and 2 at the start


@pytest.mark.parametrize("schedule", [Flow(), EDM()], ids=name)
def test_dormand_prince_errs_less_and_costs_more_with_a_smaller_tolerance(schedule):
    (loose, few), (tight, many) = adaptive_run(schedule, 1e-3), adaptive_run(schedule, 1e-8)
    assert loose < 1e-2
    assert tight < 1e-8
    assert few < many / 4


@every_schedule
def test_dormand_prince_stays_between_start_and_stop(schedule):
    denoise, seen = counted(exact(schedule))
    x = quantiles(schedule, double(0.8), 50)
    found = dormand_prince(denoise, schedule, x, start=0.8, stop=0.1)
    assert max(seen) == pytest.approx(0.8, abs=1e-9)
    assert min(seen) == pytest.approx(0.1 if noise_free(schedule) else 0.0, abs=1e-9)
    torch.testing.assert_close(found, adaptive_ends(schedule, x, 0.8, 0.1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("schedule", [Flow(), VP(), EDM(sigma_max=5.0)], ids=name)
def test_dormand_prince_agrees_with_scipy_in_t(schedule):
    denoise, x = bind(as_model(raw_network, schedule, "v"), ()), randn(4, 3)

    def rate(t, flat):
        x_t, t = torch.from_numpy(flat).reshape(4, 3), torch.tensor(t, dtype=torch.float64)
        return slope(denoise(x_t, t), schedule, t).flatten().numpy()

    path = scipy.integrate.solve_ivp(rate, (0.9, 0.01), x.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-12)
    there = torch.from_numpy(path.y[:, -1]).reshape(4, 3)
    expected = schedule.alpha(double(0.0)) * denoise(there, double(0.01)[0]).x
    found = dormand_prince(denoise, schedule, x, start=0.9, stop=0.01, tolerance=1e-8)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", [Flow(), VP(), VE()], ids=name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dormand_prince_gives_the_network_and_the_caller_one_dtype(schedule, dtype):
    wide = torch.promote_types(dtype, torch.float32)

    def denoise(x_t, t):
        assert x_t.dtype == wide
        assert x_t.isfinite().all()
        assert schedule.sigma(t) > 0
        return exact(schedule)(x_t, t)

    found = dormand_prince(denoise, schedule, quantiles(schedule, double(1.0), 6).to(dtype))
    assert found.dtype == wide
    assert found.isfinite().all()


def test_dormand_prince_builds_no_graph():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    found = dormand_prince(lambda x_t, t: Estimate(weight * x_t, weight * x_t), Flow(), randn(2, 3))
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 0.0}, "tolerance of 0.0.*1e-5"),
        ({"tolerance": -1e-3}, "above 0"),
        ({"tolerance": math.nan}, "above 0"),
        ({"start": 1.5}, "from t = 1.5.*1 >= start > stop > 0"),
        ({"stop": 0.0}, "to 0.0.*1 >= start > stop > 0"),
        ({"start": 0.2, "stop": 0.3}, "1 >= start > stop > 0"),
        ({"start": 0.2, "stop": 0.2}, "1 >= start > stop > 0"),
        ({"stop": math.nan}, "1 >= start > stop > 0"),
    ],
)
def test_an_impossible_adaptive_run_is_refused_with_a_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        dormand_prince(exact(Flow()), Flow(), randn(2, 3), **settings)
