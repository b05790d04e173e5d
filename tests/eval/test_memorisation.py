import numpy as np
import pytest

from eval.memorisation import memorisation, share_closer


@pytest.fixture(scope="module")
def sets():
    rng = np.random.RandomState(0)
    return [rng.randn(n, 6) for n in (300, 200, 1000)]  # generated, held out, training


def test_a_model_of_the_same_law_is_no_closer_than_held_out_samples(sets):
    found = memorisation(*sets, quantile=0.1)
    assert found.closer.low <= 0.1 <= found.closer.high
    assert (found.copies.value, found.duplicates) == (0, 0)
    brute = np.sqrt(((sets[0][:, None] - sets[2]) ** 2).sum(2))
    assert found.generated == pytest.approx(brute.min(1), abs=1e-12)
    assert np.array_equal(found.neighbours, brute.argmin(1))
    assert found.threshold == pytest.approx(np.quantile(found.real, 0.1))


def test_copies_with_a_little_noise_are_found_and_exact_ones_counted(sets):
    generated, held_out, train = sets
    rng = np.random.RandomState(1)
    planted = np.concatenate([generated[:150], train[:100] + 0.02 * rng.randn(100, 6), train[40:90]])
    found = memorisation(planted, held_out, train)
    assert found.closer.low > 0.4 and found.closer.value == pytest.approx(0.5 + 0.5 * 0.05, abs=0.03)
    assert found.copies.value == pytest.approx(50 / 300) and found.copies.low > 0.1
    assert np.array_equal(found.neighbours[150:], np.r_[:100, 40:90])


def test_the_shift_that_a_mean_distance_hides_is_not_memorisation(sets):
    """Poor samples lie far from the training set: none is closer, and the interval still has a width."""
    generated, held_out, train = sets
    found = memorisation(generated + 10, held_out, train)
    assert found.closer.value == 0 == found.closer.low < found.closer.high < 0.02


def test_repeats_within_the_generated_set_are_counted(sets):
    generated, held_out, train = sets
    found = memorisation(np.concatenate([generated, generated[:100]]), held_out, train)
    assert found.duplicates == pytest.approx(0.25)


def test_pictures_stay_bytes():
    rng = np.random.RandomState(2)
    train = rng.randint(0, 256, (400, 8, 8, 3)).astype(np.uint8)
    generated = rng.randint(0, 256, (50, 8, 8, 3)).astype(np.uint8)
    generated[7], generated[8] = train[123], train[5] // 2 + 60
    found = memorisation(generated, rng.randint(0, 256, (60, 8, 8, 3)).astype(np.uint8), train)
    assert found.copies.value == 1 / 50 and found.neighbours[7] == 123
    gap = (generated[8].astype(float) - train[found.neighbours[8]]).ravel()
    assert found.generated[8] == pytest.approx(np.linalg.norm(gap), rel=1e-12)


def test_the_interval_holds_the_quantile_as_often_as_it_says(monkeypatch):
    """Of one law, the share is the quantile on average; a threshold that were taken for known would miss it."""
    monkeypatch.setattr("eval.memorisation.RESAMPLES", 400)
    rng = np.random.RandomState(3)
    draws = [(rng.rand(300), rng.rand(100)) for _ in range(100)]
    found = [share_closer(a, b, 0.2, seed=i) for i, (a, b) in enumerate(draws)]
    hits = np.mean([one.low <= 0.2 <= one.high for one in found])
    naive = np.mean([abs((a < np.quantile(b, 0.2)).mean() - 0.2) <= 1.96 * (0.2 * 0.8 / 300) ** 0.5 for a, b in draws])
    assert naive < 0.84 < 0.88 <= hits


def test_refusals_say_value_expectation_and_remedy(sets):
    generated, held_out, train = sets
    with pytest.raises(ValueError, match=r"widths 5, 6 and 6: bring them to one size"):
        memorisation(generated[:, 1:], held_out, train)
    with pytest.raises(ValueError, match=r"quantile=0.001 of 200 held-out .* more samples"):
        memorisation(generated, held_out, train, quantile=0.001)
    with pytest.raises(ValueError, match=r"train must have shape .* got \(0, 6\)"):
        memorisation(generated, held_out, train[:0])
    with pytest.raises(ValueError, match=r"held_out has NaN"):
        memorisation(generated, np.full((40, 6), np.nan), train)
