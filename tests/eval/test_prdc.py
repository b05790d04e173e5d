import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import cdist

from backbone.clip import cure_torchvision
from eval import selftest
from eval.interval import wilson
from eval.neighbours import nearest
from eval.prdc import _overlap, prdc, prdc_intervals
from eval.prdc_spread import Balls, Pairs, coverage_variance, density_variance, share_variance

cure_torchvision()


@pytest.fixture(scope="module")
def golden():
    return selftest.flat()


def figures(found):
    return found.precision, found.recall, found.density, found.coverage


def test_golden_far_from_zero(golden):
    real, fake = (x + 1000 for x in golden)  # a matrix-product distance in float32 gives recall 0.745 here
    assert prdc(real=real, fake=fake).recall == 0.7125


def test_exchanged_arguments_exchange_precision_and_recall(golden):
    real, fake = golden
    straight, exchanged = prdc(real=real, fake=fake), prdc(real=fake, fake=real)
    assert (exchanged.precision, exchanged.recall) == (straight.recall, straight.precision) == (0.7125, 0.985)
    assert prdc(real, fake, 5) == straight  # real comes first, also by position


def test_shrunk_fakes_are_precise_and_recall_nothing(golden):
    real, _ = golden
    found = prdc(real=real, fake=0.2 * real)
    assert (found.precision, found.recall) == (1, 0)


def test_agrees_with_prdc(golden, capsys):
    oracle = pytest.importorskip("prdc").compute_prdc(*golden, nearest_k=5)
    found = prdc(real=golden[0], fake=golden[1], k=5)
    assert figures(found) == pytest.approx([oracle[n] for n in ("precision", "recall", "density", "coverage")])


def test_agrees_with_torch_fidelity_in_its_final_order(golden):
    fidelity = pytest.importorskip("torch_fidelity.metric_prc")
    real, fake = (torch.from_numpy(x) for x in golden)
    oracle = fidelity.prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)  # generated comes first
    found = prdc(real=golden[0], fake=golden[1], k=3)
    assert (found.precision, found.recall) == pytest.approx((oracle["precision"], oracle["recall"]), abs=1e-6)


def test_ties_count_as_inside_and_duplicates_are_reported():
    found = prdc(real=np.zeros((50, 8)), fake=np.zeros((50, 8)))
    assert figures(found) == (1, 1, 10, 1)
    assert found.real_duplicates == found.fake_duplicates == pytest.approx(0.98)


def by_definition(real, fake, k):
    """Every distance by itself, as the definitions say."""
    distance = cdist(real, fake, "sqeuclidean")
    radius_real, radius_fake = (np.sort(cdist(x, x, "sqeuclidean"), 1)[:, k] for x in (real, fake))
    inside = distance <= radius_real[:, None]
    return inside.any(0).mean(), (distance <= radius_fake).any(1).mean(), inside.sum(0).mean() / k, inside.any(1).mean()


@pytest.mark.parametrize("offset", [0, 1e6])
@pytest.mark.parametrize("k", [1, 3])
def test_ties_of_whole_numbers_are_ties(offset, k):
    """Distances on a grid are equal by hundreds; a product alone would put half of the borders outside."""
    rng = np.random.RandomState(6)
    real, fake = rng.randint(0, 3, (300, 6)) + offset, rng.randint(0, 3, (200, 6)) + offset
    assert figures(prdc(real, fake, k)) == pytest.approx(by_definition(real, fake, k), abs=1e-12)


def test_close_pairs_far_from_the_centre_are_told_apart():
    """Clusters so tight that their squared distances lie below the rounding of a product."""
    rng = np.random.RandomState(7)
    centres = rng.randn(5, 16) * 100
    real, fake = (centres[rng.randint(0, 5, 120)] + 1e-7 * s * rng.randn(120, 16) for s in (1, 2))
    found = prdc(real, fake, 3)
    assert figures(found) == pytest.approx(by_definition(real, fake, 3), abs=1e-12)
    assert 0 < found.precision < 1


def test_float32_features_with_a_large_mean_are_exact():
    rng = np.random.RandomState(8)
    real, fake = ((rng.randn(300, 64) * 0.3 + 1000).astype(np.float32) for _ in range(2))
    wide = real.astype(np.float64), fake.astype(np.float64)
    assert figures(prdc(real, fake)) == pytest.approx(by_definition(*wide, 5), abs=1e-12)


def test_blocks_of_rows_change_nothing(golden, monkeypatch):
    whole = prdc(real=golden[0], fake=golden[1])
    monkeypatch.setattr("eval.neighbours.ROWS", 37)
    assert prdc(real=golden[0], fake=golden[1]) == whole


@pytest.mark.parametrize("k", [0, 400])
def test_impossible_k_is_refused(golden, k):
    with pytest.raises(ValueError, match=f"k={k}"):
        prdc(real=golden[0], fake=golden[1], k=k)


