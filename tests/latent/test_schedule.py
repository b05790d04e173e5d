import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latent.schedule import DDPM, EDM, VE, VP, Cosine, Flow, SubVP, expand
from tests.latent.oracle import PURE, SCHEDULES, double, name

TIMES = torch.linspace(0, 1, 203, dtype=torch.float64)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


@every_schedule
def test_rates_are_the_derivatives(schedule):
    t = TIMES[1:]  # sigma' is infinite at t = 0 on some paths
    for rate, function in zip(schedule.rates(t), (schedule.alpha, schedule.sigma), strict=True):
        derivative = torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]
        torch.testing.assert_close(rate, derivative, rtol=1e-9, atol=1e-12)


@every_schedule
def test_noise_to_signal_grows_with_time(schedule):
    assert (schedule.half_log_snr(TIMES).diff() < 0).all()
    assert (schedule.sigma(TIMES).diff() > 0).all()
    assert (schedule.alpha(TIMES).diff() <= 0).all()


@every_schedule
def test_log_snr_is_twice_the_half_log_snr(schedule):
    t = TIMES[1:-1]
    torch.testing.assert_close(schedule.log_snr(t), torch.log((schedule.alpha(t) / schedule.sigma(t)) ** 2))
    torch.testing.assert_close(schedule.log_snr(t), 2 * schedule.half_log_snr(t))


@every_schedule
def test_the_clean_end_has_no_signal_loss_and_little_noise(schedule):
    alpha, sigma = schedule.alpha(TIMES[0]), schedule.sigma(TIMES[0])
    assert alpha.item() == 1
    assert sigma.item() == pytest.approx(getattr(schedule, "sigma_min", 0), rel=1e-12)


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_nan_or_negative_at_the_ends(schedule, dtype):
    t = torch.tensor([0.0, 1.0], dtype=dtype)
    for value in (schedule.alpha(t), schedule.sigma(t)):
        assert value.dtype == dtype
        assert value.isfinite().all()
        assert (value >= 0).all()
    assert not schedule.log_snr(t).isnan().any()
    assert not torch.stack(schedule.rates(t)).isnan().any()


