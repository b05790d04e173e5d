import numpy as np
import pytest
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from eval.neighbours import nearest, squared_distances


@pytest.fixture(params=[2048, 37], ids=["one block", "many blocks"])
def blocked(request, monkeypatch):
    monkeypatch.setattr("eval.neighbours.ROWS", request.param)


def test_agrees_with_a_tree(blocked):
    rng = np.random.RandomState(0)
    x, y = rng.randn(150, 4), rng.randn(220, 4)
    found = nearest(x, y, k=3)
    distance, index = KDTree(y).query(x, 3)
    assert found.squared == pytest.approx(distance**2, rel=1e-12)
    assert np.array_equal(found.rows, index)


def test_a_row_is_not_its_own_neighbour_and_its_copy_is(blocked):
    rng = np.random.RandomState(1)
    x = rng.randn(90, 5)
    x[80] = x[7]
    found = nearest(x)
    assert (found.rows[7, 0], found.rows[80, 0]) == (80, 7)
    assert found.squared[7, 0] == found.squared[80, 0] == 0
    rest = cdist(x, x, "sqeuclidean") + np.diag(np.full(90, np.inf))
    assert found.squared[:, 0] == pytest.approx(rest.min(1), abs=1e-15)
    assert (found.rows[:, 0] != np.arange(90)).all()


def test_more_equals_than_candidates_are_all_weighed(blocked):
    """Hundreds of rows at almost one distance, below the rounding of a product: the exact distance decides."""
    rng = np.random.RandomState(2)
    y = np.concatenate([1e-9 * rng.randn(300, 3) + 50, -50 + 1e-9 * rng.randn(300, 3)])
    for found, own in ((nearest(y[:40] + 1e-10, y, k=2), False), (nearest(y, k=2), True)):
        x = y if own else y[:40] + 1e-10
        exact = ((x[:, None] - y) ** 2).sum(2)
        if own:
            np.fill_diagonal(exact, np.inf)
        assert found.squared == pytest.approx(np.sort(exact, 1)[:, :2], rel=1e-9, abs=1e-40)


def test_collapsed_rows_are_at_nought_and_cost_nothing(blocked):
    found = nearest(np.full((500, 3), 0.1), k=4)
    assert (found.squared == 0).all()
    assert all(len(set(row)) == 4 and i not in row for i, row in enumerate(found.rows.tolist()))


def test_bytes_of_pictures_are_read_as_they_are(blocked):
    rng = np.random.RandomState(3)
    x, y = rng.randint(0, 256, (60, 48)).astype(np.uint8), rng.randint(0, 256, (99, 48)).astype(np.uint8)
    exact = ((x[:, None].astype(int) - y.astype(int)) ** 2).sum(2)
    found = nearest(x, y)
    assert np.array_equal(found.squared[:, 0], exact.min(1))
    assert np.array_equal(exact[np.arange(60), found.rows[:, 0]], exact.min(1))


def test_all_others_may_be_asked_for():
    x = np.random.RandomState(4).randn(6, 2)
    assert [sorted(row) for row in nearest(x, k=5).rows.tolist()] == [[j for j in range(6) if j != i] for i in range(6)]


def test_a_pair_has_one_distance_in_any_company(monkeypatch):
    rng = np.random.RandomState(5)
    x, y = rng.randn(20, 33), rng.randn(20, 33)
    i, j = np.repeat(np.arange(20), 20), np.tile(np.arange(20), 20)
    together = squared_distances(x, y, i, j)
    assert np.array_equal(together, squared_distances(y, x, j, i))
    monkeypatch.setattr("eval.neighbours.PAIRS", 70)
    assert np.array_equal(together, squared_distances(x, y, i, j))
    assert together[41] == squared_distances(x, y, i[41:42], j[41:42])[0]