def variances_by_leaving_out(real, fake, k):
    """Of precision, density and coverage: balls without each centre, and sets without each fake, all made anew."""
    n, m = len(real), len(fake)
    distance, apart = cdist(real, fake, "sqeuclidean"), cdist(real, real, "sqeuclidean")

    def held(left):
        return distance[left] <= np.sort(apart[np.ix_(left, left)], 1)[:, k, None]

    def shared(effects):  # (rows left out, values)
        sums = effects.sum(1)
        return max(0, (sums**2).sum() - (effects**2).sum() - sums.sum() ** 2 / len(sums))

    whole = held(np.arange(n))
    without = [held(np.delete(np.arange(n), i)) for i in range(n)]
    around = whole.sum(0)
    found = []
    for values, left in ((around > 0, [w.any(0) for w in without]), (around / k, [w.sum(0) / k for w in without])):
        effects = np.array([values - 1.0 * other for other in left])
        found.append(values.var(ddof=1) / m + shared(effects) / m**2)
    covered = whole.any(1) * 1.0
    by_fakes = np.array([covered - np.delete(whole, j, 1).any(1) for j in range(m)])
    by_reals = np.array([np.insert(np.delete(covered, i) - w.any(1), i, 0.0) for i, w in enumerate(without)])
    own = covered - covered.mean() + by_reals.sum(1)
    centres = max(((own - own.mean()) ** 2).sum() - (by_reals**2).sum(), covered.var() * n)
    return (*found, (centres + shared(by_fakes)) / n**2)


def test_errors_are_those_of_balls_made_anew_without_each_row():
    rng = np.random.RandomState(9)
    real, fake = rng.randn(70, 3), rng.randn(50, 3) * 1.2
    near = nearest(real, k=6)
    pairs = Pairs(), Pairs()
    radii = nearest(fake, k=6).squared[:, -2:]
    _overlap(real, fake, near.squared[:, -2:], radii, pairs)
    balls = Balls.of(pairs[0], near.rows[:, :5], 50)
    found = share_variance(balls), density_variance(balls), coverage_variance(balls)
    assert found == pytest.approx(variances_by_leaving_out(real, fake, 5), rel=1e-6)
    recall = variances_by_leaving_out(fake, real, 5)[0]
    assert share_variance(Balls.of(pairs[1], nearest(fake, k=5).rows, 70)) == pytest.approx(recall, rel=1e-6)


@pytest.mark.parametrize(("dim", "scale", "shift"), [(8, 0.8, 0.2), (32, 1.0, 0.1)])
def test_intervals_cover_the_means_at_this_size_and_those_of_independent_pictures_do_not(dim, scale, shift):
    rng = np.random.RandomState(10)
    found = [prdc_intervals(rng.randn(150, dim), rng.randn(150, dim) * scale + shift) for _ in range(200)]
    for name in ("precision", "recall", "density", "coverage"):
        ours = [one[name] for one in found]
        mean = np.mean([one.value for one in ours])
        hits = sum(one.low <= mean <= one.high for one in ours)
        assert stats.binom.ppf(0.005, 200, 0.95) <= hits, (name, hits)
        assert np.mean([(one.high - one.low) / 2 for one in ours]) < 1.7 * 1.96 * np.std([one.value for one in ours])
    naive = [wilson(one["recall"].value * 150, 150) for one in found]
    mean = np.mean([one.value for one in naive])
    assert sum(one.low <= mean <= one.high for one in naive) < stats.binom.ppf(0.005, 200, 0.95)


def test_values_with_intervals_are_those_without(golden, monkeypatch):
    real, fake = golden
    found, plain = prdc_intervals(real, fake[:300], 3), prdc(real, fake[:300], 3)
    assert tuple(one.value for one in found.values()) == figures(plain)
    assert [one.n for one in found.values()] == [300, 400, 300, 400]
    monkeypatch.setattr("eval.neighbours.ROWS", 37)
    in_blocks = prdc_intervals(real, fake[:300], 3)
    assert [one.low for one in in_blocks.values()] == pytest.approx([one.low for one in found.values()])
    assert [one.high for one in in_blocks.values()] == pytest.approx([one.high for one in found.values()])


def test_copies_and_the_smallest_sets_have_no_finite_interval(golden, monkeypatch):
    smallest = prdc_intervals(golden[0][:6], golden[1], 5)
    assert all(np.isinf(one.high) for one in smallest.values())
    monkeypatch.setattr("eval.prdc_spread.MOST", 1000)
    crowded = prdc_intervals(np.zeros((50, 8)), np.zeros((50, 8)))
    assert crowded["density"].value == 10 and all(np.isinf(one.high) for one in crowded.values())
