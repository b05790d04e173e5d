"""Kill every trained stage of a recipe at random moments, resume it, and compare its weights bit for bit.

    python scripts/kills.py recipes/smoke.toml                     twenty kills of each stage, half an hour on two cores
    python scripts/kills.py recipes/smoke.toml --stages vae mdlm --kills 3

The recipe is run once without interruption into OUT/whole. Then each stage is trained again on the same forerunners,
killed (SIGKILL) again and again, and must end with the same files. The exit code is 1 where one differs.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import tyro

from pipelines import cli
from pipelines.artefact import PLAN
from pipelines.checkpoints import CHECKPOINTS
from pipelines.config import load_recipe
from pipelines.plan import Plan
from pipelines.runs import RECIPE
from scripts.markdown import table

POLL = 0.01  # seconds


def newest(folder: Path) -> int:
    """Return the step of the newest checkpoint of a stage, 0 where there is none."""
    return max((int(path.name) for path in (folder / CHECKPOINTS).glob("[0-9]*")), default=0)


def started(words: list[str], log: Path) -> ForkServerProcess:
    """Start a verb as a process of its own, forked from one that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipelines.stages", "pipelines.stage_one", "pipelines.masked_stage", __name__])
    process = context.Process(target=_verb, args=(words, log))
    process.start()
    return process


def _verb(words: list[str], log: Path) -> None:
    """What such a process does: the command, its words in a log."""
    with log.open("ab") as handle:
        for number in (1, 2):
            os.dup2(handle.fileno(), number)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.argv = ["palimpsest", *words]
    cli.main()


def kill_after(words: list[str], folder: Path, step: int, wait: float) -> int:
    """Start a stage and kill it `wait` seconds after a checkpoint of `step` or later stands; returns its newest step.

    Raises RuntimeError where the stage ends before.
    """
    log = folder.parent / f"{folder.name}.log"
    process = started(words, log)
    try:
        while newest(folder) < step and process.is_alive():
            time.sleep(POLL)
        time.sleep(wait)
    finally:
        process.kill()
        process.join()
    if process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"{folder.name} ended with {process.exitcode} before it was killed: {log}")
    return newest(folder)


def moments(steps: int, kills: int, seed: str) -> list[tuple[int, float]]:
    """Draw where a stage is to be killed: rising steps in the first three quarters, and seconds behind them."""
    draw = random.Random(seed)
    last = max(1, 3 * steps // 4)
    return [(step, 0.1 * draw.random()) for step in sorted(draw.randint(0, last) for _ in range(kills))]


def made(folder: Path) -> dict[str, str]:
    """Return the hashes of the weights and snapshots that a stage has made."""
    found = sorted(folder.rglob("*.safetensors"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in found}


def beside(whole: Path, out: Path, stage: str) -> Path:
    """Return a copy of a run in which one stage has not begun; all others are links."""
    folder = out / whole.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in whole.iterdir():
        if path.name == RECIPE:
            shutil.copy(path, folder)
        elif path.name != stage:
            (folder / path.name).symlink_to(path.resolve())
    return folder


def torture(whole: Path, out: Path, stage: str, kills: int, seed: str) -> list[int]:
    """Train a stage of a finished run again under kills; returns the steps that it had saved when it was killed.

    Raises RuntimeError where it ends otherwise than the stage of the run.
    """
    folder = beside(whole, out, stage)
    data = json.loads((folder / RECIPE).read_text(encoding="utf-8"))["data"]
    words = ["train", stage, str(folder / RECIPE), "--out", str(out), "--data", data]
    words += ["--set", f"stage.{stage}.training.save_seconds=0.01"]
    steps = Plan.load(whole / stage / PLAN).at(sys.maxsize)
    found = [kill_after(words, folder / stage, step, wait) for step, wait in moments(steps, kills, seed)]
    last = started(words, log := folder / f"{stage}.log")
    last.join()
    if last.exitcode:
        raise RuntimeError(f"{stage} failed after it was killed at {found}: {log}")
    before, after = made(whole / stage), made(folder / stage)
    if before != after:
        raise RuntimeError(f"{stage} ended otherwise after it was killed at {found}: {before} and {after}")
    return found


def main(
    recipe: tyro.conf.Positional[Path], out: Path = Path("runs/kills"), data: Path | None = None, kills: int = 20,
    seed: int = 0, stages: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Run a recipe, torture its stages and say how it went.

    Args:
        recipe: a TOML file, best one of seconds such as recipes/smoke.toml.
        out: folder for the uninterrupted run and the tortured ones.
        data: folder of shards.
        kills: of each stage.
        seed: of the moments.
        stages: by name; all that train, where none is given.
    """
    read, where = load_recipe(recipe), ["--data", str(data)] if data else []
    first = [sys.executable, "-m", "pipelines.cli", "run", str(recipe), "--out", str(out / "whole"), *where]
    subprocess.run(first, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    whole, rows = (out / "whole" / read.name).resolve(), []
    for stage in stages or [name for name in read.order() if getattr(read.stage[name], "training", None)]:
        try:
            found = torture(whole, out.resolve() / "killed", stage, kills, f"{seed}/{stage}")
            rows.append((stage, f"{len(found)}", ", ".join(map(str, found)), "equal"))
        except RuntimeError as error:
            rows.append((stage, "", "", str(error).splitlines()[0]))
        print(rows[-1], flush=True)
    print(table(("stage", "kills", "saved steps when killed", "weights"), rows))
    if any(row[-1] != "equal" for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    tyro.cli(main)
