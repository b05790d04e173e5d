"""Goldens of the Fréchet distance: closed forms, and values on which five implementations agree."""

import numpy as np
import pytest
import torch

from backbone.clip import cure_torchvision
from eval.frechet import Moments, frechet_distance, frechet_from_moments, frechet_terms, moments

cure_torchvision()


def gaussian(mean, cov):
    return Moments(n=2, mean=np.asarray(mean, float), scatter=np.asarray(cov, float))


@pytest.fixture(scope="module")
def golden():
    rng = np.random.RandomState(0)
    return rng.randn(2000, 64), rng.randn(2000, 64) * 1.5 + 0.25


@pytest.fixture(scope="module")
def few():
    rng = np.random.RandomState(1)
    return rng.randn(50, 256), rng.randn(50, 256)


def test_diagonal_covariances_have_a_closed_form():
    a = np.arange(1.0, 9)
    terms = frechet_from_moments(gaussian(np.full(8, 0.5), np.diag(a)), gaussian(np.zeros(8), np.diag(a + 1)))
    assert sum(terms) == pytest.approx(2.546993406920837, abs=1e-12)
    assert terms.mean == pytest.approx(2.0)


def test_covariances_that_do_not_commute():
    terms = frechet_from_moments(gaussian([0, 0], [[2, 1], [1, 3]]), gaussian([0, 0], [[5, -1], [-1, 1]]))
    assert sum(terms) == pytest.approx(2.0681979623372, abs=1e-11)


def test_golden_of_two_thousand_rows(golden):
    assert frechet_distance(*golden) == pytest.approx(21.69875717457, abs=1e-9)


def test_golden_with_float32_features_far_from_zero(golden):
    a, b = ((x + 1e3).astype(np.float32) for x in golden)
    assert frechet_distance(a, b) == pytest.approx(21.69875, abs=1e-4)


def test_golden_with_fewer_rows_than_columns(few):
    assert frechet_distance(*few) == pytest.approx(333.75430035, abs=1e-8)
    assert sum(frechet_from_moments(moments(few[0]), moments(few[1]))) == pytest.approx(333.75430035, abs=1e-4)


def test_both_routes_agree_where_one_side_is_short():
    rng = np.random.RandomState(2)
    a, b = rng.randn(20, 32), rng.randn(500, 32) * 2  # QR on one side
    assert frechet_distance(a, b) == pytest.approx(sum(frechet_from_moments(moments(a), moments(b))), abs=1e-5)


def test_distance_to_itself_is_zero_and_never_negative(golden, few):
    for x in (*golden, *few):
        assert 0 <= frechet_distance(x, x) < 1e-8


def test_mode_collapse_has_a_closed_form(few):
    x = few[0]
    assert frechet_distance(x, np.ones((50, 256))) == pytest.approx(509.1609271386, abs=1e-8)


def test_terms_tell_a_shift_from_lost_variety(golden):
    x = golden[0]
    shift, narrow = frechet_terms(x, x + 0.5), frechet_terms(x, (x - x.mean(0)) * 0.5 + x.mean(0))
    assert shift == pytest.approx((16.0, 0.0), abs=1e-9)
    assert narrow == pytest.approx((0.0, 0.25 * x.var(0, ddof=1).sum()), abs=1e-9)


def test_distance_is_symmetric(golden):
    assert frechet_distance(*golden) == pytest.approx(frechet_distance(*golden[::-1]), abs=1e-10)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_moments_of_batches_merge_to_those_of_the_whole(golden, batch):
    x, y = golden[0][:500] + 1e3, golden[1]
    parts = [moments(x[i : i + batch]) for i in range(0, 500, batch)]
    ranks = [parts[0::2], parts[1::2]]
    sums = [rank[0] for rank in ranks]
    for i, rank in enumerate(ranks):
        for part in rank[1:]:
            sums[i] = sums[i].merge(part)
    streamed, whole = sum(frechet_from_moments(sums[0].merge(sums[1]), moments(y))), frechet_distance(x, y)
    assert streamed == pytest.approx(whole, rel=1e-9)


def test_agrees_with_torchmetrics(golden):
    fid = pytest.importorskip("torchmetrics.image.fid")

    features = torch.nn.Identity()
    features.num_features = 64
    metric = fid.FrechetInceptionDistance(features)
    for x, real in zip(golden, (True, False), strict=True):
        metric.update(torch.from_numpy(x), real=real)
    assert float(metric.compute()) == pytest.approx(frechet_distance(*golden), abs=1e-9)


def test_agrees_with_torch_fidelity(golden):
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    statistics = [fidelity.fid_features_to_statistics(torch.from_numpy(x.astype(np.float32))) for x in golden]
    found = fidelity.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert found == pytest.approx(21.6987559, rel=1e-6)
    assert frechet_distance(*golden) == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.zeros((3, 2)), np.zeros((3, 4)), "widths 2 and 4"),
        (np.zeros(3), np.zeros((3, 4)), r"\(n, d\)"),
        (np.zeros((1, 4)), np.zeros((3, 4)), "1 rows"),
        (np.zeros((3, 4)), np.full((3, 4), np.nan), "second .* 3 rows with NaN"),
    ],
)
def test_bad_features_are_named(a, b, words):
    with pytest.raises(ValueError, match=words):
        frechet_distance(a, b)
