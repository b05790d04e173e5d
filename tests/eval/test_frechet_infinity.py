import numpy as np
import pytest
from scipy import stats

from eval.frechet import frechet_distance, frechet_interval
from eval.frechet_infinity import frechet_infinity

TRUTH = 64 * (0.1**2 + 0.05**2)  # 0.80


@pytest.fixture(scope="module")
def golden():
    rng = np.random.RandomState(7)
    reference = rng.randn(20000, 64)
    return rng.randn(10000, 64) * 1.1 + 0.05, reference


def test_the_published_protocol_removes_the_bias_of_the_generated_side(golden):
    found = frechet_infinity(*golden, both=False)
    assert frechet_distance(*golden) == pytest.approx(0.98, abs=0.02)
    assert 0.80 <= found.value <= 0.88
    assert found.value > TRUTH + 0.03  # what the reference's 20,000 rows leave in it
    assert {m for _, m, _ in found.points} == {20000}


def test_both_sides_remove_the_bias_of_both(golden):
    found = [frechet_infinity(*golden, seed=seed, points=8) for seed in range(2)]
    one_sided = [frechet_infinity(*golden, both=False, seed=seed, points=8).value for seed in range(2)]
    assert abs(np.mean([one.value for one in found]) - TRUTH) < 0.04 < np.mean(one_sided) - TRUTH
    assert found[0].bias == pytest.approx(frechet_distance(*golden) - found[0].value, abs=0.02)
    assert found[0].r2 > 0.9


def test_the_bias_of_standard_gaussians_has_a_closed_form():
    rng = np.random.RandomState(0)
    biases = [frechet_infinity(rng.randn(3000, 16), rng.randn(4000, 16), seed=i).bias for i in range(30)]
    slope = 16 + 16 * 17 / 4  # of 1/n: d of the mean, d (d + 1) / 4 of the covariance
    assert np.mean(biases) == pytest.approx(slope / 3000 + slope / 4000, rel=0.05)


def test_the_line_is_that_of_ordinary_least_squares(golden):
    found = frechet_infinity(golden[0][:1000], golden[1][:2000], points=6)
    n, m, distances = zip(*found.points, strict=True)
    oracle = stats.linregress(1 / np.array(n), distances)
    assert (found.value, found.se, found.r2) == pytest.approx(
        (oracle.intercept, oracle.intercept_stderr, oracle.rvalue**2)
    )
    assert (n[0], n[-1], m[0], m[-1]) == (500, 1000, 1000, 2000)
    assert distances[-1] == pytest.approx(frechet_distance(golden[0][:1000], golden[1][:2000]))


def test_subsets_are_a_function_of_the_seed(golden):
    a, b = golden[0][:500], golden[1][:500]
    assert frechet_infinity(a, b, points=5, seed=3) == frechet_infinity(a, b, points=5, seed=3)
    assert frechet_infinity(a, b, points=5, seed=3) != frechet_infinity(a, b, points=5, seed=4)


def test_refusals_name_the_argument(golden):
    with pytest.raises(ValueError, match="points=3"):
        frechet_infinity(*golden, points=3)
    with pytest.raises(ValueError, match=r"share=1.0"):
        frechet_infinity(*golden, share=1.0)
    with pytest.raises(ValueError, match=r"second set has 12 rows.*fewer points"):
        frechet_infinity(golden[0], golden[1][:12])


@pytest.mark.parametrize(("dim", "scale", "shift"), [(6, 1.2, 0.3), (32, 1.1, 0.1)])
def test_intervals_cover_the_mean_and_the_line_alone_does_not(dim, scale, shift):
    rng = np.random.RandomState(1)

    def draw(seed):
        x, y = rng.randn(160, dim) * scale + shift, rng.randn(200, dim)
        line = frechet_infinity(x, y, points=6, seed=seed)
        return line, line.interval(frechet_interval(x, y))

    found = [draw(seed) for seed in range(200)]
    mean = np.mean([line.value for line, _ in found])
    assert sum(one.low <= mean <= one.high for _, one in found) >= stats.binom.ppf(0.005, 200, 0.95)
    alone = sum(abs(line.value - mean) <= stats.t.ppf(0.975, 4) * line.se for line, _ in found)
    assert alone < stats.binom.ppf(0.005, 200, 0.95)
    half = np.mean([(one.high - one.low) / 2 for _, one in found]) / stats.t.ppf(0.975, 9)
    assert half < 1.4 * np.std([line.value for line, _ in found])
