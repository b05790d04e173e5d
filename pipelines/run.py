"""`palimpsest run`: every stage of a recipe in order, side by side where they do not need each other.

Each stage is a process of its own, so that an interrupted stage resumes alone and each has its own threads. On a CPU
two one-threaded stages use two cores better than one stage with two threads; on a GPU they go one at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress, TaskID

from pipelines.artefact import ArtefactError, read_json
from pipelines.data.config import ScenesData
from pipelines.dry import check_files
from pipelines.errors import Interrupted, PalimpsestError
from pipelines.progress import STATUS_VARIABLE, bars, console
from pipelines.recipe import Recipe
from pipelines.runs import RECIPE, Run, open_run
from pipelines.stage_config import AnyStage
from pipelines.stages import ensure_data
from pipelines.stopping import PARENT_VARIABLE, STOPPED, listening
from pipelines.task import Training
from pipelines.text.config import TextData

OTHER_MINUTES = {
    "bpe": 0.1,
    "encode": 0.6,
    "generate": 1.5,
    "sweep": 10.0,
    "masked_sweep": 24.0,
    "text_sweep": 30.0,
    "eval": 1.0,
    "text_eval": 3.0,
    "text_tokens": 0.1,
}
"""Of stages without a budget, on a small CPU."""


@dataclass
class Worker:
    """A stage that is running."""

    name: str
    process: subprocess.Popen[bytes]
    status: Path
    log: Path
    bar: TaskID


def minutes_of(stage: AnyStage) -> float:
    """Return the minutes that a stage is expected to take."""
    training = getattr(stage, "training", None)
    return (training.minutes or 1.0) if training else OTHER_MINUTES.get(stage.kind, 1.0)


def path_minutes(recipe: Recipe) -> dict[str, float]:
    """Return the minutes from each stage's start to the end of all that waits for it (the critical path)."""
    longest: dict[str, float] = {}
    for name in reversed(recipe.order()):
        after = [longest[other] for other, stage in recipe.stage.items() if name in stage.needs]
        longest[name] = minutes_of(recipe.stage[name]) + max(after, default=0.0)
    return longest


def makespan(recipe: Recipe, workers: int) -> float:
    """Return the minutes that the whole recipe takes on `workers`, critical path first."""
    urgent, finish = path_minutes(recipe), dict[str, float]()
    running: dict[str, float] = {}
    now = 0.0
    while len(finish) < len(recipe.stage):
        ready = [
            n
            for n, s in recipe.stage.items()
            if n not in finish and n not in running and all(x in finish for x in s.needs)
        ]
        for name in sorted(ready, key=lambda n: -urgent[n])[: workers - len(running)]:
            running[name] = now + minutes_of(recipe.stage[name])
        first = min(running, key=lambda n: running[n])
        now = finish[first] = running.pop(first)
    return now


def within_budget(recipe: Recipe, minutes: float, workers: int) -> Recipe:
    """Return the recipe with all training minutes scaled so that the whole takes about `minutes`."""
    low, high = 0.0, 1000.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if makespan(_scaled(recipe, middle), workers) < minutes else (low, middle)
    if low < 1e-3:
        least = makespan(_scaled(recipe, 1e-3), workers)
        raise PalimpsestError(
            f"--budget {minutes:g} minutes is too little for {recipe.name}: it needs at least {least + 1:.0f}."
        )
    return _scaled(recipe, low)


def _scaled(recipe: Recipe, factor: float) -> Recipe:
    stages = {}
    for name, stage in recipe.stage.items():
        training: Training | None = getattr(stage, "training", None)
        if training is not None and training.minutes is not None:
            shorter = dataclasses.replace(training, minutes=round(max(1e-3, training.minutes * factor), 3))
            stage = dataclasses.replace(stage, training=shorter)  # type: ignore[call-arg]
        stages[name] = stage
    return dataclasses.replace(recipe, stage=stages)


def worker_count() -> int:
    """Return how many stages run side by side here: two on a CPU with two cores or more, one on a GPU."""
    return 1 if torch.cuda.is_available() or len(os.sched_getaffinity(0)) < 2 else 2


def run_recipe(run: Run) -> None:
    """Run every unfinished stage. Raises PalimpsestError with the words of the stage that failed."""
    done = {name for name in run.recipe.order() if _done_before(run, name)}
    _check_files(run.recipe, done)
    for name in sorted(done, key=run.recipe.order().index):
        console.print(f"{name}: finished before, skipped", style="dim")
    workers = worker_count()
    urgent = path_minutes(run.recipe)
    running: list[Worker] = []
    with _forwarded_signals(running) as stopped, bars() as bar:
        try:
            while len(done) < len(run.recipe.stage) and not stopped:
                busy = {worker.name for worker in running}
                ready = [n for n, s in run.recipe.stage.items() if n not in done | busy and done.issuperset(s.needs)]
                for name in sorted(ready, key=lambda n: -urgent[n])[: workers - len(running)]:
                    alone = not running and len(ready) == 1
                    running.append(_start(run, name, workers, alone, bar))
                time.sleep(0.2)
                if stopped:
                    break
                done |= _harvest(running, bar)
        finally:
            _stop(running)
    if stopped:
        raise Interrupted("Stopped and saved. The same command goes on from there.")


