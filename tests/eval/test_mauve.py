import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import beta, rel_entr
from sklearn.decomposition import PCA

from eval.mauve import divergence_frontier, frontier_integral, kmeans, mauve, mauve_of, principal, smooth
from eval.selftest import EVEN, SKEWED

P, Q = SKEWED, EVEN


@pytest.fixture(scope="module")
def gaussians():
    rng = np.random.RandomState(0)
    return rng.randn(300, 16), rng.randn(300, 16)


@pytest.mark.parametrize("c", [1, 3, 5])
def test_area_of_disjoint_histograms_tends_to_a_beta_function(c):
    assert mauve_of([2, 1, 0], [0, 0, 5], scale=c, points=20001) == pytest.approx(c * beta(c + 1, c), abs=1e-7)


def test_frontier_integral_of_disjoint_and_of_equal_histograms():
    assert frontier_integral([1, 0], [0, 1]) == 1
    assert frontier_integral(Q, Q) == 0


def test_frontier_integral_is_its_integral():
    rng = np.random.RandomState(1)
    for _ in range(20):
        p, q = rng.dirichlet(np.full(6, 0.3)), rng.dirichlet(np.full(6, 0.3))

        def cost(w, p=p, q=q):
            r = w * p + (1 - w) * q
            return w * rel_entr(p, r).sum() + (1 - w) * rel_entr(q, r).sum()

        assert frontier_integral(p, q) == pytest.approx(2 * quad(cost, 0, 1)[0], abs=1e-7)


def test_frontier_of_exchanged_histograms_is_the_mirrored_one():
    rng = np.random.RandomState(2)
    p, q = rng.dirichlet(np.ones(8)), rng.dirichlet(np.ones(8))
    found, mirrored = divergence_frontier(p, q), divergence_frontier(q, p)[::-1, ::-1]
    np.testing.assert_allclose(found, mirrored, atol=1e-12)
    assert found.shape == (27, 2)
    assert (np.diff(found[:, 0]) < 0).all() and (np.diff(found[:-1, 1]) > 0).all()
    assert mauve_of(p, q) == pytest.approx(mauve_of(q, p), abs=1e-12)


def test_larger_scale_separates_more():
    areas = [mauve_of(P, Q, scale=c) for c in (0.5, 1, 2, 5, 10)]
    assert areas == sorted(areas, reverse=True)


def test_counts_and_shares_are_one_histogram():
    assert mauve_of([5, 3, 2, 0], [7, 7, 7, 7]) == pytest.approx(mauve_of(P, Q), abs=1e-12)
    assert frontier_integral([5, 3, 2, 0], [7, 7, 7, 7]) == pytest.approx(frontier_integral(P, Q), abs=1e-12)


def test_smoothing_adds_half_a_count_to_every_cluster():
    np.testing.assert_allclose(smooth([3, 0, 1]), [3.5 / 5.5, 0.5 / 5.5, 1.5 / 5.5])
    assert mauve_of(smooth([9, 1, 0]), smooth([0, 1, 9])) > mauve_of([9, 1, 0], [0, 1, 9])


def test_smoothed_estimate_is_nearer_the_truth_for_few_draws():
    rng = np.random.RandomState(3)
    p, q = rng.dirichlet(np.ones(50)), rng.dirichlet(np.ones(50))
    draws = [(rng.multinomial(500, p), rng.multinomial(500, q)) for _ in range(50)]
    plain = np.mean([mauve_of(a, b) for a, b in draws])
    star = np.mean([mauve_of(smooth(a), smooth(b)) for a, b in draws])
    assert abs(star - mauve_of(p, q)) < abs(plain - mauve_of(p, q))


def test_a_set_against_itself_scores_one(gaussians):
    found = mauve(gaussians[0], gaussians[0], embedder="g")
    assert found.mauve.mean == pytest.approx(1, abs=1e-12)
    assert found.smoothed.mean == pytest.approx(1, abs=1e-12)
    assert found.frontier_integral.high == pytest.approx(0, abs=1e-12)


def test_two_samples_of_one_law_score_high_but_below_one(gaussians):
    found = mauve(*gaussians, embedder="g")
    assert 0.9 < found.mauve.mean < 1
    assert found.mauve.low <= found.mauve.mean <= found.mauve.high
    assert found.mauve.sd > 0  # one seed is not the figure


def test_a_shift_lowers_every_figure_in_order(gaussians):
    x, y = gaussians
    found = [mauve(x, y + shift, embedder="g") for shift in (0, 0.25, 0.5, 1, 2)]
    for values in ([f.mauve.mean for f in found], [f.smoothed.mean for f in found]):
        assert (np.diff(values) < 0).all()
    assert (np.diff([f.frontier_integral.mean for f in found]) > 0).all()


def test_features_that_share_no_cluster_score_the_least(gaussians):
    x, y = gaussians
    found = mauve(x + 8, y - 8, embedder="g")  # opposite directions
    assert found.mauve.high == pytest.approx(0.00407210, abs=5e-9)
    assert found.frontier_integral.low == 1


def test_lost_modes_are_seen():
    rng = np.random.RandomState(4)
    modes = rng.randn(20, 16) * 3
    x, y, few = (modes[rng.randint(0, kept, 400)] + 0.1 * rng.randn(400, 16) for kept in (20, 20, 10))
    assert mauve(x, few, embedder="g").mauve.high < mauve(x, y, embedder="g").mauve.low


