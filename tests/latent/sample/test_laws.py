import math
from functools import partial

import pytest
import torch

from latent.grid import discrete, karras, uniform
from latent.predict import Estimate
from latent.sample import ancestral, ddim, dpmpp_2m, euler, heun
from latent.schedule import EDM, VP, Cosine, Flow
from tests.latent.oracle import SCHEDULES, double, exact, flow_map, generator, marginal, name, quantiles, randn

DETERMINISTIC = [euler, heun, ddim, dpmpp_2m]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
every_ode = pytest.mark.parametrize("sampler", DETERMINISTIC, ids=lambda f: f.__name__)
SAMPLERS = {f.__name__: f for f in DETERMINISTIC} | {"ancestral": partial(ancestral, generator=generator())}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def full_grid(schedule, steps):
    """From (nearly) pure noise to data; steps even in t are poor where sigma explodes."""
    return karras(schedule, steps) if schedule.kind in ("ve", "edm") else uniform(steps)


@every_ode
@every_schedule
def test_gaussian_data_are_recovered_from_pure_noise(sampler, schedule):
    slow = sampler is euler and schedule.kind == "ve"  # sigma is convex in t there
    times = full_grid(schedule, 1024 if slow else 128)
    samples = sampler(exact(schedule), schedule, quantiles(schedule, times[0]), times)
    mean, std = marginal(schedule, times[-1])
    assert samples.mean().item() == pytest.approx(mean.item(), abs=0.01)
    assert samples.std(correction=0).item() == pytest.approx(std.item(), abs=0.02 if sampler in (euler, ddim) else 0.01)


@every_schedule
def test_ancestral_samples_tend_to_gaussian_data_as_steps_grow(schedule):
    def error(steps):
        times = full_grid(schedule, steps)
        x = quantiles(schedule, times[0], 20_000)
        samples = ancestral(exact(schedule), schedule, x, times, generator=generator(steps))
        mean, std = marginal(schedule, times[-1])
        assert samples.mean().item() == pytest.approx(mean.item(), abs=0.02)
        return abs(samples.std().item() - std.item())

    coarse, fine = error(16), error(256)
    assert fine < 0.015
    assert fine < coarse / 4


def order(sampler, schedule, start=0.95, stop=0.5):
    """Order of convergence to the exact flow, away from the ends where a single error may pass through zero."""
    t, s = double(start, stop)
    x = quantiles(schedule, t, 50)
    paths = [sampler(exact(schedule), schedule, x, uniform(steps, start, stop)) for steps in (64, 128)]
    coarse, fine = ((path - flow_map(schedule, x, t, s)).abs().max().item() for path in paths)
    return math.log2(coarse / fine)


CURVED = [Flow(), VP(), Cosine(), Cosine(offset=0.008), EDM(sigma_max=5.0)]
every_curved = pytest.mark.parametrize("schedule", CURVED, ids=name)


@every_curved
@pytest.mark.parametrize("sampler", [euler, ddim], ids=lambda f: f.__name__)
def test_euler_and_ddim_converge_at_order_one(sampler, schedule):
    assert order(sampler, schedule) == pytest.approx(1, abs=0.05)


@every_curved
@pytest.mark.parametrize("sampler", [heun, dpmpp_2m], ids=lambda f: f.__name__)
def test_heun_and_dpmpp_2m_converge_at_order_two(sampler, schedule):
    assert order(sampler, schedule) == pytest.approx(2, abs=0.05)


@every_sampler
@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_grids_give_no_nan_and_never_ask_for_clean_data(sampler, schedule, dtype):
    def denoise(x_t, t):
        assert t.shape == ()
        assert schedule.sigma(t) > 0
        assert x_t.isfinite().all()
        return exact(schedule)(x_t, t)

    for times in (uniform(7), uniform(7).float(), uniform(1), full_grid(schedule, 7), discrete(7)):
        x = schedule.sigma(times[0]).to(dtype) * randn(5, 2).to(dtype)
        samples = sampler(denoise, schedule, x, times)
        assert samples.isfinite().all()
        assert samples.dtype == dtype


@every_schedule
@pytest.mark.parametrize(
    ("sampler", "calls"), [(euler, 6), (ddim, 6), (dpmpp_2m, 6), (heun, 11)], ids=["euler", "ddim", "dpmpp_2m", "heun"]
)
def test_the_number_of_calls_is_as_stated(schedule, sampler, calls):
    seen = []

    def denoise(x_t, t):
        seen.append(t.item())
        return exact(schedule)(x_t, t)

    times = full_grid(schedule, 6)
    sampler(denoise, schedule, quantiles(schedule, times[0], 3), times)
    assert len(seen) == calls + (sampler is heun and schedule.kind == "ve")


@every_sampler
@pytest.mark.parametrize("schedule", [Flow(), VP(), Cosine(), EDM()], ids=name)
def test_the_last_step_to_zero_returns_the_estimate(sampler, schedule):
    found = sampler(lambda x_t, t: Estimate(torch.full_like(x_t, 0.7), x_t), schedule, randn(3, 2), uniform(4))
    torch.testing.assert_close(found, torch.full_like(found, 0.7), rtol=0, atol=1e-15)


def test_euler_on_the_straight_path_is_ddim():
    x, times = quantiles(Flow(), double(1.0)[0], 50), uniform(9)
    torch.testing.assert_close(euler(exact(Flow()), Flow(), x, times), ddim(exact(Flow()), Flow(), x, times))


@pytest.mark.parametrize("sampler", [ancestral, partial(ddim, eta=0.5)], ids=["ancestral", "ddim"])
@every_schedule
def test_an_item_with_its_own_generator_does_not_depend_on_its_batch(sampler, schedule):
    times = full_grid(schedule, 6)
    x = randn(4, 3, 5)
    full = sampler(exact(schedule), schedule, x, times, generator=[generator(s) for s in range(4)])
    alone = sampler(exact(schedule), schedule, x[2:3], times, generator=[generator(2)])
    torch.testing.assert_close(full[2:3], alone, rtol=0, atol=0)


def test_sampling_leaves_the_global_random_state_and_repeats_with_the_seed():
    before = torch.get_rng_state()
    first, second = (ancestral(exact(VP()), VP(), randn(3, 2), uniform(5), generator=generator(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


@every_sampler
def test_half_precision_noise_is_sampled_in_single_precision(sampler):
    samples = sampler(exact(Flow()), Flow(), randn(2, 3).bfloat16(), uniform(3))
    assert samples.dtype == torch.float32


@every_sampler
def test_sampling_builds_no_graph(sampler):
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    samples = sampler(lambda x_t, t: Estimate(weight * x_t, weight * x_t), Flow(), randn(2, 3), uniform(3))
    assert not samples.requires_grad


@every_sampler
@pytest.mark.parametrize(
    "times",
    [
        double(0.0, 1.0),
        double(1.0, 0.5, 0.5, 0.0),
        double(1.0),
        double(),
        double(1.0, 0.0)[None],
        double(1.2, 0.0),
        double(1.0, -0.1),
        double(1.0, math.nan, 0.0),
        uniform(3).bfloat16(),
        uniform(3).half(),
    ],
    ids=lambda times: str(times.tolist()),
)
def test_an_impossible_grid_is_refused_with_a_remedy(sampler, times):
    with pytest.raises(ValueError, match=r"time grid.*expected.*latent\.grid"):
        sampler(exact(Flow()), Flow(), randn(2, 3), times)
