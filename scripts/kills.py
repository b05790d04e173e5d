"""Kill every trained stage of a recipe at random moments, resume it, and compare its weights bit for bit.

    python scripts/kills.py recipes/smoke.toml                     twenty kills of each stage, half an hour on two cores
    python scripts/kills.py recipes/smoke.toml --stages vae mdlm --kills 3

The recipe is run once without interruption into OUT/whole. Then each stage is trained again on the same forerunners,
killed (SIGKILL) again and again, and must end with the same files. The exit code is 1 where one differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import tyro

from pipelines.checkpoints import CHECKPOINTS
from pipelines.config import load_recipe
from scripts.markdown import table

ROOT = Path(__file__).resolve().parent.parent
POLL = 0.01  # seconds


def command(*words: str | Path) -> list[str]:
    """Return the palimpsest command as a process."""
    return [sys.executable, "-m", "pipelines.cli", *map(str, words)]


def newest(folder: Path) -> int:
    """Return the step of the newest checkpoint of a stage, 0 where there is none."""
    return max((int(path.name) for path in (folder / CHECKPOINTS).glob("[0-9]*")), default=0)


def kill_after(words: list[str], folder: Path, step: int, wait: float) -> int:
    """Start a stage and kill it `wait` seconds after a checkpoint of `step` or later stands; returns its newest step.

    Raises RuntimeError where the stage ends before.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        while newest(folder) < step and process.poll() is None:
            time.sleep(POLL)
        time.sleep(wait)
    finally:
        process.kill()
        process.wait()
    if (folder / "manifest.json").exists() or process.returncode not in (-9, 0):
        raise RuntimeError(f"{folder.name} ended with {process.returncode} before it was killed: {log.name}")
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
        if path.name == "recipe.json":
            shutil.copy(path, folder)
        elif path.name != stage:
            (folder / path.name).symlink_to(path.resolve())
    return folder


def torture(whole: Path, out: Path, stage: str, kills: int, seed: str) -> list[int]:
    """Train a stage of a finished run again under kills; returns the steps that it had saved when it was killed.

    Raises RuntimeError where it ends otherwise than the stage of the run.
    """
    folder = beside(whole, out, stage)
    data = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["data"]
    words = command("train", stage, folder / "recipe.json", "--out", out, "--data", data,
                    "--set", f"stage.{stage}.training.save_seconds=0.01")  # fmt: skip
    steps = json.loads((whole / stage / "manifest.json").read_text(encoding="utf-8"))["steps"]
    found = [kill_after(words, folder / stage, step, wait) for step, wait in moments(steps, kills, seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{stage} failed after it was killed at {found}: {done.stdout}{done.stderr}")
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
    subprocess.run(command("run", recipe, "--out", out / "whole", *where), cwd=ROOT, check=True)
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