def _check_files(recipe: Recipe, done: Collection[str]) -> None:
    """Refuse a run of hours that would end where a file is missing that a later stage names."""
    for name in recipe.order():
        try:
            if name not in done:
                check_files(recipe.stage[name])
        except ValueError as error:
            raise PalimpsestError(f"stage.{name} cannot be made: {error}") from error


def _done_before(run: Run, name: str) -> bool:
    if not all((run.stage_folder(need) / "manifest.json").exists() for need in run.recipe.stage[name].needs):
        return False
    return run.finished(name)


def _start(run: Run, name: str, workers: int, alone: bool, bar: Progress) -> Worker:
    """Start a stage as a process; its words go to log.txt in its folder."""
    folder = run.stage_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    status, log = folder / ".status", folder / "log.txt"
    status.unlink(missing_ok=True)
    trains = getattr(run.recipe.stage[name], "training", None) is not None
    cores = len(os.sched_getaffinity(0))
    threads = cores if workers == 1 or (alone and not trains) else max(1, cores // workers)
    environment = {**os.environ, STATUS_VARIABLE: str(status), PARENT_VARIABLE: str(os.getpid())}
    environment |= {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    recipe = run.folder / RECIPE
    command = [sys.executable, "-m", "pipelines.cli", "train", name, str(recipe), "--out", str(run.folder.parent)]
    command += ["--data", run.place.given]
    with log.open("ab") as handle:
        process = subprocess.Popen(command, stdout=handle, stderr=handle, stdin=subprocess.DEVNULL, env=environment)
    return Worker(name, process, status, log, bar.add_task(name, total=None, note="starting"))


def _harvest(running: list[Worker], bar: Progress) -> set[str]:
    """Show where every stage stands; return those that have finished."""
    finished = set()
    for worker in list(running):
        with contextlib.suppress(ArtefactError, OSError):
            status = read_json(worker.status)
            bar.update(worker.bar, total=status["total"], completed=status["done"], note=status["note"])
        code = worker.process.poll()
        if code is None:
            continue
        running.remove(worker)
        worker.status.unlink(missing_ok=True)
        if code == STOPPED:
            raise Interrupted(f"{worker.name} was stopped and has saved. The same command goes on from there.")
        if code != 0:
            raise PalimpsestError(
                f"{worker.name} failed (exit {code}):\n{tail(worker.log)}\nThe whole log: {worker.log}"
            )
        bar.update(worker.bar, total=1, completed=1, note="done")
        bar.stop_task(worker.bar)
        finished.add(worker.name)
        console.log(f"{worker.name} finished")
    return finished


def tail(path: Path, lines: int = 12) -> str:
    """Return the last lines of a log."""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


@contextmanager
def _forwarded_signals(running: list[Worker]) -> Iterator[list[bool]]:
    """Collect the signals that ask to stop, and pass them on to the stages, which save and end."""
    received: list[bool] = []

    def forward() -> None:
        received.append(True)
        for worker in running:
            worker.process.send_signal(signal.SIGTERM)

    with listening(forward):
        yield received


def _stop(running: list[Worker]) -> None:
    """Ask the stages that still run to save and end, and wait for them."""
    for worker in running:
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGTERM)
    for worker in running:
        worker.process.wait()


def start_run(
    recipe: Path, *, out: Path, data: Path | str | None, budget: float | None, overrides: tuple[str, ...]
) -> Run:
    """Open a run and see to its data. A budget is turned into training minutes once, when the run starts."""
    run = open_run(recipe, out=out, data=data, overrides=overrides, budget=budget, scale=_scaled_to)
    ensure_data(run)
    return run


def _scaled_to(recipe: Recipe, budget: float) -> Recipe:
    return within_budget(recipe, budget, worker_count())


def summary(run: Run) -> str:
    """Say where the results are and what to try next."""
    recipe, folder = run.recipe, run.folder
    lines = [f"\nAll stages of {recipe.name} are finished."]
    for name, stage in recipe.stage.items():
        if stage.kind in ("eval", "text_eval"):
            lines.append(f"  report             {folder / name / 'report.html'}")
        if stage.kind == "generate":
            lines.append(f"  pictures           {folder / name}/")
            if (folder / name / "texts.json").exists():
                lines.append(f"  generated texts    {folder / name / 'texts.json'} and captions.json")
    if isinstance(recipe.data, TextData):
        return "\n".join([*lines, "Try next:", f"  palimpsest sample text --run {folder}"])
    picture = next((path for path in sorted(folder.glob("*/test/*.png"))), None)
    prompt = "a large red star on a sky background" if isinstance(recipe.data, ScenesData) else "a photo of a cat"
    lines += [
        "Try next:",
        f'  palimpsest sample image "{prompt}" --run {folder}',
        f"  palimpsest sample text --run {folder}",
    ]
    if picture is not None:
        lines.append(f"  palimpsest sample caption {picture} --run {folder}")
    return "\n".join(lines)
