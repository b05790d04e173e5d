"""Strengths, agreement and power against goldens, closed forms and an independent oracle."""

import numpy as np
import pytest
from scipy import optimize

from eval import selftest
from eval.human import bradley_terry, krippendorff_alpha
from eval.human.agreement import alpha_interval, raw_agreement
from eval.human.bradley_terry import cycles, fit, groups, separated
from eval.human.errors import StudyError
from eval.human.power import Effort, planned, sign_test_power, votes_needed

TABLE = selftest.RATINGS


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval", "ratio"])
def test_alpha_takes_nan_for_what_was_not_rated(level):
    with_nan = np.array([[np.nan if value is None else value for value in row] for row in TABLE])
    assert krippendorff_alpha(with_nan, level) == krippendorff_alpha(TABLE, level)


def test_nominal_alpha_takes_words_and_needs_no_order():
    words = [[None if value is None else "edcba"[value - 1] for value in row] for row in TABLE]
    assert krippendorff_alpha(words) == pytest.approx(krippendorff_alpha(TABLE, "nominal"), abs=1e-12)


def test_alpha_is_one_for_agreement_zero_for_chance_and_undefined_without_variety():
    rng = np.random.RandomState(0)
    assert krippendorff_alpha([[1, 2, 3], [1, 2, 3]], "interval") == 1
    assert abs(krippendorff_alpha(rng.randint(0, 3, (4, 4000)), "nominal")) < 0.02
    assert np.isnan(krippendorff_alpha([[1, 1], [1, 1]]))
    assert raw_agreement([["a", "b"], ["a", "c"]]) == 0.5
    found = alpha_interval(TABLE, "ordinal")
    assert found.low < found.value < found.high <= 1 and found.n == 11


def test_alpha_intervals_cover_the_alpha_of_the_population():
    """Raters copy a true value with probability .7, else guess one of three: alpha is .7 squared."""
    covered = 0
    for trial in range(100):
        rng = np.random.RandomState(trial)
        true = rng.randint(0, 3, 150)
        ratings = np.where(rng.rand(3, 150) < 0.7, true, rng.randint(0, 3, (3, 150)))
        found = alpha_interval(ratings, seed=trial)
        covered += found.low <= 0.49 <= found.high
    assert covered >= 87  # a binomial of 100 and .95 is below with probability 1e-3


@pytest.mark.parametrize(
    ("ratings", "level", "sentence"),
    [
        ([[1, None], [None, 2]], "nominal", "no item was rated by two"),
        ([[1, 2], [1]], "nominal", "lengths"),
        ([[1, 2], [1, 2]], "cardinal", "'cardinal' is unknown"),
        ([[1, float("inf")], [1, 2]], "interval", "not finite"),
    ],
)
def test_ratings_without_agreement_are_refused(ratings, level, sentence):
    with pytest.raises(StudyError, match=sentence):
        krippendorff_alpha(ratings, level)


def test_strengths_equal_those_of_choix_and_of_a_general_optimiser():
    choix = pytest.importorskip("choix")
    for trial in range(5):
        rng = np.random.RandomState(trial)
        w = np.triu(rng.randint(0, 30, (6, 6)), 1) + np.tril(rng.randint(0, 30, (6, 6)), -1).astype(float)
        w[0, 5] = w[5, 0] = 0  # not every pair was compared
        found = bradley_terry(w)
        oracle = choix.mm_pairwise(6, [(i, j) for i in range(6) for j in range(6) for _ in range(int(w[i, j]))])
        np.testing.assert_allclose(found, oracle - oracle.mean(), atol=1e-6)

        def cost(theta, w=w):
            return (w * np.logaddexp(0, theta[None, :] - theta[:, None])).sum()

        np.testing.assert_allclose(cost(found), optimize.minimize(cost, np.zeros(6)).fun, rtol=1e-9)


def test_groups_that_never_met_are_named():
    w = np.zeros((4, 4))
    w[0, 1] = w[1, 0] = w[2, 3] = w[3, 2] = 5
    assert groups(w) == [[0, 1], [2, 3]]
    with pytest.raises(StudyError, match=r"2 groups \(flow, ddpm \| ar, mdlm\)"):
        bradley_terry(w, ["flow", "ddpm", "ar", "mdlm"])
    assert np.isnan(fit(w[None])).all()


def test_separation_is_said_and_gives_a_finite_order():
    w = np.array([[0, 10, 10], [0, 0, 6], [0, 4, 0]])
    assert separated(w) == [[0], [1, 2]]
    assert separated([[0, 60, 70], [40, 0, 55], [30, 45, 0]]) == [[0, 1, 2]]
    found = bradley_terry(w)
    assert np.isfinite(found).all() and found[0] > found[1] > found[2] and found[0] < 10


def test_cycles_are_found():
    assert cycles([[0, 6, 4, 9], [4, 0, 6, 9], [6, 4, 0, 9], [1, 1, 1, 0]]) == [[0, 1, 2]]
    assert cycles([[0, 6, 6], [4, 0, 6], [4, 4, 0]]) == []


@pytest.mark.parametrize("wins", [[[0, np.nan], [1, 0]], [[0, -1], [1, 0]], [[1, 1], [1, 0]], [[0, 1]], [[0]]])
def test_wins_that_are_no_counts_are_refused(wins):
    with pytest.raises(StudyError, match=r"expected|diagonal"):
        bradley_terry(wins)


def test_votes_needed_do_not_depend_on_the_side():
    assert votes_needed(0.55) == votes_needed(0.45)


def test_power_of_the_exact_sign_test_against_simulation():
    assert sign_test_power(200, 0.5) <= 0.05
    from scipy.stats import binomtest

    drawn = np.random.RandomState(0).binomial(60, 0.7, 2000)
    found = np.mean([binomtest(int(k), 60).pvalue <= 0.05 for k in drawn])
    assert sign_test_power(60, 0.7) == pytest.approx(found, abs=0.03)


def test_a_plan_multiplies_by_the_design_effect_and_prices_the_hours():
    found = planned(Effort(mde=0.05, raters=3, rho=0.3, pairs=3, criteria=5, seconds=6, rate=15, block=60))
    assert found.votes == 783 and found.deff == pytest.approx(1.6) and found.prompts == 418  # ceil(783 * 1.6 / 3)
    assert found.judgements == 418 * 3 * 3 * 5 and found.blocks == 63
    assert found.price == pytest.approx(15 * found.hours) and found.hours == pytest.approx(31.35)
    assert 0.75 < found.exact_power < 0.85
    assert planned(Effort(raters=5, rho=0.3)).deff == pytest.approx(2.2)
    assert planned(Effort(tests=10)).votes > planned(Effort()).votes


@pytest.mark.parametrize("wrong", [{"mde": 0}, {"mde": 0.6}, {"raters": 0}, {"rho": 1.0}, {"rate": float("nan")}])
def test_plans_that_cannot_be_are_refused(wrong):
    with pytest.raises(StudyError, match=next(iter(wrong))):
        planned(Effort(**wrong))
