"""Laws of the Fréchet distance, and implementations with which it agrees; its goldens are in eval.selftest."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from backbone.clip import cure_torchvision
from eval import selftest
from eval.frechet import frechet_distance, frechet_interval, frechet_terms, moments, rank_note
from tests.eval.streamed import sets

cure_torchvision()

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def golden():
    return selftest.wide()


@pytest.fixture(scope="module")
def few():
    return selftest.few()


def test_moments_of_fewer_rows_than_columns_lose_few_digits(few):
    assert sum(frechet_terms(moments(few[0]), moments(few[1]))) == pytest.approx(frechet_distance(*few), abs=1e-4)


def test_both_routes_agree_where_one_side_is_short():
    rng = np.random.RandomState(2)
    a, b = rng.randn(20, 32), rng.randn(500, 32) * 2  # QR on one side
    assert frechet_distance(a, b) == pytest.approx(sum(frechet_terms(moments(a), moments(b))), abs=1e-5)


def test_columns_that_lack_rank_are_worth_what_the_rest_is(golden):
    a, b = golden
    dead = [np.column_stack([x, np.full(len(x), 3.0)]) for x in golden]  # as a unit that never fires
    assert frechet_distance(*dead) == pytest.approx(frechet_distance(a, b), abs=1e-9)
    assert frechet_distance(dead[0], dead[0]) < 1e-9
    twice = [np.column_stack([x, x[:, :5]]) for x in golden]  # rounding may hide this one from a Cholesky factor
    exact = frechet_distance(twice[0][:, :64], twice[1][:, :64]) + frechet_distance(a[:, :5], b[:, :5])
    assert frechet_distance(*twice) == pytest.approx(exact, rel=0.02)  # the copies share their spread
    assert frechet_terms(moments(dead[0]), dead[1]) == pytest.approx(frechet_terms(*dead), abs=1e-4)


def test_badly_conditioned_covariances_keep_their_digits():
    rng = np.random.RandomState(3)
    scales = np.logspace(0, -6, 40)  # covariances with condition 1e12
    a, b = rng.randn(500, 40) * scales, rng.randn(500, 40) * scales + scales
    roots = [np.linalg.qr((x - x.mean(0)) / np.sqrt(499), mode="r") for x in (a, b)]
    nuclear = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    exact = ((a.mean(0) - b.mean(0)) ** 2).sum() + a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum() - 2 * nuclear
    assert frechet_distance(a, b) == pytest.approx(exact, abs=1e-7)


def test_features_and_moments_may_be_mixed(golden):
    a, b = golden
    whole = frechet_distance(a, b)
    for left in (a, moments(a)):
        for right in (b, moments(b)):
            assert frechet_distance(left, right) == pytest.approx(whole, abs=1e-10)


def test_distance_to_itself_is_zero_and_never_negative(golden, few):
    for x in (*golden, *few):
        assert 0 <= frechet_distance(x, x) < 1e-8


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
    streamed, whole = sum(frechet_terms(sums[0].merge(sums[1]), moments(y))), frechet_distance(x, y)
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


@pytest.mark.parametrize(("shift", "most"), [(0.3, 98), (0.0, 100)])
def test_the_jackknife_covers_the_mean_distance_at_this_size(shift, most):
    """Where both sets follow one law the distance has no first derivative: its interval is too wide, not wrong."""
    rng = np.random.RandomState(4)

    def draw():
        return rng.randn(300, 6), rng.randn(200, 6) + shift

    mean = np.mean([frechet_distance(*draw()) for _ in range(800)])
    found = [frechet_interval(*draw()) for _ in range(100)]
    hits = 100 * np.mean([one.low <= mean <= one.high for one in found])
    assert 88 <= hits <= most
    assert found[0].n == 200


def test_rows_drawn_with_replacement_would_raise_the_distance():
    """Why there is no bootstrap: its distances lie above that of the sample, the jackknife's centre does not."""
    rng = np.random.RandomState(5)
    a, b = rng.randn(200, 20), rng.randn(200, 20)
    drawn = [frechet_distance(a[rng.randint(0, 200, 200)], b[rng.randint(0, 200, 200)]) for _ in range(50)]
    value = frechet_distance(a, b)
    assert np.quantile(drawn, 0.025) > value
    found = frechet_interval(a, b)
    assert found.low < value < found.high


def test_short_sets_are_marked():
    assert rank_note(2049, 5000, 2048) == ""
    assert "2048 rows for 2048 dimensions" in rank_note(2048, 5000, 2048)


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


def test_bad_moments_and_blocks_are_named(few):
    with pytest.raises(ValueError, match="widths 4 and 5"):
        frechet_distance(moments(np.eye(4)), moments(np.eye(5)))
    with pytest.raises(ValueError, match="moments of 1 rows"):
        frechet_distance(moments(np.ones((1, 4))), np.eye(4))
    with pytest.raises(ValueError, match="blocks=1 must be at least 2"):
        frechet_interval(*few, blocks=1)


def test_small_sets_have_wide_intervals_or_none(few):
    x, y = (side[:, :2] for side in few)
    assert np.isfinite(frechet_interval(x[:7], y).low)
    assert np.isinf(frechet_interval(x[:3], y).low)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_moments_of_two_processes_merge_to_those_of_one(batch):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.eval.streamed"]
    done = subprocess.run(
        [sys.executable, *launcher, str(batch)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        capture_output=True, timeout=300, check=True,
    )  # fmt: skip
    processes, rows, found = done.stdout.split()[-3:]
    assert (processes, rows) == ("2", "203")  # the last, shorter batch too
    assert float(found) == pytest.approx(frechet_distance(*sets()), rel=1e-9)
