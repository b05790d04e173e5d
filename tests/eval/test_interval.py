from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from eval.interval import (
    Interval,
    cluster_bootstrap,
    ends,
    jackknife,
    mean_interval,
    paired,
    share_interval,
    wilson,
    wilson_of,
)


def width(interval: Interval) -> float:
    return interval.high - interval.low


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (7, 7), (1, 500), (333, 500)])
def test_wilson_agrees_with_scipy(successes, n):
    oracle = stats.binomtest(successes, n).proportion_ci(method="wilson")
    found = wilson(successes, n)
    assert [found.low, found.high] == pytest.approx([oracle.low, oracle.high], abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="share"):
        wilson(successes, n)


def test_mean_interval_is_students_t():
    x = np.random.RandomState(0).randn(40)
    found = mean_interval(x)
    oracle = stats.ttest_1samp(x, 0).confidence_interval()
    assert [found.low, found.high] == pytest.approx([oracle.low, oracle.high], abs=1e-12)


def test_one_value_has_no_finite_interval():
    assert mean_interval([3.0]) == Interval(3.0, -np.inf, np.inf, 1)


def test_bootstrap_agrees_with_students_t_on_independent_values():
    x = np.random.RandomState(1).randn(400)
    assert width(cluster_bootstrap(x, range(400))) == pytest.approx(width(mean_interval(x)), rel=0.06)


def test_repeated_votes_of_a_prompt_add_no_certainty():
    x = np.random.RandomState(2).rand(100) < 0.6
    once, votes, prompts = wilson(x.sum(), 100), np.repeat(x, 5), np.repeat(np.arange(100), 5)
    clustered, naive = share_interval(votes, prompts), share_interval(votes)
    assert width(clustered) == pytest.approx(width(once), rel=0.1)
    assert width(naive) < 0.5 * width(once)  # what happens when the clusters are forgotten
    assert clustered.n == 100


def test_bootstrap_is_a_function_of_its_seed():
    x, prompts = np.random.RandomState(3).rand(60), np.repeat(np.arange(20), 3)
    assert mean_interval(x, prompts, seed=4) == mean_interval(x, prompts, seed=4)
    assert mean_interval(x, prompts, seed=4) != mean_interval(x, prompts, seed=5)


def test_cluster_names_do_not_matter():
    x = np.random.RandomState(3).rand(6)
    assert mean_interval(x, list("bbaacc")) == mean_interval(x, [7, 7, 1, 1, 3, 3])


def test_all_right_keeps_a_lower_end_below_one():
    found = share_interval([True] * 20, np.repeat(np.arange(10), 2))
    assert (found.low, found.high) == (wilson(10, 10).low, 1.0)
    assert found.low < 0.75


def test_single_prompts_get_wilson():
    assert share_interval([1, 1, 0], ["a", "b", "c"]) == wilson(2, 3)


def test_ratio_weights_totals():
    found = cluster_bootstrap([2.0, 6.0], ["a", "b"], weights=[1, 3])
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_few_clusters_have_students_t_and_empty_texts_no_infinite_end():
    x = [1.0, 2.0, 4.0, 5.0]
    assert asdict(cluster_bootstrap(x, range(4))) == pytest.approx(asdict(mean_interval(x)), rel=1e-12)
    found = cluster_bootstrap(
        [0.0] * 15 + [5.0], range(16), weights=[0.0] * 15 + [1.0]
    )  # a third of the draws is 0 / 0
    assert np.isfinite([found.low, found.high]).all()
    with pytest.raises(ValueError, match="have the sum 0, expected one above 0"):
        cluster_bootstrap([1.0, 2.0], [0, 1], weights=[0.0, 0.0])


def test_pairing_removes_what_both_share():
    rng = np.random.RandomState(5)
    difficulty = rng.randn(200)
    a, b = difficulty + 0.1 * rng.randn(200) + 0.05, difficulty + 0.1 * rng.randn(200)
    assert paired(a, b).low > 0
    assert width(paired(a, b)) < 0.2 * width(paired(a, rng.permutation(b)))  # the twin that lost its pairs


