"""Multistep solvers against diffusers, step by step, on our float64 grid in place of its own, which is float32."""

import math

import numpy
import pytest
import scipy
import torch

from latent.grid import karras, uniform
from latent.predict import Estimate, as_model, bind
from latent.sample import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, unipc
from latent.schedule import EDM, VP, Flow
from tests.latent.oracle import exact, flow_map, generator, quantiles, randn, raw_network

diffusers = pytest.importorskip("diffusers")
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
EPSILON = {"prediction_type": "epsilon"}
OPEN = uniform(12, 0.95, 0.1)


def their_path(scheduler, sigmas, outputs, x, **settings):
    """Sample with a diffusers scheduler. sigmas: sigma for flows, else sigma / alpha. outputs: (x, step) -> tensor."""
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas
    scheduler.set_begin_index(0)
    for k, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(outputs(x, k), timestep, x, **settings).prev_sample
    return x


def both_paths(sampler, kind, schedule, times, x, **settings):
    """Ours and theirs with the same network: velocity on the flow, eps on VP."""
    flow = schedule.kind == "flow"
    scheduler = getattr(diffusers, kind)(**(FLOW if flow else EPSILON), **settings)
    sigmas = schedule.sigma(times) if flow else (-schedule.half_log_snr(times)).exp()
    found = sampler(bind(as_model(raw_network, schedule, "velocity" if flow else "eps"), ()), schedule, x, times)
    return found, their_path(scheduler, sigmas, lambda x_t, k: raw_network(x_t, times[k], ()), x)


def preconditioned(scheduler, schedule):
    """EDM's denoiser around the raw network, by diffusers' own formula."""

    def denoise(x_t, t):
        sigma = schedule.sigma(t)
        x_hat = scheduler.precondition_outputs(x_t, raw_network(x_t, t, ()), sigma)
        return Estimate(x_hat, (x_t - x_hat) / sigma)

    return denoise


every_path = pytest.mark.parametrize("schedule", [Flow(), VP()], ids=repr)


