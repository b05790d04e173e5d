"""The KL term carved up: closed forms, torch.distributions and enumeration as oracles, all in float64."""

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from eval.interval import mean_interval
from eval.surgery import channel_surgery, mean_surgery, some_positions, surgery, unit_variance


def drawn(mean, log_var, seed=99):
    """Samples of the posteriors and their log-density under N(0, I), summed over all but the first axis."""
    z = mean + np.exp(log_var / 2) * np.random.default_rng(seed).standard_normal(mean.shape)
    return z, standard(z).reshape(len(z), -1).sum(1)


def standard(z):
    return -0.5 * (np.log(2 * np.pi) + z**2)


def posteriors(n=40, shape=(5,), seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1.5, (n, *shape)), rng.normal(-1, 1, (n, *shape))


@pytest.mark.parametrize("shape", [(5,), (2, 3, 2)])
def test_the_terms_are_those_of_torch_distributions(shape, monkeypatch):
    monkeypatch.setattr("eval.surgery.PAIRS", 7 * 40)  # in several pieces, the last one shorter
    mean, log_var = posteriors(shape=shape)
    z, log_prior = drawn(mean, log_var)
    found = surgery(mean, log_var, z, log_prior)
    m, s, x = (torch.from_numpy(part.reshape(40, -1)) for part in (mean, np.exp(log_var / 2), z))
    each = Independent(Normal(m, s), 1)
    mixture = MixtureSameFamily(Categorical(torch.ones(40, dtype=torch.float64)), each).log_prob(x).numpy()
    own = each.log_prob(x).numpy()
    assert found.kl == pytest.approx(own - log_prior, abs=1e-10)
    assert found.mutual_information == pytest.approx(own - mixture, abs=1e-10)
    assert found.marginal_kl == pytest.approx(mixture - log_prior, abs=1e-10)


def test_the_identity_holds_for_every_item_and_any_prior():
    mean, log_var = posteriors()
    z, _ = drawn(mean, log_var)
    learned = np.random.default_rng(3).normal(-9, 2, 40)  # any density of a prior that was learned
    found = surgery(mean, log_var, z, learned)
    assert found.mutual_information + found.marginal_kl == pytest.approx(found.kl, abs=1e-12)


def test_the_kl_is_that_of_gaussians_in_closed_form():
    mean, log_var = posteriors(n=4000)
    found = mean_interval(surgery(mean, log_var, *drawn(mean, log_var)).kl)
    exact = ((mean**2 + np.exp(log_var) - 1 - log_var) / 2).sum(1).mean()
    assert abs(found.value - exact) < 4 * (found.high - found.low) / 3.92 and found.high - found.low < 0.2 * exact


def test_equal_posteriors_hold_no_information_and_all_that_is_paid_is_the_prior():
    mean, log_var = np.full((60, 4), 1.5), np.full((60, 4), -2.0)
    found = surgery(mean, log_var, *drawn(mean, log_var))
    assert found.mutual_information == pytest.approx(np.zeros(60), abs=1e-12)
    assert found.marginal_kl == pytest.approx(found.kl, abs=1e-12)


@pytest.mark.parametrize("n", [2, 64, 1000])
def test_posteriors_far_apart_hold_log_n_and_never_more(n):
    mean = np.random.default_rng(1).permutation(n)[:, None] * np.array([[40.0, 0.0, -40.0]])
    log_var = np.full((n, 3), -20.0)  # as narrow as a posterior of stage one may be
    found = surgery(mean, log_var, *drawn(mean, log_var))
    assert found.mutual_information == pytest.approx(np.full(n, np.log(n)), abs=1e-9)
    crowded = surgery(mean / 400, np.full((n, 3), 1.0), *drawn(mean / 400, np.full((n, 3), 1.0)))
    assert (crowded.mutual_information <= np.log(n)).all() and crowded.mutual_information.mean() < np.log(n)


def test_two_values_and_two_posteriors_are_those_of_an_enumeration():
    """x is 0 or 1; z lies at -m or m but for noise that is too small to matter: a table of four probabilities."""
    side = np.array([-1.0, 1.0] * 500)[:, None]  # half of the items share each posterior
    log_var = np.full((1000, 1), -12.0)
    found = surgery(side, log_var, *drawn(side, log_var))
    assert found.mutual_information == pytest.approx(np.full(1000, np.log(2)), abs=1e-9)