@pytest.mark.parametrize("schedule", PURE, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_paths_to_pure_noise_have_no_signal_at_all_at_one(schedule, dtype):
    one = torch.ones((), dtype=dtype)
    assert schedule.alpha(one).item() == 0
    assert schedule.sigma(one).item() == pytest.approx(1, abs=1e-7)
    assert schedule.log_snr(one).item() == -math.inf


@given(st.floats(0, 1), st.floats(0.01, 1), st.floats(2, 50), st.floats(0, 0.9))
def test_variance_preserving_paths_keep_unit_variance(t, beta_min, beta_max, offset):
    time = double(t)
    for schedule in (VP(beta_min=beta_min, beta_max=beta_max), Cosine(offset=offset)):
        total = schedule.alpha(time) ** 2 + schedule.sigma(time) ** 2
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


@every_schedule
def test_single_precision_loses_no_digits(schedule):
    t = torch.linspace(0.001, 0.999, 101)
    for function in (schedule.alpha, schedule.sigma):
        torch.testing.assert_close(function(t).double(), function(t.double()), rtol=5e-6, atol=0)


def test_vp_is_the_limit_of_the_linear_ddpm_betas():
    ddpm = pytest.importorskip("diffusers").DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(VP().alpha(t), ddpm.alphas_cumprod.double().sqrt(), rtol=0, atol=3e-3)


def test_cosine_with_offset_is_the_schedule_of_improved_ddpm():
    ddpm = pytest.importorskip("diffusers").DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    expected = ddpm.alphas_cumprod.double().sqrt()
    torch.testing.assert_close(Cosine(offset=0.008).alpha(t)[:-1], expected[:-1], rtol=0, atol=1e-4)  # last beta capped


LEVELS = torch.arange(1, 1001, dtype=torch.float64) / 1000


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize(
    ("betas", "theirs"), [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_discrete_levels_are_those_of_diffusers(betas, theirs, zero_terminal):
    ddpm = pytest.importorskip("diffusers").DDPMScheduler(
        beta_schedule=theirs, beta_start=1e-4, beta_end=0.02, rescale_betas_zero_snr=zero_terminal
    )
    alpha = DDPM(betas=betas, zero_terminal=zero_terminal).alpha(LEVELS)
    torch.testing.assert_close(alpha, ddpm.alphas_cumprod.double().sqrt(), rtol=1e-4, atol=1e-6)  # float32 products


def test_discrete_levels_tend_to_the_continuous_path():
    """The betas of T levels are beta_t / T; the gap shrinks like 1 / T."""
    t = torch.linspace(0, 1, 51, dtype=torch.float64)

    def gap(levels):
        path = DDPM(levels=levels, beta_min=0.1 / levels, beta_max=20 / levels)
        return (path.alpha(t) - VP().alpha(t)).abs().max().item()

    assert gap(10_000) < 1e-3
    assert gap(10_000) == pytest.approx(gap(1_000) / 10, rel=0.1)


@pytest.mark.parametrize("make", [VP, DDPM])
def test_zero_terminal_stretches_alpha_affinely_to_zero(make):
    plain, stretched = make().alpha(LEVELS), make(zero_terminal=True).alpha(LEVELS)
    assert stretched[-1] == 0
    slope, offset = (stretched[0] - stretched[-1]) / (plain[0] - plain[-1]), plain[-1]
    torch.testing.assert_close(stretched, slope * (plain - offset))


def test_sub_vp_has_less_noise_than_vp_and_the_same_signal():
    assert torch.equal(SubVP().alpha(TIMES), VP().alpha(TIMES))
    torch.testing.assert_close(SubVP().sigma(TIMES), VP().sigma(TIMES) ** 2)  # arXiv:2011.13456, eq. 29


def test_the_straight_path_with_noise_left_is_the_conditional_flow_of_lipman():
    """x_r = r x + (1 - (1 - sigma_min) r) eps at r = 1 - t (arXiv:2210.02747, eq. 22)."""
    path, r = Flow(sigma_min=0.1), 1 - TIMES
    torch.testing.assert_close(path.sigma(TIMES), 1 - (1 - 0.1) * r)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VP(beta_min=-1.0), "beta_min = -1.0"),
        (lambda: VP(beta_min=30.0), "beta_min < beta_max"),
        (lambda: VP(beta_max=math.nan), "beta_max = nan"),
        (lambda: VE(sigma_min=0.0), "sigma_min = 0.0"),
        (lambda: VE(sigma_max=math.inf), "sigma_max = inf"),
        (lambda: EDM(sigma_max=0.0), "the usual choice is 80"),
        (lambda: Cosine(offset=-0.1), "0.008"),
        (lambda: Cosine(offset=math.nan), "nan"),
        (lambda: Flow(sigma_min=1.0), "0 <= sigma_min < 1"),
        (lambda: Flow(sigma_min=math.nan), "nan"),
        (lambda: SubVP(beta_min=30.0), "beta_min < beta_max"),
        (lambda: DDPM(levels=1), "at least 2"),
        (lambda: DDPM(beta_max=1.0), "beta_max < 1"),
    ],
)
def test_impossible_parameters_are_refused_with_value_and_remedy(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_schedule_is_an_immutable_value():
    assert VP() == VP(beta_min=0.1)
    assert hash(VP()) == hash(VP(beta_min=0.1))
    with pytest.raises(AttributeError):
        VP().beta_min = 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_expand_aligns_with_the_batch_and_is_never_half_precision(dtype):
    x = torch.ones(2, 3, 4, 4, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    for value, shape in ((double(0.1)[0], (1, 1, 1, 1)), (double(0.1, 0.7), (2, 1, 1, 1))):
        assert expand(value, x).shape == shape
        assert (expand(value, x) * x).dtype == wide
        torch.testing.assert_close((expand(value, x) * x)[:, 0, 0, 0], value.to(wide).expand(2))