def test_the_jackknife_of_a_mean_is_students_t():
    x = np.random.RandomState(3).randn(40)
    found, expected = jackknife(x.mean(), [np.delete(x, i).mean() for i in range(40)]), mean_interval(x)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert found.n == 40 and np.isinf(jackknife(1.0, [0.0]).high)


def test_bad_values_are_refused():
    for values, clusters, words in [
        ([], None, "at least one"),
        ([np.nan, 1], None, "finite"),
        ([1, 2], ["a"], "cluster ids"),
        (["1", "2"], ["a"], "cluster ids"),
    ]:
        with pytest.raises(ValueError, match=words):
            mean_interval(values, clusters)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        share_interval([0.5, 2])
    with pytest.raises(ValueError, match="equal lengths"):
        paired([1, 2], [1])


def votes(rng, prompts, mean, kind):
    """Three votes on each prompt, (prompts, 3): shares that differ by prompt, or values with a prompt's own part."""
    if kind == "share":
        return 1.0 * (rng.rand(prompts, 3) < rng.beta(2 * mean, 2 * (1 - mean), (prompts, 1)))
    return mean + rng.randn(prompts, 1) + rng.randn(prompts, 3)


@pytest.mark.parametrize("prompts", [20, 50])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
def test_clustered_shares_are_covered_where_percentiles_miss_those_near_one(prompts, share):
    rng = np.random.RandomState(6)
    drawn, ids = [votes(rng, prompts, share, "share") for _ in range(300)], np.repeat(np.arange(prompts), 3)
    found = [share_interval(x.ravel(), ids) for x in drawn]
    assert sum(one.low <= share <= one.high for one in found) >= stats.binom.ppf(0.005, 300, 0.95)
    if (prompts, share) == (50, 0.97):
        percentiles = [np.quantile(rng.choice(x.mean(1), (400, 50)).mean(1), [0.025, 0.975]) for x in drawn]
        assert sum(low <= share <= high for low, high in percentiles) < stats.binom.ppf(0.005, 300, 0.95)


def test_bootstraps_over_few_prompts_cover_where_plain_percentiles_do_not():
    rng = np.random.RandomState(7)
    drawn, ids = [votes(rng, 10, 1.0, "mean") for _ in range(400)], np.repeat(np.arange(10), 3)
    found = [mean_interval(x.ravel(), ids) for x in drawn]
    assert sum(one.low <= 1 <= one.high for one in found) >= stats.binom.ppf(0.005, 400, 0.95)
    plain = [np.quantile(rng.choice(x.mean(1), (400, 10)).mean(1), [0.025, 0.975]) for x in drawn]
    assert sum(low <= 1 <= high for low, high in plain) < stats.binom.ppf(0.005, 400, 0.95)


def test_ends_are_expanded_as_students_t_and_one_unit_has_none():
    drawn = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000) * np.sqrt(9 / 10)  # means of ten, as a bootstrap sees
    assert ends(drawn, 10) == pytest.approx((-stats.t.ppf(0.975, 9), stats.t.ppf(0.975, 9)), rel=0.01)
    assert ends(np.array([1.0]), 1) == (-np.inf, np.inf)
    assert cluster_bootstrap([1.0, 2.0], ["a", "a"]) == Interval(1.5, -np.inf, np.inf, 1, 1)
    assert share_interval([1.0, 0.0], ["a", "a"]) == Interval(0.5, -np.inf, np.inf, 1)


def test_values_that_stand_alone_have_plain_wilson_and_twice_the_variance_half_the_count():
    assert wilson_of(0.3, 0.3 * 0.7 / 100, 100) == wilson(30, 100)
    assert wilson_of(0.3, 0.0, 100) == wilson(30, 100)  # never more certain than independent values
    twice = wilson_of(0.5, 2 * 0.25 / 100, 100)
    assert (twice.low, twice.high) == pytest.approx((wilson(25, 50).low, wilson(25, 50).high))
