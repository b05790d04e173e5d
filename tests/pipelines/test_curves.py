"""Curves on a disk that is full for a while: points are missing, no line is spoilt, training goes on."""

import errno
import json
import os

import pytest

from pipelines import curves
from pipelines.curves import LOG, Curves


def steps_of(folder):
    return [json.loads(line)["step"] for line in (folder / LOG).read_text().splitlines()]


@pytest.mark.parametrize("written", [0, 5])
def test_a_full_disk_costs_points_and_spoils_no_line(tmp_path, monkeypatch, caplog, written):
    drawn, write, full = Curves(tmp_path, 0), os.write, [False]

    def limited(handle, data):
        if not full[0]:
            return write(handle, data)
        if written:  # as a disk does that has a few bytes left
            return write(handle, data[:written])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(curves.os, "write", limited)
    for step in range(1, 7):
        full[0] = step in (3, 4)
        drawn.plot("train", step, 1.0, {"loss": 0.5})
    drawn.close()
    assert steps_of(tmp_path) == [1, 2, 5, 6]
    assert caplog.text.count("No space left for the curves") == 1


def test_another_error_of_the_disk_is_not_passed_over(tmp_path, monkeypatch):
    drawn = Curves(tmp_path, 0)

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(curves.os, "write", broken)
    with pytest.raises(OSError, match="Input/output error"):
        drawn.note({"step": 1})
    drawn.close()


def test_points_behind_the_checkpoint_are_dropped_with_a_torn_line(tmp_path):
    (tmp_path / LOG).write_text('{"step": 4}\n{"step": 5}\n{"step": 6}\n{"st', encoding="utf-8")
    Curves(tmp_path, 5).close()
    assert steps_of(tmp_path) == [4, 5]
