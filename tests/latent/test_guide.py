from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from latent.grid import uniform
from latent.guide import autoguidance, classifier_free
from latent.predict import Estimate, as_model, bind, corrupt, estimate
from latent.sample import euler
from latent.schedule import VP, Flow
from tests.latent.oracle import PREDICTIONS, SCHEDULES, double, name, randn


class Words(NamedTuple):
    tokens: Tensor  # (B, 2)
    mask: Tensor  # (B, 2) bool


COND = Words(randn(3, 2, seed=5), torch.ones(3, 2, dtype=torch.bool))
NULL = Words(torch.zeros(3, 2, dtype=torch.float64), torch.tensor([[True, False]] * 3))


def network(x_t, t, cond):
    assert isinstance(cond, Words)
    assert cond.mask.dtype == torch.bool
    assert len(x_t) == len(t) == len(cond.tokens) == len(cond.mask)
    words = (cond.tokens * cond.mask).sum(1) + cond.mask.sum(1)
    return torch.tanh(x_t * t[:, None]) + words[:, None]


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
    times = t.expand(3)
    with_words, without = network(x_t, times, COND), network(x_t, times, NULL)
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


def test_guidance_acts_only_inside_its_interval():
    model = Counted(as_model(network, Flow(), "velocity"))
    denoise = classifier_free(model, COND, NULL, 3.0, interval=(0.2, 0.7))
    everywhere = classifier_free(model.model, COND, NULL, 3.0)
    for t, batch, expected in (
        (0.1, 3, bind(model.model, COND)),
        (0.2, 6, everywhere),
        (0.5, 6, everywhere),
        (0.7, 6, everywhere),
        (0.9, 3, bind(model.model, COND)),
    ):
        time = double(t)[0]
        torch.testing.assert_close(denoise(COND.tokens, time), expected(COND.tokens, time), rtol=0, atol=0)
        assert model.batches.pop() == batch


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.7, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_an_impossible_interval_is_refused(interval):
    with pytest.raises(ValueError, match="0 <= low < high <= 1"):
        classifier_free(as_model(network, Flow(), "velocity"), COND, NULL, 3.0, interval=interval)


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
