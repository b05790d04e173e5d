import pytest
import torch

from discrete.schedule import Cosine, Linear, Schedule

SCHEDULES = [Linear(), Cosine()]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_everything_is_visible_at_zero_and_nothing_at_one(schedule: Schedule):
    assert schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist() == pytest.approx([1, 0], abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rate_is_the_derivative_of_alpha(schedule: Schedule):
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    _, derivative = torch.func.jvp(schedule.alpha, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(schedule.rate(t), derivative, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weight_is_minus_rate_over_masked_share(schedule: Schedule):
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(schedule.weight(t), -schedule.rate(t) / (1 - schedule.alpha(t)), rtol=1e-9, atol=1e-9)