# DPMSolverMultistepScheduler rounds x to float32 in every step: no closer than 1e-5. By default (lower_order_final) it
# also takes the last step at first order, and the one before it at second, when there are fewer than 15 steps.
@every_path
@pytest.mark.parametrize("times", [OPEN, uniform(12), uniform(1)], ids=["open", "whole", "one step"])
def test_dpmpp_2m_takes_the_steps_of_diffusers(schedule, times):
    found, expected = both_paths(
        dpmpp_2m, "DPMSolverMultistepScheduler", schedule, times, randn(4, 3), lower_order_final=False,
        final_sigmas_type="zero" if times[-1] == 0 else "sigma_min",
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_dpmpp_2m_takes_the_steps_of_diffusers_on_its_own_grid():
    steps = 12
    scheduler = diffusers.DPMSolverMultistepScheduler(**FLOW, lower_order_final=False)
    scheduler.set_timesteps(steps)
    times = scheduler.sigmas.double()
    x = randn(4, 3)
    found = dpmpp_2m(bind(as_model(raw_network, Flow(), "velocity"), ()), Flow(), x, times)
    expected = their_path(scheduler, scheduler.sigmas, lambda x_t, k: raw_network(x_t, times[k], ()), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@every_path
@pytest.mark.parametrize("times", [OPEN, uniform(12)], ids=["open", "whole"])
def test_dpmpp_2m_sde_takes_the_steps_of_diffusers(schedule, times):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **(FLOW if schedule.kind == "flow" else EPSILON),
        algorithm_type="sde-dpmsolver++",
        lower_order_final=False,
        final_sigmas_type="zero" if times[-1] == 0 else "sigma_min",
    )
    sigmas = schedule.sigma(times) if schedule.kind == "flow" else (-schedule.half_log_snr(times)).exp()
    x = randn(4, 3).float()  # they draw the noise in float32
    denoise = bind(as_model(raw_network, schedule, "velocity" if schedule.kind == "flow" else "eps"), ())
    found = dpmpp_2m_sde(denoise, schedule, x, times, generator=generator(3))
    expected = their_path(
        scheduler, sigmas, lambda x_t, k: raw_network(x_t, times[k].float(), ()), x, generator=generator(3)
    )
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("noisy", [False, True], ids=["ode", "sde"])
def test_the_second_order_solvers_take_the_steps_of_diffusers_on_the_edm_path(noisy):
    schedule, x = EDM(), 80 * randn(4, 3)
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        lower_order_final=False, algorithm_type="sde-dpmsolver++" if noisy else "dpmsolver++"
    )
    times = karras(schedule, 12)
    denoise = preconditioned(scheduler, schedule)
    found = (
        dpmpp_2m_sde(denoise, schedule, x, times, generator=generator(3))
        if noisy
        else dpmpp_2m(denoise, schedule, x, times)
    )
    expected = their_path(
        scheduler, schedule.sigma(times), lambda x_t, k: raw_network(x_t, times[k], ()), x, generator=generator(3)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@every_path
def test_dpmpp_3m_takes_the_steps_of_the_third_order_predictor_of_diffusers(schedule):
    found, expected = both_paths(
        dpmpp_3m, "UniPCMultistepScheduler", schedule, OPEN, randn(4, 3), solver_order=3, lower_order_final=False,
        disable_corrector=list(range(12)),
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


# The third-order step of DPMSolverMultistepScheduler multiplies its D2, half of the second derivative, by what belongs
# to the whole derivative. So ours is theirs where estimates lie on a line, and only ours is of third order.
def test_dpmpp_3m_takes_the_steps_of_diffusers_where_estimates_lie_on_a_line():
    schedule, x = EDM(), 80 * randn(4, 3)
    times = karras(schedule, 12)[:-1]
    slope = randn(4, 3, seed=1)
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        solver_order=3, lower_order_final=False, final_sigmas_type="sigma_min"
    )
    scheduler.precondition_outputs = lambda sample, output, sigma: output

    def line(x_t, t):
        return Estimate(slope * schedule.half_log_snr(t), x_t)

    expected = their_path(scheduler, schedule.sigma(times), lambda x_t, k: line(x_t, times[k]).x, x)
    torch.testing.assert_close(dpmpp_3m(line, schedule, x, times), expected, rtol=1e-10, atol=1e-10)


def test_the_third_order_steps_of_diffusers_are_of_second_order():
    schedule = EDM(sigma_max=5.0)

    def error(steps, theirs):
        times = 0.95 - 0.45 * torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 2
        x = quantiles(schedule, times[0], 50)
        scheduler = diffusers.EDMDPMSolverMultistepScheduler(
            solver_order=3, lower_order_final=False, final_sigmas_type="sigma_min"
        )
        scheduler.precondition_outputs = lambda sample, output, sigma: output
        outputs = exact(schedule)
        found = (
            their_path(scheduler, schedule.sigma(times), lambda x_t, k: outputs(x_t, times[k]).x, x)
            if theirs
            else dpmpp_3m(outputs, schedule, x, times)
        )
        return (found - flow_map(schedule, x, times[0], times[-1])).abs().max().item()

    assert math.log2(error(64, theirs=True) / error(128, theirs=True)) == pytest.approx(2, abs=0.1)
    assert math.log2(error(64, theirs=False) / error(128, theirs=False)) == pytest.approx(3, abs=0.1)


def test_a_step_of_dpmpp_3m_integrates_the_parabola_through_three_estimates():
    schedule, times = VP(), torch.tensor([0.9, 0.7, 0.6, 0.3], dtype=torch.float64)
    lam, estimates = schedule.half_log_snr(times).numpy(), [0.3, -1.1, 0.8]

    def denoise(x_t, t):
        return Estimate(torch.full_like(x_t, estimates[times.tolist().index(t.item())]), x_t)

    x = randn(4, 3)
    before = dpmpp_3m(denoise, schedule, x, times[:3])
    parabola = numpy.polynomial.Polynomial.fit(lam[:3], estimates, 2)
    integral, _ = scipy.integrate.quad(lambda at: math.exp(at) * parabola(at), lam[2], lam[3], epsabs=1e-13)
    expected = schedule.sigma(times[3]) * (before / schedule.sigma(times[2]) + integral)
    torch.testing.assert_close(dpmpp_3m(denoise, schedule, x, times), expected, rtol=1e-11, atol=1e-11)


# UniPCMultistepScheduler with lower_order_final takes the last step at order one and the one before it at two at most;
# without it, a step to sigma = 0 is NaN. At order three the comparison therefore ends above zero.
@every_path
@pytest.mark.parametrize(("order", "stop"), [(1, 0.0), (2, 0.0), (1, 0.1), (2, 0.1), (3, 0.1)])
def test_unipc_takes_the_steps_of_diffusers(schedule, order, stop):
    found, expected = both_paths(
        lambda *arguments: unipc(*arguments, order=order), "UniPCMultistepScheduler", schedule, uniform(12, 0.95, stop),
        randn(4, 3, 2), solver_order=order, solver_type="bh2", lower_order_final=stop == 0,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


# They start at sigma = 1 - 1e-6, where lambda is -13.8. From order two on, their second step interpolates to there,
# while ours forgets an estimate at infinite lambda: 1e-4 apart after 12 steps.
def test_unipc_corrects_the_first_step_from_pure_noise_as_diffusers_does():
    scheduler = diffusers.UniPCMultistepScheduler(**FLOW, solver_order=1)
    scheduler.set_timesteps(12)
    sigmas = scheduler.sigmas.double()
    times = torch.cat([torch.ones_like(sigmas[:1]), sigmas[1:]])
    x = randn(4, 3)
    found = unipc(bind(as_model(raw_network, Flow(), "velocity"), ()), Flow(), x, times, order=1)
    expected = their_path(scheduler, sigmas, lambda x_t, k: raw_network(x_t, times[k], ()), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [0, 4, 2.5])
def test_unipc_of_another_order_is_refused(order):
    with pytest.raises(ValueError, match="expected 1, 2 or 3"):
        unipc(exact(Flow()), Flow(), randn(2, 3), uniform(3), order=order)