def test_a_linear_gaussian_model_has_the_terms_of_its_closed_form():
    """Means N(0, a^2) and variance v: q(z) = N(0, a^2 + v), MI = log(1 + a^2 / v) / 2."""
    a, v, n = 0.8, 0.25, 4000
    mean = np.random.default_rng(5).normal(0, a, (n, 1))
    log_var = np.full((n, 1), np.log(v))
    found = surgery(mean, log_var, *drawn(mean, log_var, 6))
    total = a**2 + v
    exact = {"mutual_information": np.log(total / v) / 2, "marginal_kl": (total - 1 - np.log(total)) / 2}
    for name, value in exact.items():
        interval = mean_interval(getattr(found, name), seed=0)
        assert abs(interval.value - value) < 1.5 * (interval.high - interval.value) + 1e-3, name
        assert interval.high - interval.low < 0.06, name


def test_the_interval_over_items_covers_the_truth_as_often_as_it_says():
    """The mixture shares the items, and that it does must not make the intervals too narrow."""
    a, v, n, hits = 1.0, 0.3, 300, 0
    exact = ((a**2 + v) - 1 - np.log(a**2 + v)) / 2
    for seed in range(200):
        mean, log_var = np.random.default_rng((7, seed)).normal(0, a, (n, 1)), np.full((n, 1), np.log(v))
        found = mean_interval(surgery(mean, log_var, *drawn(mean, log_var, seed)).marginal_kl)
        hits += found.low <= exact <= found.high
    assert 178 <= hits <= 200  # 190 are expected, and 3.9 deviations below is 178


def test_a_channel_is_the_surgery_of_its_values_one_by_one():
    mean, log_var = posteriors(n=6, shape=(9,))
    z, _ = drawn(mean, log_var)
    found = channel_surgery(mean, log_var, z, standard(z))
    flat = surgery(mean.reshape(-1, 1), log_var.reshape(-1, 1), z.reshape(-1, 1), standard(z).ravel())
    assert found.mutual_information == pytest.approx(flat.mutual_information.reshape(6, 9).mean(1), abs=1e-12)
    assert found.kl == pytest.approx(found.mutual_information + found.marginal_kl, abs=1e-12)
    assert found.kl.shape == (6,)


def test_channels_average_item_by_item():
    mean, log_var = posteriors(n=6, shape=(2, 9))
    z, _ = drawn(mean, log_var)
    each = [channel_surgery(mean[:, c], log_var[:, c], z[:, c], standard(z[:, c])) for c in range(2)]
    found = mean_surgery(each)
    assert found.kl == pytest.approx((each[0].kl + each[1].kl) / 2)
    assert found.kl == pytest.approx(found.mutual_information + found.marginal_kl, abs=1e-12)


def test_a_unit_is_active_by_its_items_and_not_by_its_positions():
    rng = np.random.default_rng(0)
    mean = np.zeros((4000, 3, 2, 2))
    mean[:, 0] = rng.normal(0, 0.5, (4000, 2, 2))
    mean[:, 1] = np.arange(4).reshape(2, 2)  # the same in every picture
    found = unit_variance(mean)
    assert found == pytest.approx([0.25, 0, 0], abs=0.01)
    assert mean[:, 1].var() > 1  # the twin that pools positions would call it active
    assert unit_variance(mean[:, :, 0, 0]) == pytest.approx(mean[:, :, 0, 0].var(0, ddof=1))


def test_positions_are_drawn_without_repeats_and_within_the_budget():
    few = some_positions(np.zeros((50, 4, 3, 5)), 330, 0)
    assert few.shape == (50, 1, 6) and few.min() >= 0 and few.max() <= 14
    assert all(len(set(row.ravel())) == 6 for row in few) and len({tuple(row.ravel()) for row in few}) > 25
    assert np.array_equal(some_positions(np.zeros((2, 4, 3, 5)), 10**6, 0)[1, 0], np.arange(15))
    assert some_positions(np.zeros((50, 4, 3, 5)), 1, 0).shape == (50, 1, 1)


def test_what_cannot_be_carved_is_refused():
    good = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"\(3, 2\), \(3, 2\), \(3, 1\), \(3,\)"):
        surgery(good, good, good[:, :1], np.zeros(3))
    with pytest.raises(ValueError, match="log_var holds NaN"):
        surgery(good, good * np.nan, good, np.zeros(3))
    with pytest.raises(ValueError, match="at least two items"):
        unit_variance(good[:1])
    with pytest.raises(ValueError, match=r"four times"):
        channel_surgery(good, good, good, np.zeros(3))
