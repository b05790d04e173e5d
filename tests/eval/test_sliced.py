import numpy as np
import pytest
from scipy import stats

from eval import selftest
from eval.frechet import frechet_distance
from eval.interval import jackknife
from eval.sliced import mind, mind_interval


@pytest.fixture(scope="module")
def golden():
    return selftest.wide()


def test_isotropic_gaussians_are_three_frechet_distances_apart(golden):
    closed = 3 * 64 * (0.25**2 + 0.5**2)
    assert closed == 60.0
    assert mind(*golden, seed=1) == pytest.approx(closed, rel=0.03)
    assert frechet_distance(*golden) == pytest.approx(closed / 3, rel=0.1)  # with more bias


def test_one_dimension_is_the_integral_over_quantiles():
    rng = np.random.RandomState(1)
    x, y = rng.randn(6, 1), rng.randn(4, 1)
    repeated = np.sort(np.repeat(x[:, 0], 2)) - np.sort(np.repeat(y[:, 0], 3))
    assert mind(x, y, directions=3) == pytest.approx(3 * (repeated**2).mean(), abs=1e-12)
    z = x + 5  # a mere shift: all mass moves as far
    assert mind(x, z, directions=2) == pytest.approx(3 * stats.wasserstein_distance(x[:, 0], z[:, 0]) ** 2)


def test_order_sides_and_blocks_change_nothing(golden, monkeypatch):
    x, y = golden[0][:90], golden[1][:70]
    whole = mind(x, y, directions=50)
    assert mind(y, x[::-1], directions=50) == pytest.approx(whole, rel=1e-12)
    assert mind(x, x[::-1], directions=50) == 0
    monkeypatch.setattr("eval.sliced.BLOCK", 500)
    assert mind(x, y, directions=50) == pytest.approx(whole, rel=1e-12)


def test_lost_spread_is_seen():
    rng = np.random.RandomState(2)
    x = rng.randn(500, 8)
    assert mind(x, 0.5 * x) == pytest.approx(3 * 8 * 0.25, rel=0.1)


def test_bad_input_is_named(golden):
    with pytest.raises(ValueError, match="directions=0"):
        mind(*golden, directions=0)
    with pytest.raises(ValueError, match="widths 64 and 63"):
        mind(golden[0], golden[1][:, 1:])


def test_the_interval_is_the_jackknife_of_distances_made_anew(golden, monkeypatch):
    x, y = golden[0][:90], golden[1][:67]
    found = mind_interval(x, y, directions=30, blocks=4)
    parts = [np.array_split(np.arange(len(rows)), 4) for rows in (x, y)]
    without = [mind(np.delete(x, i, 0), np.delete(y, j, 0), directions=30) for i, j in zip(*parts, strict=True)]
    expected = jackknife(mind(x, y, directions=30), without)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert found.n == 67
    monkeypatch.setattr("eval.sliced.BLOCK", 500)
    assert mind_interval(x, y, directions=30, blocks=4).high == pytest.approx(found.high, rel=1e-12)
    with pytest.raises(ValueError, match="blocks=34"):
        mind_interval(x, y, blocks=34)


@pytest.mark.parametrize(("scale", "shift"), [(1.2, 0.2), (1.0, 0.0)])
def test_intervals_cover_the_mean_at_this_size(scale, shift):
    rng = np.random.RandomState(3)

    def draw():
        return mind_interval(rng.randn(120, 8) * scale + shift, rng.randn(100, 8), directions=40)

    mean = np.mean([draw().value for _ in range(400)])
    found = [draw() for _ in range(200)]
    assert sum(one.low <= mean <= one.high for one in found) >= stats.binom.ppf(0.005, 200, 0.95)
    half = np.mean([(one.high - one.low) / 2 for one in found]) / stats.t.ppf(0.975, 9)
    assert half < 1.7 * np.std([one.value for one in found])
