import math
from itertools import pairwise

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.classifier_free_zero_star_guidance import ClassifierFreeZeroStarGuidance
from diffusers.guiders.guider_utils import rescale_noise_cfg

from latent.grid import karras, shift, uniform
from latent.guide import autoguidance, classifier_free, extrapolate, projected, rescaled, zero_star
from latent.predict import Estimate, as_model, bind, corrupt, estimate, target
from latent.sample import ddim, dpmpp_2m, euler, heun
from latent.schedule import VP, Flow
from tests.latent.guide.pairs import COND, NULL, gaussian, mixture, network
from tests.latent.oracle import PREDICTIONS, SCHEDULES, double, generator, name, randn

SHAPE = (3, 4, 6, 5)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
RULES = {
    "rescaled": lambda schedule, scale: rescaled(schedule, scale),
    "projected": lambda schedule, scale: projected(schedule, scale, threshold=2.0),
    "zero_star": lambda schedule, scale: zero_star(schedule, scale),
}
every_rule = pytest.mark.parametrize("make", RULES.values(), ids=RULES)
NEUTRAL = {
    "rescaled": lambda schedule, scale: rescaled(schedule, scale, factor=0),
    "projected": lambda schedule, scale: projected(schedule, scale, parallel=1, threshold=math.inf, momentum=0),
}


def estimates(schedule, x_t, t, seed=0):
    """Two different estimates on the path."""
    return (estimate("v", schedule, x_t, randn(*x_t.shape, seed=seed + part), t) for part in (1, 2))


@pytest.mark.parametrize("make", NEUTRAL.values(), ids=NEUTRAL)
@every_prediction
@every_schedule
def test_a_rule_at_its_neutral_setting_is_plain_guidance(make, prediction, schedule):
    model = as_model(network, schedule, prediction)
    for t in double(0.9, 0.5, 0.1):
        found = classifier_free(model, COND, NULL, make(schedule, 4.0))(randn(3, 4), t)
        torch.testing.assert_close(found, classifier_free(model, COND, NULL, 4.0)(randn(3, 4), t))


@every_schedule
def test_zero_star_is_plain_guidance_where_the_difference_is_across_the_weak_velocity(schedule):
    x_t, t = randn(3, 8), double(0.5)[0]
    weak, across = randn(3, 8, seed=1), randn(3, 8, seed=2)
    across = across - (across * weak).sum(1, keepdim=True) / (weak * weak).sum(1, keepdim=True) * weak
    pair = [estimate("velocity", schedule, x_t, v, t) for v in (weak + across, weak)]
    torch.testing.assert_close(zero_star(schedule, 4.0)(*pair, x_t, t), extrapolate(*pair, 4.0))


@every_rule
@every_prediction
@every_schedule
def test_scale_one_is_the_main_model(make, prediction, schedule):
    model = as_model(network, schedule, prediction)
    x_t, t = randn(3, 4), double(0.5)[0]
    found = classifier_free(model, COND, NULL, make(schedule, 1.0))(x_t, t)
    torch.testing.assert_close(found, bind(model, COND)(x_t, t))


@every_rule
@every_prediction
@every_schedule
def test_the_guided_estimate_stays_on_the_path(make, prediction, schedule):
    model = as_model(network, schedule, prediction)
    denoise = classifier_free(model, COND, NULL, make(schedule, 6.0))
    for t in double(0.999, 0.97, 0.6, 0.01):
        found = denoise(randn(3, 4), t)
        assert isinstance(found, Estimate)
        torch.testing.assert_close(corrupt(schedule, found.x, found.eps, t), randn(3, 4), rtol=1e-6, atol=1e-6)


@every_rule
def test_an_item_does_not_depend_on_its_batch(make):
    x_t, t = randn(*SHAPE), double(0.5)[0]
    main, weak = estimates(Flow(), x_t, t)
    full = make(Flow(), 5.0)(main, weak, x_t, t)
    alone = make(Flow(), 5.0)(*(Estimate(*(p[1:2] for p in part)) for part in (main, weak)), x_t[1:2], t)
    torch.testing.assert_close(Estimate(full.x[1:2], full.eps[1:2]), alone)


@every_rule
def test_the_conditions_and_two_models_are_guided_alike(make):
    model = as_model(network, VP(), "eps")
    x_t, t = randn(3, 4), double(0.5)[0]
    found = autoguidance(bind(model, COND), bind(model, NULL), make(VP(), 2.5))(x_t, t)
    torch.testing.assert_close(found, classifier_free(model, COND, NULL, make(VP(), 2.5))(x_t, t))


