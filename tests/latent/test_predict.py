from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latent.predict import as_model, ask, bind, check, coefficients, corrupt, estimate, gains, target
from latent.schedule import EDM, VP, Cosine, Flow
from tests.latent.oracle import PREDICTIONS, PURE, SCHEDULES, double, name, randn

every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


class Words(NamedTuple):
    tokens: Tensor


@every_prediction
@every_schedule
@given(times=st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_estimate_inverts_target(prediction, schedule, times, seed):
    t = double(*times)
    x, eps = randn(3, 2, 4, seed=seed), randn(3, 2, 4, seed=seed + 1)
    x_t = corrupt(schedule, x, eps, t)
    found = estimate(prediction, schedule, x_t, target(prediction, schedule, x, eps, t), t)
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.eps, eps, rtol=0, atol=1e-9)


@every_prediction
@every_schedule
def test_estimate_of_any_output_satisfies_the_path(prediction, schedule):
    t = double(0.3, 0.9)
    x_t, output = randn(2, 5), randn(2, 5, seed=1)
    found = estimate(prediction, schedule, x_t, output, t)
    torch.testing.assert_close(corrupt(schedule, found.x, found.eps, t), x_t, rtol=0, atol=1e-10)


@every_schedule
def test_velocity_is_the_time_derivative_of_the_path(schedule):
    x, eps, t = randn(4), randn(4, seed=1), double(0.37, 0.5, 0.8, 0.99)
    derivative = torch.func.jvp(lambda u: corrupt(schedule, x, eps, u), (t,), (torch.ones_like(t),))[1]
    torch.testing.assert_close(target("velocity", schedule, x, eps, t), derivative)


def test_velocity_on_the_straight_path_is_noise_minus_data():
    x, eps = randn(2, 3), randn(2, 3, seed=1)
    torch.testing.assert_close(target("velocity", Flow(), x, eps, double(0.1, 0.9)), eps - x)


@pytest.mark.parametrize("schedule", [VP(), Cosine()], ids=name)
def test_v_matches_diffusers(schedule):
    diffusers = pytest.importorskip("diffusers")
    t = torch.arange(1, 11, dtype=torch.float64) / 10
    ddpm = diffusers.DDPMScheduler(num_train_timesteps=10)
    ddpm.alphas_cumprod = schedule.alpha(t) ** 2
    x, eps = randn(10, 3), randn(10, 3, seed=1)
    expected = ddpm.get_velocity(x, eps, torch.arange(10))
    torch.testing.assert_close(target("v", schedule, x, eps, t), expected, rtol=0, atol=1e-7)


