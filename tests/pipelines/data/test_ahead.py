"""Processes that read ahead: what they make, and how they end, whoever is killed."""

import os
import signal
import subprocess
import sys
import time
from itertools import count, islice
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from pipelines.data.ahead import made_ahead
from pipelines.data.patience import GaveUp, waiting_until
from pipelines.errors import DataError
from tests.conftest import ROOT

FAR = 10**6


def squared(number):
    return torch.tensor([number**2]), os.getpid()


def failing(number):
    if number == 3:
        raise DataError("no shard.")
    if number == 5:
        raise KeyError("lost")
    return number


def waiting(number):
    while number == 2:
        time.sleep(0.1)
    return number


def gone(pid, seconds=10):
    until = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return not Path(f"/proc/{pid}").exists()


def test_items_come_in_their_order_from_as_many_processes_and_none_is_left():
    items = made_ahead(squared, count(10), 3)
    found = list(islice(items, 20))
    assert [int(value) for value, _ in found] == [number**2 for number in range(10, 30)]
    pids = [pid for _, pid in found]
    assert len(set(pids)) == 3 and pids[:3] * 6 + pids[:2] == pids
    items.close()
    assert all(gone(pid, 0) for pid in pids) and not active_children()


def test_what_goes_wrong_in_a_process_is_raised_in_its_place():
    items = made_ahead(failing, count(), 2)
    assert list(islice(items, 3)) == [0, 1, 2]
    with pytest.raises(DataError, match=r"^no shard\.$"):
        next(items)
    with pytest.raises(RuntimeError, match=r"(?s)In a process that reads ahead:.*KeyError: 'lost'"):
        list(islice(made_ahead(failing, count(4), 1), 2))


def test_a_process_that_is_killed_is_named_with_a_remedy():
    items = made_ahead(squared, count(), 2)
    _, pid = next(items)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"ended by SIGKILL, as when memory .* lower data\.workers"):
        list(islice(items, FAR))
    assert not active_children()


def test_signals_that_ask_to_stop_go_past_the_processes():
    items = made_ahead(squared, count(), 2)
    pids = {pid for _, pid in islice(items, 2)}
    for pid in pids:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            subprocess.run(["kill", f"-{number.value}", str(pid)], check=True)
    time.sleep(1.5)
    assert {pid for _, pid in islice(items, 10)} == pids
    items.close()


def test_who_waits_for_a_process_ends_when_asked_to_and_ends_it_too():
    items = made_ahead(waiting, count(), 1)
    assert list(islice(items, 2)) == [0, 1]
    begun = time.monotonic()
    with waiting_until(lambda: time.monotonic() > begun + 0.3), pytest.raises(GaveUp):
        next(items)
    assert time.monotonic() - begun < 5 and not active_children()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "ends"])
def test_no_process_outlives_the_one_that_started_it(how):
    """What it does not close is ended as well, and it ends itself."""
    program = (
        "import sys, time; from itertools import count; from pipelines.data.ahead import made_ahead\n"
        "from tests.pipelines.data.test_ahead import squared, waiting\n"
        "if __name__ == '__main__':\n"
        "    kept = made_ahead(squared, count(), 2), made_ahead(waiting, count(), 1)\n"
        "    next(kept[1]), next(kept[1])\n"
        "    print(*[next(kept[0])[1] for _ in range(2)], flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    line = [sys.executable, "-c", program]
    process = subprocess.Popen(
        line, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    pids = process.stdout.readline().split()
    everybody = descendants(process.pid)
    assert len(everybody) >= 4 and set(pids) <= set(everybody)
    if how == "killed":
        process.kill()
    _, said = process.communicate("\n", timeout=60)
    assert process.returncode == (-signal.SIGKILL if how == "killed" else 0) and not said
    assert all(gone(pid) for pid in everybody)


def descendants(pid):
    children = [child for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return children + [other for child in children for other in descendants(child)]


def test_a_process_that_is_killed_between_two_items_is_said():
    items = made_ahead(squared, count(), 1)
    _, pid = next(items)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DataError, match="ended by SIGKILL"):
        list(islice(items, 5))
