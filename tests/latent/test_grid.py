import math

import pytest
import torch

from latent.grid import at_log_snr, discrete, even_log_snr, karras, shift, uniform
from latent.schedule import EDM, VE, VP, Cosine, Flow
from tests.latent.oracle import SCHEDULES, double, name

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


def test_uniform_runs_from_start_to_stop():
    torch.testing.assert_close(uniform(4), double(1, 0.75, 0.5, 0.25, 0))
    torch.testing.assert_close(uniform(2, start=0.9, stop=0.1), double(0.9, 0.5, 0.1))


@pytest.mark.parametrize(("steps", "start", "stop"), [(0, 1, 0), (-1, 1, 0), (4, 0, 1), (4, 1.5, 0), (4, 1, -0.1)])
def test_an_impossible_uniform_grid_is_refused(steps, start, stop):
    with pytest.raises(ValueError, match="expected"):
        uniform(steps, start, stop)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_shift_matches_diffusers(factor):
    diffusers = pytest.importorskip("diffusers")
    flow = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=factor)
    expected = flow.sigmas.double()
    torch.testing.assert_close(shift(uniform(1000)[:-1], factor), expected, rtol=0, atol=1e-6)


def test_shift_keeps_the_ends_and_is_undone_by_its_inverse():
    times = uniform(50)
    moved = shift(times, 3.0)
    assert (moved[0], moved[-1]) == (1, 0)
    assert (moved.diff() < 0).all()
    torch.testing.assert_close(shift(moved, 1 / 3.0), times)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_shift_is_refused(factor):
    with pytest.raises(ValueError, match="factor above 0"):
        shift(uniform(2), factor)


def test_discrete_times_are_levels_below_pure_noise():
    times = discrete(50)
    assert times[0] == 0.999
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    torch.testing.assert_close(times * 1000, (times * 1000).round(), rtol=0, atol=1e-9)


def test_discrete_visits_every_level_when_it_has_the_steps():
    torch.testing.assert_close(discrete(10, 10, start=10), double(*(k / 10 for k in range(10, -1, -1))))


@pytest.mark.parametrize(("steps", "total", "start"), [(0, 10, None), (10, 10, None), (5, 10, 11), (5, 10, 4)])
def test_impossible_discrete_steps_are_refused(steps, total, start):
    with pytest.raises(ValueError, match="steps <= start <= total"):
        discrete(steps, total, start)


@every_schedule
def test_at_log_snr_inverts_log_snr(schedule):
    wanted = torch.linspace(6, -6, 25, dtype=torch.float64)
    torch.testing.assert_close(schedule.log_snr(at_log_snr(schedule, wanted)), wanted, rtol=0, atol=1e-9)


@every_schedule
def test_at_log_snr_beyond_the_path_is_its_end(schedule):
    assert at_log_snr(schedule, double(math.inf, -math.inf)).tolist() == [0, 1]


def test_karras_grid_has_the_noise_levels_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    edm = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    edm.set_timesteps(18)
    schedule = EDM()
    torch.testing.assert_close(schedule.sigma(karras(schedule, 18)), edm.sigmas.double(), rtol=1e-5, atol=1e-7)


@every_schedule
def test_karras_grid_decreases_between_its_ratios(schedule):
    times = karras(schedule, 12, sigma_min=0.01, sigma_max=50)
    ratio = torch.exp(-schedule.half_log_snr(times))
    assert times.shape == (13,)
    assert (times.diff() < 0).all()
    assert ratio[0].item() == pytest.approx(50)
    assert ratio[-1].item() == pytest.approx(0.01 if schedule.sigma(double(0.0)) > 0 else 0.0)


def test_karras_grid_reaches_both_ends_of_its_own_path():
    assert karras(VE(), 5)[[0, -1]].tolist() == pytest.approx([1, 0], abs=1e-12)
    assert karras(EDM(), 5)[[0, -1]].tolist() == pytest.approx([1, 0], abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [
        (VP(), {"sigma_max": 500.0}),
        (EDM(sigma_max=20.0), {"sigma_max": 80.0}),
        (VE(), {"sigma_min": 0.001}),
        (Flow(), {"sigma_min": 0.0}),
        (Flow(), {"sigma_min": 2.0, "sigma_max": 1.0}),
        (Cosine(), {"sigma_max": math.nan}),
    ],
)
@pytest.mark.parametrize("grid", [karras, even_log_snr])
def test_a_grid_outside_the_path_is_refused(grid, schedule, settings):
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        grid(schedule, 10, **settings)


def test_a_karras_grid_without_a_power_is_refused():
    with pytest.raises(ValueError, match="rho > 0"):
        karras(Cosine(), 10, rho=0.0)


@every_schedule
def test_even_log_snr_steps_are_even_and_take_the_path_as_far_as_it_goes(schedule):
    times = even_log_snr(schedule, 9)
    lowest = torch.exp(-schedule.half_log_snr(double(0.0))).item()
    steps = schedule.log_snr(times[: 9 if lowest == 0 else 10]).diff()
    torch.testing.assert_close(steps, steps[:1].expand(len(steps)))
    assert times.shape == (10,)


def test_even_log_snr_is_the_limit_of_karras_for_a_large_power():
    torch.testing.assert_close(even_log_snr(EDM(), 8)[:-1], karras(EDM(), 8, rho=1e6)[:-1], rtol=1e-4, atol=0)


def test_grids_stop_where_a_path_stops():
    path = EDM(sigma_max=20.0)
    assert karras(path, 5)[0] == 1
