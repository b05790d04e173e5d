import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from backbone.clip import cure_torchvision
from eval.prdc import prdc

cure_torchvision()


@pytest.fixture(scope="module")
def golden():
    rng = np.random.RandomState(5)
    return rng.randn(400, 8), rng.randn(400, 8) * 0.8 + 0.2


def figures(found):
    return found.precision, found.recall, found.density, found.coverage


@pytest.mark.parametrize(("k", "expected"), [(3, (0.9725, 0.63, 1.45, 0.87)), (5, (0.985, 0.7125, 1.399, 0.9375))])
def test_goldens(golden, k, expected):
    real, fake = golden
    assert figures(prdc(real=real, fake=fake, k=k)) == pytest.approx(expected, abs=1e-12)


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
