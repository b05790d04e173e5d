"""Progress: a bar on a terminal, plain lines in a log, and a status file that a parent process can show.

The stages of one recipe run as processes side by side; each writes its status to a small JSON file, and `palimpsest
run` draws one bar per stage from those files. Run alone, a stage draws its own bar.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipelines.artefact import write_json
from pipelines.errors import PalimpsestError

Item = TypeVar("Item")
Tick = Callable[[int, int | None], None]  # (pieces done, pieces in all, None where nobody knows)
STATUS_VARIABLE = "PALIMPSEST_STATUS"
console = Console(stderr=True, soft_wrap=True)


def bars() -> Progress:
    """Return the bar layout that every command shares."""
    return Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("{task.fields[note]}"),
        console=console,
        refresh_per_second=4,
    )


@dataclass
class Meter:
    """Where one piece of work stands; `advance` is cheap enough to call on every step."""

    name: str
    total: int | None
    done: int = 0
    note: str = ""
    started: float = field(default_factory=time.time)
    _bar: Progress | None = None
    _task: int = 0
    _last: float = 0.0

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Move on by `count` of `total` and show it, at most twice a second."""
        self.done += count
        self.note = self.note if note is None else note
        now = time.time()
        if now - self._last >= 0.5 or (self.total is not None and self.done >= self.total):
            self._last = now
            self._show()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self.total, note=self.note)  # type: ignore[arg-type]
        elif status := os.environ.get(STATUS_VARIABLE):
            shown = {"name": self.name, "total": self.total, "done": self.done, "note": self.note}
            with contextlib.suppress(OSError, PalimpsestError):  # a full disk must not end the work that it shows
                write_json(Path(status), shown)


@contextmanager
def meter(name: str, total: int | None) -> Iterator[Meter]:
    """Show work of `total` units (None: nobody knows): a bar, a status file under `palimpsest run`, or a line."""
    if os.environ.get(STATUS_VARIABLE) or not console.is_terminal:
        current = Meter(name, total)
        yield current
        if not os.environ.get(STATUS_VARIABLE):
            seconds = time.time() - current.started
            of = "" if current.total is None else f"/{current.total}"
            print(f"{name}: {current.done}{of} in {seconds:.1f} s {current.note}", file=sys.stderr, flush=True)
        return
    with bars() as bar:
        yield Meter(name, total, _bar=bar, _task=bar.add_task(name, total=total, note=""))


@contextmanager
def ticking(name: str) -> Iterator[Tick]:
    """Show work that reports how far it is, such as writing or checking shards."""
    with meter(name, None) as shown:

        def tick(done: int, total: int | None) -> None:
            shown.total = total
            shown.advance(done - shown.done, f"{done / max(time.time() - shown.started, 1e-9):.0f}/s")

        yield tick


def track(items: Iterable[Item], name: str, total: int, weight: int = 1) -> Iterator[Item]:
    """Yield `items` and show progress; each counts `weight` of `total`."""
    with meter(name, total) as current:
        for item in items:
            yield item
            current.advance(min(weight, total - current.done))  # the last item may count less