@every_rule
@every_schedule
def test_networks_that_start_at_zero_give_no_nan(make, schedule):
    x_t, t = randn(*SHAPE), double(0.5)[0]
    for prediction in ("x", "velocity"):
        still = estimate(prediction, schedule, x_t, torch.zeros_like(x_t), t)
        found = make(schedule, 5.0)(still, still, x_t, t)
        assert found.x.isfinite().all()
        assert found.eps.isfinite().all()


@pytest.mark.parametrize("factor", [0.3, 0.7, 1.0])
def test_rescaled_agrees_with_diffusers(factor):
    x_t, t = randn(*SHAPE), double(0.4)[0]
    main, weak = estimates(VP(), x_t, t)
    expected = rescale_noise_cfg(weak.x + 7.5 * (main.x - weak.x), main.x, factor)
    torch.testing.assert_close(rescaled(VP(), 7.5, factor)(main, weak, x_t, t).x, expected)


def test_rescaled_in_full_keeps_the_deviation_of_the_main_estimate():
    x_t, t = randn(*SHAPE), double(0.4)[0]
    main, weak = estimates(VP(), x_t, t)
    found = rescaled(VP(), 7.5, 1.0)(main, weak, x_t, t)
    torch.testing.assert_close(found.x.flatten(1).std(1), main.x.flatten(1).std(1))


@pytest.mark.parametrize("momentum", [0.0, -0.5, 0.6])
@pytest.mark.parametrize("threshold", [4.0, math.inf])
@pytest.mark.parametrize("parallel", [0.0, 0.4])
def test_projected_agrees_with_diffusers_at_every_step(parallel, threshold, momentum):
    """In the form of the paper, which starts from the main estimate: scale - 1 there."""
    rule = projected(Flow(), 6.0, parallel=parallel, threshold=threshold, momentum=momentum)
    buffer, limit = MomentumBuffer(momentum), 0.0 if threshold == math.inf else threshold
    for step, t in enumerate(double(1.0, 0.8, 0.5, 0.2)):
        x_t = randn(*SHAPE, seed=step)
        main, weak = estimates(Flow(), x_t, t, seed=10 * step)
        expected = normalized_guidance(main.x, weak.x, 5.0, buffer, parallel, limit, use_original_formulation=True)
        torch.testing.assert_close(rule(main, weak, x_t, t).x, expected)


def test_the_defaults_of_projected_are_those_of_stable_diffusion_xl():
    x_t = 3 * randn(2, 4, 16, 16)
    rule, stated = projected(Flow(), 4.0), projected(Flow(), 4.0, parallel=0.0, threshold=15.0, momentum=-0.5)
    for t in double(0.8, 0.5):
        main, weak = estimates(Flow(), x_t, t)
        assert ((main.x - weak.x).flatten(1).norm(dim=1) > 15).all()
        torch.testing.assert_close(rule(main, weak, x_t, t), stated(main, weak, x_t, t))


def test_projected_moves_across_the_main_estimate_and_no_further_than_the_threshold():
    x_t, t = randn(*SHAPE), double(0.4)[0]
    main, weak = estimates(VP(), x_t, t)
    change = projected(VP(), 3.0, threshold=0.5)(main, weak, x_t, t).x - main.x
    assert (change * main.x).sum((1, 2, 3)).abs().max() < 1e-12
    assert (change.flatten(1).norm(dim=1) <= 2 * 0.5 + 1e-12).all()


@pytest.mark.parametrize("sampler", [euler, heun, ddim, dpmpp_2m], ids=lambda f: f.__name__)
def test_one_projected_rule_serves_trajectories_in_turn(sampler):
    rule = projected(Flow(), 3.0, momentum=-0.8)
    denoise = autoguidance(mixture(Flow(), 1.0, 0.3), gaussian(Flow(), 0.0, 1.0), rule)
    for start, steps in ((1.0, 1), (1.0, 5), (0.6, 3), (1.0, 1), (1.0, 5)):
        x = randn(steps + 1, 4)  # batches of several sizes
        fresh = projected(Flow(), 3.0, momentum=-0.8)
        expected = autoguidance(mixture(Flow(), 1.0, 0.3), gaussian(Flow(), 0.0, 1.0), fresh)
        times = uniform(steps, start)
        found, expected = (sampler(d, Flow(), x, times) for d in (denoise, expected))
        torch.testing.assert_close(found, expected)


def test_momentum_counts_a_time_once_however_often_it_is_asked():
    once, twice = (projected(Flow(), 3.0, momentum=-0.8) for _ in range(2))
    for step, t in enumerate(double(0.9, 0.6, 0.3)):
        x_t = randn(*SHAPE, seed=step)
        main, weak = estimates(Flow(), x_t, t)
        twice(weak, main, x_t, t)
        torch.testing.assert_close(twice(main, weak, x_t, t), once(main, weak, x_t, t), rtol=0, atol=0)


