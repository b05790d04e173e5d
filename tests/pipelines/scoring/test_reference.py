"""Published statistics: plain arrays are read, pickles are not."""

import pickle

import numpy as np
import pytest

from eval.frechet import frechet_distance
from pipelines.errors import DataError
from pipelines.scoring.reference import Statistics, open_reference

RNG = np.random.RandomState(0)
X, Y = RNG.randn(300, 6), RNG.randn(200, 6) * 1.3 + 0.2


def test_statistics_give_the_distance_of_the_features_behind_them(tmp_path):
    path = tmp_path / "ref.npz"
    np.savez(path, mu=Y.mean(0), sigma=np.cov(Y, rowvar=False), mu_s=np.zeros(3), sigma_s=np.eye(3))
    found = open_reference(str(path))
    assert isinstance(found, Statistics)
    assert frechet_distance(X, found.moments) == pytest.approx(frechet_distance(X, Y), abs=1e-9)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", mu=np.array([Evil()], dtype=object), sigma=np.eye(1))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("a.npz", "b.pkl"):
        with pytest.raises(DataError, match=r"could run anything.*np\.savez\('NEW\.npz'"):
            open_reference(str(tmp_path / name))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mean": np.zeros(2)}, r"holds mean: expected mu \(d,\) and sigma"),
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, r"mu is \(2,\) and sigma \(3, 3\)"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2.0], [0.0, 1.0]])}, "not symmetric"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=words):
        open_reference(str(tmp_path / "a.npz"))


def test_missing_and_damaged_files_are_said(tmp_path):
    with pytest.raises(DataError, match="no statistics at"):
        open_reference(str(tmp_path / "a.npz"))
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match=r"fetch it again|could run"):
        open_reference(str(tmp_path / "a.npz"))
