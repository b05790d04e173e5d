import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch

from latent.grid import discrete, karras, uniform
from latent.predict import Estimate
from latent.sample import ancestral, ddim, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, euler, heun, midpoint, rk4, unipc
from latent.schedule import EDM, VE, VP, Flow
from tests.latent.oracle import SCHEDULES, double, exact, flow_map, generator, marginal, name, quantiles, randn


class Row(NamedTuple):
    """A deterministic sampler, its order, its calls per step, and how many of them a last step to sigma = 0 saves."""

    sampler: Callable
    order: int
    calls: int = 1
    saved: int = 0


# Add a row and the sampler is tested. UniPC's corrector lifts the order by one.
DETERMINISTIC = {
    "euler": Row(euler, 1),
    "ddim": Row(ddim, 1),
    "heun": Row(heun, 2, calls=2, saved=1),
    "midpoint": Row(midpoint, 2, calls=2),
    "rk4": Row(rk4, 4, calls=4, saved=2),
    "dpmpp_2m": Row(dpmpp_2m, 2),
    "dpmpp_3m": Row(dpmpp_3m, 3),
    "unipc_1": Row(partial(unipc, order=1), 2),
    "unipc": Row(unipc, 3),
    "unipc_3": Row(partial(unipc, order=3), 4),
}
STOCHASTIC = {"ancestral": ancestral, "dpmpp_2m_sde": dpmpp_2m_sde}
SAMPLERS = {label: row.sampler for label, row in DETERMINISTIC.items()} | {
    label: partial(sampler, generator=generator()) for label, sampler in STOCHASTIC.items()
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
every_row = pytest.mark.parametrize("row", DETERMINISTIC.values(), ids=DETERMINISTIC)
every_stochastic = pytest.mark.parametrize("sampler", STOCHASTIC.values(), ids=STOCHASTIC)
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def noise_free(schedule):
    return schedule.sigma(double(0.0)).item() == 0


def full_grid(schedule, steps):
    """From (nearly) pure noise to data; steps even in t are poor where sigma explodes."""
    return karras(schedule, steps) if schedule.kind in ("ve", "edm") else uniform(steps)


@every_row
@every_schedule
def test_gaussian_data_are_recovered_from_pure_noise(row, schedule):
    slow = row.sampler is euler and schedule.kind == "ve"  # sigma is convex in t there
    times = full_grid(schedule, 1024 if slow else 128)
    samples = row.sampler(exact(schedule), schedule, quantiles(schedule, times[0]), times)
    mean, std = marginal(schedule, times[-1])
    assert samples.mean().item() == pytest.approx(mean.item(), abs=0.01)
    assert samples.std(correction=0).item() == pytest.approx(std.item(), abs=0.02 if row.order == 1 else 0.01)


@every_stochastic
@every_schedule
def test_noisy_samples_tend_to_gaussian_data_as_steps_grow(sampler, schedule):
    def error(steps):
        times = full_grid(schedule, steps)
        x = quantiles(schedule, times[0], 20_000)
        samples = sampler(exact(schedule), schedule, x, times, generator=generator(steps))
        mean, std = marginal(schedule, times[-1])
        assert samples.mean().item() == pytest.approx(mean.item(), abs=0.02)
        return abs(samples.std().item() - std.item())

    coarse, fine = error(16), error(256)
    assert fine < 0.015
    assert fine < max(coarse / 4, 0.005)  # 20,000 draws tell no less


SMOOTH = [
    *(schedule for schedule in SCHEDULES if schedule.kind not in ("ddpm", "ve", "edm")),
    VE(sigma_min=0.1, sigma_max=5.0),
    EDM(sigma_max=5.0),
]


@every_row
@pytest.mark.parametrize("schedule", SMOOTH, ids=name)
def test_samplers_converge_at_their_order(row, schedule):
    """To the exact flow, away from the ends, where a single error may pass through zero.

    Steps grow from the start, the first being 1 / N^2 of the way: multistep samplers begin at order one, and on even
    steps the start alone would hold them at order two.
    """

    def error(steps):
        times = 0.95 - 0.55 * torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 2
        x = quantiles(schedule, times[0], 50)
        found = row.sampler(exact(schedule), schedule, x, times)
        return (found - flow_map(schedule, x, times[0], times[-1])).abs().max().item()

    # midpoint is of order three on straight paths of Gaussian data, so this is a bound from below
    assert math.log2(error(128) / error(256)) > row.order - 0.2


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


@every_row
@every_schedule
def test_the_number_of_calls_is_as_stated(row, schedule):
    seen = []

    def denoise(x_t, t):
        seen.append(t.item())
        return exact(schedule)(x_t, t)

    times = full_grid(schedule, 6)
    row.sampler(denoise, schedule, quantiles(schedule, times[0], 3), times)
    assert len(seen) == 6 * row.calls - row.saved * noise_free(schedule)


@every_sampler
@pytest.mark.parametrize("schedule", filter(noise_free, SCHEDULES), ids=name)
def test_the_last_step_to_zero_returns_the_estimate(sampler, schedule):
    found = sampler(lambda x_t, t: Estimate(torch.full_like(x_t, 0.7), x_t), schedule, randn(3, 2), uniform(4))
    torch.testing.assert_close(found, torch.full_like(found, 0.7), rtol=0, atol=1e-15)


def test_euler_on_the_straight_path_is_ddim():
    x, times = quantiles(Flow(), double(1.0)[0], 50), uniform(9)
    torch.testing.assert_close(euler(exact(Flow()), Flow(), x, times), ddim(exact(Flow()), Flow(), x, times))


@pytest.mark.parametrize(
    "sampler", [*STOCHASTIC.values(), partial(ddim, eta=0.5)], ids=[*STOCHASTIC, "ddim with noise"]
)
@every_schedule
def test_an_item_with_its_own_generator_does_not_depend_on_its_batch(sampler, schedule):
    times = full_grid(schedule, 6)
    x = randn(4, 3, 5)
    full = sampler(exact(schedule), schedule, x, times, generator=[generator(s) for s in range(4)])
    alone = sampler(exact(schedule), schedule, x[2:3], times, generator=[generator(2)])
    torch.testing.assert_close(full[2:3], alone, rtol=0, atol=0)


@every_stochastic
def test_sampling_leaves_the_global_random_state_and_repeats_with_the_seed(sampler):
    before = torch.get_rng_state()
    first, second = (sampler(exact(VP()), VP(), randn(3, 2), uniform(5), generator=generator(1)) for _ in range(2))
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