GRIDS = {"even": uniform(10), "shifted": shift(uniform(12), 3.0), "late": uniform(8, 0.7)}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("zero_steps", [0, 1, 3])
def test_zero_star_takes_the_euler_steps_of_diffusers(grid, zero_steps):
    """zero_above = times[K] is the first K steps, and times[0] or 1 is none."""
    raw = [lambda x, t: torch.tanh(x + t), lambda x, t: torch.sin(2 * x) - t]
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=4.0, zero_init_steps=zero_steps)
    expected = randn(*SHAPE)
    for step, (t, s) in enumerate(pairwise(grid)):
        guider.set_state(step, len(grid) - 1, t)
        expected = expected + (s - t) * guider.forward(*(v(expected, t) for v in raw)).pred

    def denoiser(v):
        return lambda x_t, t: estimate("velocity", Flow(), x_t, v(x_t, t), t)

    rule = zero_star(Flow(), 4.0, zero_above=grid[zero_steps].item())
    found = euler(autoguidance(*map(denoiser, raw), rule), Flow(), randn(*SHAPE), grid)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("steps", "still"), [(10, 1), (25, 1), (50, 2), (100, 4)])
def test_zero_star_stands_still_for_four_percent_of_an_even_grid(steps, still):
    x_t, rule, count = randn(*SHAPE), zero_star(Flow(), 4.0), 0
    for t in uniform(steps)[:-1]:
        count += target("velocity", Flow(), *rule(*estimates(Flow(), x_t, t), x_t, t), t).abs().max().item() < 1e-12
    assert count == still


@every_schedule
def test_standing_still_is_a_velocity_of_zero_on_every_path(schedule):
    x_t, t = randn(*SHAPE), double(0.98)[0]
    found = zero_star(schedule, 4.0)(*estimates(schedule, x_t, t), x_t, t)
    still = target("velocity", schedule, *found, t) / schedule.rates(t)[1]
    torch.testing.assert_close(still, torch.zeros_like(still), rtol=0, atol=1e-12)


SINGLE = [Flow(), VP()]


@every_rule
@pytest.mark.parametrize("sampler", [euler, heun, ddim, dpmpp_2m], ids=lambda f: f.__name__)
@pytest.mark.parametrize("schedule", SINGLE, ids=name)
@pytest.mark.parametrize("last", [1e-2, 1e-4, 1e-6])
def test_samples_in_single_precision_keep_their_digits_down_to_the_last_step(make, sampler, schedule, last):
    """The last step leaves from `last`, where alpha / sigma is up to a million."""
    times = torch.cat([uniform(20, 0.999, 0.05), double(1e-2)[: last < 1e-2], double(last, 0.0)])

    def sample(dtype):
        pair = mixture(schedule, 1.0, 0.4), gaussian(schedule, 0.2, 1.0)
        denoise = autoguidance(*pair, make(schedule, 4.0))
        return sampler(denoise, schedule, randn(8, 4, 4).to(dtype), times)

    found, expected = sample(torch.float32), sample(torch.float64)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@every_rule
@every_schedule
@pytest.mark.parametrize("sampler", [heun, ddim], ids=lambda f: f.__name__)
def test_whole_grids_give_no_nan(make, schedule, sampler):
    times = karras(schedule, 6) if schedule.kind in ("ve", "edm") else uniform(6)
    denoise = autoguidance(gaussian(schedule, 1.0, 0.5), gaussian(schedule, 0.0, 1.0), make(schedule, 3.0))
    x = schedule.sigma(times[0]).float() * torch.randn(4, 3, generator=generator())
    assert sampler(denoise, schedule, x, times).isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rescaled(Flow(), 3.0, 1.1), "rescale factor is 1.1, expected 0 <= factor <= 1"),
        (lambda: rescaled(Flow(), 3.0, -0.1), "rescale factor is -0.1, expected 0 <= factor <= 1"),
        (lambda: projected(Flow(), 3.0, threshold=0.0), "threshold is 0.0, expected above 0"),
        (lambda: projected(Flow(), 3.0, threshold=math.nan), "threshold is nan, expected above 0"),
        (lambda: projected(Flow(), 3.0, momentum=-1.0), "momentum is -1.0, expected -1 < momentum < 1"),
        (lambda: zero_star(Flow(), 3.0, zero_above=0.0), "zero_above is 0.0, expected 0 < zero_above <= 1"),
        (lambda: zero_star(Flow(), 3.0, zero_above=1.5), "zero_above is 1.5, expected 0 < zero_above <= 1"),
    ],
)
def test_an_impossible_setting_is_refused_with_a_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()
