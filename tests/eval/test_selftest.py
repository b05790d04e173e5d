"""The goldens: each is met, each can fail, and a report says which did."""

import time
from dataclasses import replace

import numpy as np
import pytest

from eval import selftest
from eval.prdc import prdc
from eval.selftest import GOLDENS, Golden, alarm, as_table, check
from pipelines import cli


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.name)
def test_golden(golden):
    found = check(golden)
    assert found.passed, f"{found.got} {found.error}"


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.name)
def test_each_golden_notices_an_answer_just_outside_its_tolerance(golden):
    for at in range(len(golden.expected)):
        moved = [value + (i == at) * (3 * golden.tolerance + 1e-12) for i, value in enumerate(golden.expected)]
        assert not check(replace(golden, expected=tuple(moved))).passed


def test_swapped_precision_and_recall_are_noticed(monkeypatch):
    monkeypatch.setattr(selftest, "prdc", lambda real, fake, k: prdc(fake, real, k))
    failed = [golden.name for golden in GOLDENS if not check(golden).passed]
    assert failed == ["PRDC, k = 3", "PRDC, k = 5"]


@pytest.mark.parametrize("got", [(float("nan"),), (), (1.0, 1.0)])
def test_nan_and_answers_of_another_length_fail(got):
    assert not check(Golden("x", "", (1.0,), 1e9, lambda: got)).passed


def test_a_metric_that_raises_has_failed_and_says_how():
    def broken():
        raise TypeError("disp is no argument any more")

    found = check(Golden("x", "", (1.0,), 0, broken))
    assert not found.passed and found.error == "TypeError: disp is no argument any more"
    (row,) = as_table((found,)).rows
    assert row.kind == "worse" and found.error in row.cells and "✗ failed" in row.cells
    assert "1 of 1" in alarm((found,)) and "(x)" in alarm((found,))


def test_all_take_less_than_two_seconds():
    began = time.process_time()
    assert all(check(golden).passed for golden in GOLDENS)
    assert time.process_time() - began < 2


def test_the_command_prints_every_metric_and_ends_with_one_where_one_fails(monkeypatch, capsys):
    run = ["palimpsest", "eval", "--self-test"]
    monkeypatch.setattr("sys.argv", run)
    cli.main()
    said = capsys.readouterr().out
    assert all(golden.name in said for golden in GOLDENS) and "All" in said
    lost = replace(selftest.self_test()[0], passed=False, got=(np.pi,))
    monkeypatch.setattr(selftest, "self_test", lambda: (lost, *map(check, GOLDENS[1:])))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1 and "✗ failed  FD, diagonal" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*run, "recipes/smoke.toml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "stands alone" in capsys.readouterr().err
