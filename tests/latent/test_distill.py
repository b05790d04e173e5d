import pytest
import torch

from latent.distill import consistency, noise_beside, progressive
from latent.grid import karras, uniform
from latent.predict import Estimate, corrupt
from latent.sample import consistency as consistency_sampler
from latent.sample import ddim
from latent.schedule import VE, Flow
from tests.latent.oracle import SCHEDULES, beside, double, exact, flow_map, generator, marginal, name, quantiles, randn

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


def known(x, schedule):
    """A student that says x."""
    return lambda x_t, t: Estimate(x, noise_beside(schedule, x_t, x, t))


@every_schedule
@pytest.mark.parametrize("times", [(0.9, 0.6, 0.3), (0.2, 0.1, 0.0), (1.0, 0.5, 0.0)])
def test_one_step_of_the_progressive_student_is_two_of_its_teacher(schedule, times):
    times = double(*times)
    x_t = corrupt(schedule, randn(5, 2), randn(5, 2, seed=1), times[0])
    x = progressive(exact(schedule), schedule, x_t, *times)
    two = ddim(exact(schedule), schedule, x_t, times)
    one = ddim(known(x, schedule), schedule, x_t, times[[0, 2]])
    torch.testing.assert_close(one, two)


@every_schedule
def test_targets_take_a_time_per_item(schedule):
    t, middle, s = double(0.9, 0.7), double(0.6, 0.6), double(0.3, 0.0)
    x_t = corrupt(schedule, randn(2, 3), randn(2, 3, seed=1), t)
    for target, times in ((progressive, (t, middle, s)), (consistent, (t, s))):
        together = target(exact(schedule), schedule, x_t, *times)
        alone = [target(exact(schedule), schedule, x_t[i : i + 1], *(u[i] for u in times)) for i in range(2)]
        torch.testing.assert_close(together, torch.cat(alone))


def consistent(teacher, schedule, x_t, t, s):
    return consistency(teacher, flow_to_data(schedule), schedule, x_t, t, s)


def flow_to_data(schedule):
    """The exact consistency function: where the probability flow ends. Times are () or (B,)."""

    def student(x_t, t):
        x = flow_map(schedule, x_t, beside(t, x_t), torch.zeros_like(beside(t, x_t)))
        return Estimate(x, noise_beside(schedule, x_t, x, t))

    return student


@every_schedule
def test_the_exact_consistency_function_is_a_fixed_point_as_steps_shrink(schedule):
    """Its target differs from itself by one Euler step's error: a quarter for half the step."""
    t = double(0.6)[0]
    x_t = quantiles(schedule, t, 50)[:, None]
    own = flow_to_data(schedule)(x_t, t).x

    def gap(step):
        return (consistent(exact(schedule), schedule, x_t, t, t - step) - own).abs().max().item()

    assert gap(0.01) < 0.02 * own.abs().max()
    assert gap(0.005) == pytest.approx(gap(0.01) / 4, rel=0.15)


@every_schedule
def test_at_clean_data_the_target_is_the_data_and_no_network_is_asked(schedule):
    if schedule.sigma(double(0.0)) > 0:
        pytest.skip("this path is never clean")

    def student(x_t, t):
        assert (schedule.sigma(t) > 0).all()
        return Estimate(torch.full_like(x_t, 7.0), x_t)

    t, s = double(0.3, 0.5), double(0.0, 0.2)
    x_t = randn(2, 3)
    found = consistency(exact(schedule), student, schedule, x_t, t, s)
    x_0 = ddim(exact(schedule), schedule, x_t[:1], double(0.3, 0.0))
    torch.testing.assert_close(found, torch.cat([x_0, torch.full((1, 3), 7.0, dtype=torch.float64)]))


@pytest.mark.parametrize("schedule", [*SCHEDULES, VE(sigma_min=0.5), Flow(sigma_min=0.5)], ids=name)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_consistency_sampling_with_the_exact_function_gives_the_data_in_any_number_of_steps(schedule, steps):
    times = karras(schedule, steps) if schedule.kind in ("ve", "edm") else uniform(steps)
    x = quantiles(schedule, times[0], 20_000)[:, None]
    found = consistency_sampler(flow_to_data(schedule), schedule, x, times, generator=generator())
    mean, std = marginal(schedule, times[-1])
    assert found.mean().item() == pytest.approx(mean.item(), abs=0.02)
    assert found.std().item() == pytest.approx(std.item(), abs=0.02)


@every_schedule
def test_noise_beside_completes_an_estimate(schedule):
    x, eps, t = randn(3, 2), randn(3, 2, seed=1), double(0.2, 0.5, 0.9)
    torch.testing.assert_close(noise_beside(schedule, corrupt(schedule, x, eps, t), x, t), eps, rtol=0, atol=1e-9)
