import numpy as np
import pytest
import torch
from scipy import stats

from backbone.clip import cure_torchvision
from eval import selftest
from eval.interval import Interval
from eval.kernel import cmmd, cmmd_interval, kid, kid_interval, kid_subsets

cure_torchvision()


@pytest.fixture(scope="module")
def golden():
    x, y = selftest.wide()
    return x, y[:500]


def error(found: Interval, blocks: int = 10) -> float:
    """The jackknife's standard error, from the ends of its interval."""
    return (found.high - found.low) / 2 / float(stats.t.ppf(0.975, blocks - 1))


def test_agrees_with_torch_fidelity(golden):
    fidelity = pytest.importorskip("torch_fidelity.metric_kid")
    a, b = golden[0][:500], golden[1]
    found = fidelity.kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=1, kid_subset_size=500, verbose=False
    )
    assert kid(a, b) == pytest.approx(found["kernel_inception_distance_mean"], abs=1e-12)


def test_subsets_are_those_of_torch_fidelity(golden):
    fidelity = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = golden[0], golden[1]
    found = kid_subsets(x, y, subsets=7, subset_size=60)
    oracle = fidelity.kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=7, kid_subset_size=60, verbose=False
    )
    assert found.mean() == pytest.approx(oracle["kernel_inception_distance_mean"], abs=1e-12)
    assert found.std() == pytest.approx(oracle["kernel_inception_distance_std"], abs=1e-12)
    assert found.std() < 60**0.5 * error(kid_interval(x, y))


def test_a_subset_larger_than_a_set_names_the_argument(golden):
    with pytest.raises(ValueError, match=r"subset_size=501 .* 2 <= subset_size <= 500.*lower subset_size"):
        kid_subsets(*golden, subset_size=501)


def test_cmmd_is_of_directions_and_little_but_a_shift_of_their_mean(golden):
    a, b = golden[0][:500], golden[1]
    assert cmmd(7 * a, b / 3) == pytest.approx(cmmd(a, b), abs=1e-9)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    assert 10 * ((unit[0].mean(0) - unit[1].mean(0)) ** 2).sum() == pytest.approx(cmmd(a, b), rel=0.02)


def test_cmmd_keeps_the_diagonal_in_blocks_too(golden, monkeypatch):
    x, b = golden
    whole = cmmd(x[:150], b)
    monkeypatch.setattr("eval.kernel.ROWS", 37)
    assert cmmd(x[:150], b) == pytest.approx(whole, abs=1e-9)
    assert cmmd(x[:150], x[:150]) == pytest.approx(0, abs=1e-10)
    with pytest.raises(ValueError, match="1 rows of features have length zero"):
        cmmd(x[:3], np.concatenate([x[:2], 0 * x[:1]]))


def test_kernel_matrix_in_blocks_equals_the_whole(monkeypatch):
    rng = np.random.RandomState(3)
    monkeypatch.setattr("eval.kernel.ROWS", 400)
    x, y = rng.randn(1500, 8), rng.randn(1300, 8) + 0.1  # more rows than one block, unequal sets
    xx, yy, xy = ((a @ b.T / 8 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    for k in (xx, yy):
        np.fill_diagonal(k, 0)
    whole = xx.sum() / (1500 * 1499) + yy.sum() / (1300 * 1299) - 2 * xy.mean()
    assert kid(x, y) == pytest.approx(whole, abs=1e-12)


def test_interval_covers_the_true_distance_of_nought():
    rng = np.random.RandomState(4)
    hits = 0
    for _ in range(100):
        found = kid_interval(rng.randn(200, 4), rng.randn(200, 4))
        hits += found.low <= 0 <= found.high
    assert hits >= 90


def test_standard_error_has_the_size_of_the_spread():
    rng = np.random.RandomState(5)
    found = [kid_interval(rng.randn(200, 4), rng.randn(200, 4) + 0.5) for _ in range(100)]
    assert np.mean([error(f) for f in found]) == pytest.approx(np.std([f.value for f in found]), rel=0.4)


def test_interval_is_not_wider_than_the_estimate_deserves():
    """Between sets of one law the spread falls with n, not with its root: block estimates would be far too wide."""
    rng = np.random.RandomState(6)
    found = [kid_interval(rng.randn(200, 4), rng.randn(200, 4)) for _ in range(100)]
    spread = np.std([f.value for f in found])
    assert spread < np.mean([error(f) for f in found]) < 2 * spread


def test_unequal_sets_keep_every_row():
    rng = np.random.RandomState(7)
    x, y = rng.randn(47, 3), rng.randn(101, 3)  # neither divides into ten
    values = [kid_interval(x, y, blocks=blocks).value for blocks in (2, 5, 10)]
    assert values == pytest.approx([values[0]] * 3, abs=1e-12)


def test_too_many_blocks_name_the_argument(golden):
    with pytest.raises(ValueError, match="blocks=251"):
        kid_interval(golden[0][:500], golden[1], blocks=251)
    with pytest.raises(ValueError, match="blocks=10"):
        kid_interval(golden[0][:3], golden[1])


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_the_interval_of_cmmd_covers_its_mean_at_this_size(shift):
    rng = np.random.RandomState(8)

    def draw():
        return cmmd_interval(rng.randn(100, 16) + 1, rng.randn(120, 16) + 1 + shift)

    mean = np.mean([draw().value for _ in range(400)])
    found = [draw() for _ in range(200)]
    assert sum(one.low <= mean <= one.high for one in found) >= stats.binom.ppf(0.005, 200, 0.95)
    half = np.mean([(one.high - one.low) / 2 for one in found]) / stats.t.ppf(0.975, 9)
    assert half < 1.8 * np.std([one.value for one in found])
    assert found[0].n == 100
    x, y = rng.randn(60, 4) + 1, rng.randn(50, 4) + 2
    assert cmmd_interval(x, y).value == pytest.approx(cmmd(x, y), abs=1e-9)
    with pytest.raises(ValueError, match="blocks=30"):
        cmmd_interval(x, y, blocks=30)