@every_prediction
@every_schedule
def test_gains_are_the_derivatives_of_the_estimate(prediction, schedule):
    t, x_t, output = double(0.2, 0.7), randn(2, 1), randn(2, 1, seed=1)
    base = estimate(prediction, schedule, x_t, output, t)
    moved = estimate(prediction, schedule, x_t, output + 1, t)
    for gain, before, after in zip(gains(prediction, schedule, t), base, moved, strict=True):
        torch.testing.assert_close(gain, (after - before).flatten(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("schedule", PURE, ids=name)
@pytest.mark.parametrize("prediction", ["x", "v", "velocity", "edm"])
def test_estimates_are_finite_in_pure_noise(prediction, schedule):
    x_t = randn(2, 3)
    found = estimate(prediction, schedule, x_t, randn(2, 3, seed=1), torch.ones(2, dtype=torch.float64))
    assert found.x.isfinite().all()
    torch.testing.assert_close(found.eps, x_t)


@pytest.mark.parametrize("schedule", PURE, ids=name)
@pytest.mark.parametrize("prediction", ["eps", "score"])
def test_noise_alone_on_a_path_to_pure_noise_is_refused_at_one_with_a_remedy(schedule, prediction):
    with pytest.raises(ValueError, match=rf"{prediction}.*t = 1\.0.*start sampling below"):
        check(prediction, schedule)
    check(prediction, schedule, start=0.99)


@every_prediction
@every_schedule
def test_every_other_pair_passes_the_check(prediction, schedule):
    if prediction not in ("eps", "score") or schedule not in PURE:
        check(prediction, schedule)


@every_prediction
def test_half_precision_outputs_give_wide_estimates(prediction):
    x_t = randn(2, 3).bfloat16()
    for t in (double(0.5)[0], double(0.5, 0.25)):
        assert {part.dtype for part in estimate(prediction, VP(), x_t, x_t, t)} == {torch.float32}


@every_prediction
@every_schedule
@pytest.mark.parametrize("value", [0.03, 0.5, 0.97])
def test_one_time_for_the_batch_is_the_same_as_that_time_for_every_item(prediction, schedule, value):
    """Samplers pass one time without gradients, and get their coefficients as numbers."""
    x_t, output, t = randn(2, 3), randn(2, 3, seed=1), double(value)[0]
    each = estimate(prediction, schedule, x_t, output, t.expand(2))
    with torch.no_grad():
        one = estimate(prediction, schedule, x_t, output, t)
    for found, expected in zip(one, each, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@every_prediction
@torch.no_grad()
def test_estimates_have_one_dtype_and_are_new_tensors(prediction):
    x_t, output = randn(2, 3), randn(2, 3, seed=1).float()
    for t in (double(0.5)[0], double(0.5, 0.25)):
        found = estimate(prediction, VP(), x_t, output, t)
        assert {part.dtype for part in found} == {torch.float64}
        same = estimate(prediction, VP(), x_t, x_t, t)
        assert not {part.data_ptr() for part in same} & {x_t.data_ptr()}


@every_prediction
def test_the_time_may_be_differentiated_by(prediction):
    x_t, t = randn(1, 3), double(0.4)[0]

    def of(time):
        network = ask(lambda x, t, _: x * t, prediction, VP(), x_t, time, ())
        return torch.stack(estimate(prediction, VP(), x_t, network, time))

    slope = torch.func.jvp(of, (t,), (torch.ones_like(t),))[1]
    torch.testing.assert_close(slope, (of(t + 1e-6) - of(t - 1e-6)) / 2e-6, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_a_network_may_write_into_its_time():
    """A sampler's time is made anew for every call, so nothing that is kept can be spoilt."""
    seen = []

    def network(x_t, t, cond):
        seen.append(t.clone())
        return t.mul_(1000)

    for _ in range(2):
        ask(network, "edm", EDM(), randn(1, 3), double(0.5)[0], ())
    torch.testing.assert_close(seen[0], seen[1])


@every_prediction
def test_a_model_gives_the_network_a_time_per_item_and_reads_its_output(prediction):
    seen = []

    def network(x_t, t, cond):
        seen.append((t, cond))
        return 0.5 * x_t + cond.tokens[:, None]

    x_t, cond = randn(3, 4).float(), Words(torch.arange(3.0))
    t = torch.tensor(0.3, dtype=torch.float64)
    found = bind(as_model(network, VP(), prediction), cond)(x_t, t)
    times, given_cond = seen[0]
    assert given_cond is cond
    assert times.shape == (3,)
    assert times.dtype == torch.float32
    expected = estimate(prediction, VP(), x_t, 0.5 * x_t + torch.arange(3.0)[:, None], t)
    torch.testing.assert_close(found, expected)


def test_score_is_the_gradient_of_the_log_density_of_the_path():
    x, eps, t = randn(4), randn(4, seed=1), double(0.37, 0.5, 0.8, 0.99)
    x_t = corrupt(VP(), x, eps, t).requires_grad_()
    torch.distributions.Normal(VP().alpha(t) * x, VP().sigma(t)).log_prob(x_t).sum().backward()
    torch.testing.assert_close(target("score", VP(), x, eps, t), x_t.grad)


def test_edm_preconditioning_is_that_of_diffusers():
    """Their data have the standard deviation 0.5, ours 1: D_0.5(x; sigma) = 0.5 D_1(2 x; 2 sigma)."""
    diffusers = pytest.importorskip("diffusers")
    edm = diffusers.EDMEulerScheduler(sigma_data=0.5)
    schedule = EDM(sigma_max=160.0)
    for t in (0.9, 0.3, 0.001):
        x_t, output, time = randn(2, 3), randn(2, 3, seed=1), double(t)[0]
        sigma = schedule.sigma(time) / 2
        seen = []

        def network(x_in, t, cond, seen=seen, output=output):
            seen.append((x_in, t))
            return output

        model = as_model(network, schedule, "edm")
        found = model(2 * x_t, time, (torch.zeros(2),)).x / 2
        torch.testing.assert_close(found, edm.precondition_outputs(x_t, output, sigma))
        torch.testing.assert_close(seen[0][0], edm.precondition_inputs(x_t, sigma))
        torch.testing.assert_close(torch.log(seen[0][1] / (1 - seen[0][1])), torch.log(2 * sigma).expand(2))


def test_edm_output_is_minus_v_where_variance_is_preserved():
    x, eps, t = randn(4), randn(4, seed=1), double(0.1, 0.5, 0.8, 1.0)
    torch.testing.assert_close(target("edm", Cosine(), x, eps, t), -target("v", Cosine(), x, eps, t))


def test_a_network_in_half_precision_still_gets_exact_times():
    def network(x_t, t, cond):
        assert t.dtype == torch.float32
        torch.testing.assert_close(t, torch.full((2,), 0.999), rtol=0, atol=1e-7)
        return x_t

    as_model(network, VP(), "eps")(randn(2, 3).bfloat16(), double(0.999)[0], (torch.zeros(2),))


def test_coefficients_have_the_shape_of_t():
    for prediction in PREDICTIONS:
        for t in (torch.tensor(0.5), torch.rand(4) * 0.5 + 0.1):
            assert {part.shape for part in coefficients(prediction, VP(), t)} == {t.shape}
