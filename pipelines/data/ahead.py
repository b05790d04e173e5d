"""Batches that worker processes make ahead, handed on in their order.

They are forked from a server that has imported what they need and has no threads: a training has some, whose locks a
fork would copy as they stand. Signals that ask to stop are for the process that trains, and go past them; they end when
it ends them or is gone, whatever they are at.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

import torch

from pipelines.data.patience import POLL, check_asked
from pipelines.errors import DataError, PalimpsestError
from pipelines.stopping import ASKING

Item = TypeVar("Item")
EACH = 2  # batches that each process has made or is making
LOOK = 1.0  # seconds between two looks at whether the process that trains is still there
REMEDY = "lower data.workers or the batch, or give the machine more (docker: --memory, --shm-size)."


def made_ahead(make: Callable[[int], Item], numbers: Iterator[int], workers: int) -> Iterator[Item]:
    """Yield make(number) for endless numbers, of which each of so many processes makes every n-th.

    make: picklable. Raises what `make` raises, DataError where a process is killed or finds no memory, GaveUp where
    the caller is asked to end.
    """
    with ExitStack() as stack:
        ring = list[_Worker[Item]]()
        for _ in range(workers):
            ring.append(_Worker(make))
            stack.callback(ring[-1].end)
        for worker in ring * EACH:
            worker.ask(next(numbers))
        for worker in cycle(ring):
            yield worker.take()
            worker.ask(next(numbers))


class _Worker(Generic[Item]):
    """A process that makes what it is asked for, in turn."""

    def __init__(self, make: Callable[[int], Item]) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(["pipelines.data.stream"])
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(make, theirs), daemon=True)
        try:
            with _unasked():  # which signals are blocked is inherited
                self.process.start()
        except (OSError, EOFError) as error:
            raise DataError(f"A process that reads ahead could not be started ({error}): {REMEDY}") from error
        theirs.close()

    def ask(self, number: int) -> None:
        """Ask for an item behind those that were asked for."""
        with self._alive():
            self.line.send(number)

    def take(self) -> Item:
        """What was asked for first."""
        while not self.line.poll(POLL):
            check_asked()
        with self._alive():
            found, error = self.line.recv()
        if error is not None:
            raise error
        return found

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Say how the process has ended, where it is not there to be talked to."""
        try:
            yield
        except (EOFError, OSError) as gone:
            self.process.join(LOOK)
            code = self.process.exitcode
            how = (
                "without a word" if code is None else f"by {signal.Signals(-code).name}" if code < 0 else f"with {code}"
            )
            raise DataError(
                f"A process that reads ahead ended {how}, as when memory or shared memory runs out: {REMEDY}"
            ) from gone

    def end(self) -> None:
        """End the process at once: it only reads."""
        self.process.kill()
        self.process.join()
        self.line.close()


@contextmanager
def _unasked() -> Iterator[None]:
    """Block the signals that ask to stop in this thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(make: Callable[[int], Any], line: Connection) -> None:
    """What a worker does, for as long as there is somebody to do it for."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    with suppress(EOFError, OSError):
        while True:
            line.send_bytes(_answer(make, line.recv()))


def _answer(make: Callable[[int], Any], number: int) -> Any:
    """What was made, its tensors in shared memory, or the error in its place, pickled."""
    try:
        return ForkingPickler.dumps((make(number), None))
    except Exception as error:
        return ForkingPickler.dumps((None, _sendable(error)))


def _sendable(error: Exception) -> Exception:
    if isinstance(error, PalimpsestError):
        return error
    if isinstance(error, MemoryError) or "shared memory" in str(error):
        return DataError(f"A process that reads ahead found no memory, or no shared memory, for a batch: {REMEDY}")
    return RuntimeError(f"In a process that reads ahead:\n{''.join(traceback.format_exception(error))}")


def _end_with_parent() -> None:
    """End this process where its parent is gone, or has told it to; whoever else tells it to means the parent."""
    parent = parent_process()
    assert parent is not None and parent.pid is not None
    while parent.is_alive():
        told = signal.sigtimedwait(ASKING, LOOK)
        if told is not None and told.si_signo == signal.SIGTERM and told.si_pid == parent.pid:
            break
    os._exit(0)
