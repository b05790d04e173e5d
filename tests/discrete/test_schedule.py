import pytest
import torch

from discrete.schedule import Cosine, Linear, Polynomial, Schedule

SCHEDULES = [Linear(), Cosine(), Polynomial(), Polynomial(power=0.5), Polynomial(power=3.0)]


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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_inverts_the_masked_share_both_ways_and_keeps_the_ends(schedule: Schedule):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(1 - schedule.alpha(t))[:-1], t[:-1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(1 - schedule.alpha(schedule.time(t)), t, rtol=1e-12, atol=1e-12)
    assert schedule.time(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist() == pytest.approx([0, 1], abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_log_snr_is_the_logit_of_alpha_and_falls(schedule: Schedule):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    log_snr = schedule.log_snr(t)
    assert log_snr[0] > 30 and (log_snr.diff() < 0).all()  # all are visible, up to rounding
    assert log_snr[-1] < -30  # none is
    torch.testing.assert_close(log_snr[1:-1], schedule.alpha(t)[1:-1].logit(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_integrate_to_the_change_of_the_log_masked_share(schedule: Schedule):
    t = torch.linspace(0.1, 1, 20_001, dtype=torch.float64)
    change = -torch.log(1 - schedule.alpha(t[0])).item()
    assert torch.trapezoid(schedule.weight(t), t).item() == pytest.approx(change, rel=1e-6)


def test_power_one_is_linear_and_a_higher_power_masks_later():
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    for function in ("alpha", "rate", "weight", "time", "log_snr"):
        found, expected = (getattr(schedule, function)(t) for schedule in (Polynomial(power=1.0), Linear()))
        torch.testing.assert_close(found, expected)
    assert (Polynomial(power=3).alpha(t) > Polynomial(power=2).alpha(t)).all()


@pytest.mark.parametrize("power", [0.0, -1.0, float("inf"), float("nan")])
def test_a_power_that_is_no_schedule_is_named(power: float):
    with pytest.raises(ValueError, match=f"power {power}"):
        Polynomial(power=power)
