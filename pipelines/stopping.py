"""How a training run is asked to stop, and how it says that it has."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.errors import Interrupted

STOPPED = 75  # exit code of what has saved and can go on: EX_TEMPFAIL of sysexits.h, "try again"
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the last: Slurm's --signal=USR1@120
PARENT_VARIABLE = "PALIMPSEST_PARENT"  # process id of the `palimpsest run` that started a stage


def orphaned() -> bool:
    """Whether the `palimpsest run` that started this stage is gone: nobody waits for it, and another may start."""
    parent = os.environ.get(PARENT_VARIABLE)
    return parent is not None and os.getppid() != int(parent)


@contextmanager
def ending_at_once(name: str) -> Iterator[None]:
    """Raise Interrupted at the first signal that asks to stop: for work that has nothing to save at that moment."""
    asked = False

    def stop() -> None:
        nonlocal asked
        if not asked:
            asked = True
            raise Interrupted(f"{name}: stopped; what it has saved stays. The same command goes on from there.")

    with listening(stop):
        yield


@contextmanager
def listening(asked: Callable[[], object]) -> Iterator[None]:
    """Call `asked` for each signal that asks to stop, and give the signals back at the end."""

    def received(number: int, frame: object) -> None:
        del number, frame
        asked()

    previous = {number: signal.signal(number, received) for number in ASKING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
