"""The bench of metrics: every contest is between equal quantities, and gives a whole line."""

import numpy as np
import pytest

from scripts.bench.metrics import Options, contests, features, row

pytest.importorskip("torch_fidelity")
pytest.importorskip("prdc")


@pytest.mark.parametrize("name", contests(80))
def test_both_sides_of_a_contest_give_one_value(name):
    sides = features(80, 8)
    found = row(name, Options(rows=80, dim=8, rounds=1), sides)
    assert found[0] == name and float(found[-1]) < 1e-10
    assert all(0 < float(cell) < 8 for cell in found[4:6])  # GiB
    wrong = contests(80)[name][0](sides[0], 1.1 * sides[1])
    ours, theirs = np.asarray(getattr(wrong, "value", wrong)), np.asarray(contests(80)[name][1](*sides))
    assert np.abs(ours - theirs).max() > 1e-3  # a contest of other features is seen
