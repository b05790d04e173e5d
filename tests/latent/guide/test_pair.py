import pytest
import torch

from latent.grid import uniform
from latent.guide import autoguidance, classifier_free, extrapolate
from latent.predict import Estimate, as_model, ask, bind, corrupt, estimate
from latent.sample import euler, heun
from latent.schedule import VP, Flow
from tests.latent.guide.pairs import COND, NULL, gaussian, network
from tests.latent.oracle import PREDICTIONS, SCHEDULES, double, name, quantiles, randn


class Counted:
    def __init__(self, model):
        self.model, self.batches = model, []

    def __call__(self, x_t, t, cond):
        self.batches.append(len(x_t))
        return self.model(x_t, t, cond)


@pytest.mark.parametrize("t", [double(0.4)[0], double(0.4, 0.2, 0.9)], ids=["one time", "a time per item"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_guidance_equals_combining_raw_outputs(schedule, prediction, scale, t):
    x_t = randn(3, 4)
    guided = classifier_free(as_model(network, schedule, prediction), COND, NULL, scale)(x_t, t)
    with_words, without = (ask(network, prediction, schedule, x_t, t, cond) for cond in (COND, NULL))
    expected = estimate(prediction, schedule, x_t, without + scale * (with_words - without), t)
    torch.testing.assert_close(guided, expected)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_a_guided_estimate_stays_on_the_path(schedule):
    x_t, t = randn(3, 4), double(0.6)[0]
    found = classifier_free(as_model(network, schedule, "v"), COND, NULL, 5.0)(x_t, t)
    assert isinstance(found, Estimate)
    torch.testing.assert_close(corrupt(schedule, found.x, found.eps, t), x_t)


def test_both_branches_are_one_batch():
    model = Counted(as_model(network, Flow(), "velocity"))
    classifier_free(model, COND, NULL, 3.0)(randn(3, 4), double(0.5)[0])
    assert model.batches == [6]


def test_scale_one_is_the_conditional_model_at_the_cost_of_one_branch():
    model = Counted(as_model(network, Flow(), "velocity"))
    x_t, t = randn(3, 4), double(0.5)[0]
    found = classifier_free(model, COND, NULL, 1.0)(x_t, t)
    assert model.batches == [3]
    torch.testing.assert_close(found, bind(model, COND)(x_t, t), rtol=0, atol=0)


def pair(form, model, scale, **options):
    """Guidance by the unconditional branch, in either form."""
    if form == "classifier_free":
        return classifier_free(model, COND, NULL, scale, **options)
    return autoguidance(bind(model, COND), bind(model, NULL), scale, **options)


every_form = pytest.mark.parametrize("form", ["classifier_free", "autoguidance"])


@every_form
def test_guidance_acts_only_inside_its_interval(form):
    model = Counted(as_model(network, Flow(), "velocity"))
    denoise = pair(form, model, 3.0, interval=(0.2, 0.7))
    everywhere = pair(form, model.model, 3.0)
    both = [6] if form == "classifier_free" else [3, 3]
    for t, batches, expected in (
        (0.1, [3], bind(model.model, COND)),
        (0.2, both, everywhere),
        (0.5, both, everywhere),
        (0.7, both, everywhere),
        (0.9, [3], bind(model.model, COND)),
    ):
        time, model.batches = double(t)[0], []
        torch.testing.assert_close(denoise(COND.tokens, time), expected(COND.tokens, time), rtol=0, atol=0)
        assert model.batches == batches


@every_form
def test_an_interval_at_a_time_per_item_is_refused(form):
    denoise = pair(form, as_model(network, Flow(), "velocity"), 3.0, interval=(0.2, 0.7))
    with pytest.raises(ValueError, match=r"at times \(3,\), expected one time \(\) for the batch"):
        denoise(COND.tokens, double(0.1, 0.5, 0.9))


@every_form
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.7, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_an_impossible_interval_is_refused(form, scale, interval):
    with pytest.raises(ValueError, match="0 <= low < high <= 1"):
        pair(form, as_model(network, Flow(), "velocity"), scale, interval=interval)


@every_form
def test_a_scale_that_changes_over_time_is_a_rule(form):
    def falling(main, weak, x_t, t):
        return extrapolate(main, weak, 1 + 6 * t)

    model = as_model(network, VP(), "v")
    for t in double(0.1, 0.5, 0.9):
        found = pair(form, model, falling)(randn(3, 4), t)
        torch.testing.assert_close(found, pair(form, model, 1 + 6 * t.item())(randn(3, 4), t))


@every_form
def test_a_rule_is_given_the_condition_as_main_and_its_absence_as_weak(form):
    model = as_model(network, VP(), "v")
    x_t, t = randn(3, 4), double(0.4)[0]

    def rule(main, weak, given, time):
        assert given is x_t
        assert time is t
        torch.testing.assert_close(main, model(x_t, t, COND))
        torch.testing.assert_close(weak, model(x_t, t, NULL))
        return main

    torch.testing.assert_close(pair(form, model, rule)(x_t, t), model(x_t, t, COND))


def test_plain_tuples_of_conditions_work_too():
    model = as_model(lambda x_t, t, cond: x_t * cond[0][:, None], VP(), "x")
    found = classifier_free(model, (double(1, 2, 3),), (double(0, 0, 0),), 2.0)(randn(3, 4), double(0.5)[0])
    torch.testing.assert_close(found.x, randn(3, 4) * double(2, 4, 6)[:, None])


def test_autoguidance_by_the_unconditional_model_is_classifier_free_guidance():
    model = as_model(network, VP(), "eps")
    x_t, t = randn(3, 4), double(0.5)[0]
    found = autoguidance(bind(model, COND), bind(model, NULL), 2.5)(x_t, t)
    torch.testing.assert_close(found, classifier_free(model, COND, NULL, 2.5)(x_t, t))


def test_autoguidance_at_scale_one_never_calls_the_weak_model():
    def weak(x_t, t):
        raise AssertionError("the weak model was called")

    main = bind(as_model(network, VP(), "eps"), COND)
    x_t, t = randn(3, 4), double(0.5)[0]
    torch.testing.assert_close(autoguidance(main, weak, 1.0)(x_t, t), main(x_t, t), rtol=0, atol=0)


def test_guidance_towards_a_condition_moves_samples_beyond_it():
    """Two conditions whose data are the points m: at scale w the sample is w m_cond + (1 - w) m_null."""
    model = as_model(lambda x_t, t, cond: cond[0][:, None].expand_as(x_t), Flow(), "x")
    denoise = classifier_free(model, (double(1.0, 2.0),), (double(-1.0, 0.0),), 3.0)
    found = euler(denoise, Flow(), randn(2, 4), uniform(5))
    torch.testing.assert_close(found, double(5.0, 6.0)[:, None].expand(2, 4))


MEAN, NEGATIVE, STD = 0.5, -0.25, 0.3


def away_from_the_negative(schedule, count):
    def model(x_t, t, cond):
        return gaussian(schedule, cond[0][:, None], STD)(x_t, t)

    cond, negative = ((torch.full((count,), mean, dtype=torch.float64),) for mean in (MEAN, NEGATIVE))
    return classifier_free(model, cond, negative, 3.0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_a_negative_prompt_moves_the_mean_away_by_the_scale(schedule):
    """N(m, s^2) guided by N(n, s^2) is N(n + scale (m - n), s^2)."""
    x_t, t = randn(50, 4), double(0.5)[0]
    expected = gaussian(schedule, NEGATIVE + 3 * (MEAN - NEGATIVE), STD)(x_t, t)
    torch.testing.assert_close(away_from_the_negative(schedule, 50)(x_t, t), expected)


def test_samples_keep_away_from_a_negative_prompt():
    x = quantiles(Flow(), double(1.0)[0])[:, None]
    samples = heun(away_from_the_negative(Flow(), 1000), Flow(), x, uniform(32))
    assert samples.mean().item() == pytest.approx(2.0, abs=0.01)
    assert samples.std().item() == pytest.approx(STD, abs=0.01)