def test_order_of_rows_and_of_sets_changes_nothing(gaussians):
    x, y = gaussians
    rng = np.random.RandomState(5)
    found = mauve(x, y, embedder="g")
    assert mauve(rng.permutation(x), rng.permutation(y), embedder="g") == found
    exchanged = mauve(y, x, embedder="g")
    assert exchanged.mauve.mean == pytest.approx(found.mauve.mean, abs=1e-12)
    assert exchanged.frontier_integral.sd == pytest.approx(found.frontier_integral.sd, abs=1e-12)


def test_length_of_features_does_not_count(gaussians):
    x, y = gaussians
    scaled = mauve(x * 2.0 ** np.random.RandomState(6).randint(-3, 4, (300, 1)), y, embedder="g")
    assert scaled == mauve(x, y, embedder="g")


def test_single_precision_goes_in_and_double_comes_out(gaussians):
    x, y = (z.astype(np.float32) for z in gaussians)
    assert mauve(x, y, embedder="g") == mauve(x.astype(np.float64), y.astype(np.float64), embedder="g")
    assert principal(x, np.ones(300)).dtype == np.float64
    assert smooth(np.array([1, 2], np.float32)).dtype == np.float64


def test_label_names_what_the_figure_hangs_on(gaussians):
    x, y = gaussians
    found = mauve(x, y[:95], embedder="own-ar:1a2b3c4d")
    assert found.label() == "mauve[own-ar:1a2b3c4d|k=10|n=300/95]"  # a tenth of the smaller set, 9.5, is rounded
    assert found.label("frontier_integral") == "frontier_integral[own-ar:1a2b3c4d|k=10|n=300/95]"
    assert found.mauve.interval().n == 5
    assert mauve(x, y, embedder="g", clusters=7, seeds=[3]).k == 7
    assert math.isnan(mauve(x, y, embedder="g", seeds=[3]).mauve.sd)


def test_repeated_texts_leave_no_more_clusters_than_texts():
    rng = np.random.RandomState(7)
    captions = rng.randn(6, 8)
    a, b = rng.randint(0, 6, 200), rng.randint(0, 5, 120)  # the last one is lost
    found = mauve(captions[a], captions[b], embedder="g")
    assert found.k == 6
    p, q = np.bincount(a, minlength=6), np.bincount(b, minlength=6)
    for spread, exact in (
        (found.mauve, mauve_of(p, q)),
        (found.smoothed, mauve_of(smooth(p), smooth(q))),
        (found.frontier_integral, frontier_integral(p, q)),
    ):
        assert (spread.low, spread.high) == pytest.approx((exact, exact), abs=1e-12)
    one = mauve(captions[:1].repeat(30, 0), captions[:1].repeat(30, 0), embedder="g")
    assert (one.k, one.mauve.mean) == (1, 1)


def test_principal_scores_keep_the_distances_that_scikit_learn_keeps():
    rng = np.random.RandomState(8)
    x, weights = rng.randn(60, 10) * np.arange(1, 11), rng.randint(1, 4, 60)
    whole = np.repeat(x, weights, 0)
    oracle = PCA(n_components=0.9, svd_solver="full").fit(whole).transform(x)
    found = principal(x, weights)
    assert found.shape == oracle.shape and found.shape[1] < 10
    np.testing.assert_allclose(found @ found.T, oracle @ oracle.T, atol=1e-9)


def test_clusters_are_nearest_to_their_own_weighted_mean():
    rng = np.random.RandomState(9)
    x, weights = rng.randn(200, 5), rng.randint(1, 4, 200)
    codes = kmeans(x, weights, 8, np.random.default_rng(0))
    assert set(codes) == set(range(8))
    means = np.stack([np.average(x[codes == i], axis=0, weights=weights[codes == i]) for i in range(8)])
    nearest = ((x[:, None] - means) ** 2).sum(2).argmin(1)
    np.testing.assert_array_equal(codes, nearest)


def test_separate_blobs_are_found_whole():
    rng = np.random.RandomState(10)
    truth = rng.randint(0, 5, 200)
    x = 50 * np.eye(5)[truth] + rng.randn(200, 5)
    codes = kmeans(x, np.ones(200, int), 5, np.random.default_rng(1))
    assert len(set(zip(truth, codes, strict=True))) == 5


def test_refusals_say_value_expectation_and_remedy(gaussians):
    x, y = gaussians
    with pytest.raises(ValueError, match=r"got 19 texts .* at least 20.*sample more"):
        mauve(x[:19], y, embedder="g")
    with pytest.raises(ValueError, match=r"widths 16 and 15.*one embedder"):
        mauve(x, y[:, :15], embedder="g")
    with pytest.raises(ValueError, match=r"clusters=301 needs 2 <= clusters <= 300"):
        mauve(x, y, embedder="g", clusters=301)
    with pytest.raises(ValueError, match=r"seeds is empty"):
        mauve(x, y, embedder="g", seeds=[])
    with pytest.raises(ValueError, match=r"1 rows .* length zero.*check the embedder"):
        mauve(np.concatenate([x, np.zeros((1, 16))]), y, embedder="g")
    with pytest.raises(ValueError, match=r"one shape .*\(2,\) and \(3,\)"):
        mauve_of([1, 1], [1, 1, 1])
    with pytest.raises(ValueError, match=r"sum above 0"):
        frontier_integral([0, 0], [1, 1])
