"""From a stage's kind to the function that makes it, and what every stage shares: lock, data, clock, manifest."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO, assert_never

import torch
from accelerate import PartialState

from pipelines import checkpoints
from pipelines.artefact import MANIFEST
from pipelines.data.config import MoreScenes, ScenesData, Sets
from pipelines.data.place import Here
from pipelines.data.scenes import write as write_scenes
from pipelines.errors import PalimpsestError
from pipelines.hardware import from_main
from pipelines.judged_config import EvalStage, GenerateStage, MaskedSweepStage, SweepStage
from pipelines.progress import ticking
from pipelines.runs import Run, stage_of
from pipelines.stage_config import (
    ArStage,
    BPEStage,
    ClassifierStage,
    ClipStage,
    DistillStage,
    EncodeStage,
    JudgeStage,
    LatentStage,
    MdlmStage,
    SceneJudgeStage,
    UpscaleStage,
    VAEStage,
    VQVAEStage,
)
from pipelines.stopping import ending_at_once
from pipelines.text.config import TextData, TextEvalStage, TextModelStage, TextSweepStage, TextTokensStage
from pipelines.together import together

PATIENCE = 120  # seconds that a stage waits for a folder


def run_stage(run: Run, name: str, *, again: bool = False) -> dict[str, Any]:
    """Make the artefact of one stage, unless it stands already; returns its manifest.

    again: make it anew even then. Raises PalimpsestError where a forerunner is missing or does not match.
    """
    stage_of(run, name)
    folder = run.stage_folder(name)
    prepare_process()
    main = PartialState(cpu=not torch.cuda.is_available()).is_main_process
    with ExitStack() as held:
        with together():
            identity = _begin(run, name, held, again=again) if main else None
        identity = from_main(identity)
        if not main:  # a rank of a distributed run does what all do, the main process does all else
            if identity is not None and run.recipe.stage[name].by_all:
                make(run, name)
            return {}
        if identity is None:
            return run.manifest(name)
        started = time.monotonic()
        facts = make(run, name)
        seconds = time.monotonic() - started + facts.get("earlier_seconds", 0.0)  # before the last interruption, too
        manifest = run.finish(name, identity, {**facts, "wall_seconds": round(seconds, 1)})
        checkpoints.drop(folder)
    return manifest


def _begin(run: Run, name: str, held: ExitStack, *, again: bool) -> dict[str, Any] | None:
    """Take the folder of a stage and return what the stage is made from, None where it stands already."""
    ensure_data(run)
    folder = run.stage_folder(name)
    held.enter_context(lock(folder, name))
    if not again and run.finished(name):  # under the lock: another process may just have finished it
        print(f"{name} is finished: {folder}")
        return None
    (folder / MANIFEST).unlink(missing_ok=True)
    return run.begin(name)


def make(run: Run, name: str) -> dict[str, Any]:
    """Do the work of one stage and return the facts for its manifest. Raises Interrupted where it is asked to stop."""
    with ending_at_once(name):  # but while it trains, which saves first
        return _make(run, name)


def _make(run: Run, name: str) -> dict[str, Any]:
    stage = stage_of(run, name)
    match stage:
        case BPEStage():
            from pipelines.stage_one import train_bpe

            return train_bpe(run, name, stage)
        case VAEStage():
            from pipelines.stage_one import train_vae

            return train_vae(run, name, stage)
        case VQVAEStage():
            from pipelines.stage_one import train_vqvae

            return train_vqvae(run, name, stage)
        case ClipStage() | JudgeStage():
            from pipelines.judge_stages import train_contrastive

            return train_contrastive(run, name, stage)
        case SceneJudgeStage():
            from pipelines.judge_stages import train_scene_judge

            return train_scene_judge(run, name, stage)
        case EncodeStage():
            from pipelines.encode import encode

            return encode(run, name, stage)
        case LatentStage():
            from pipelines.latent_stage import train_latent

            return train_latent(run, name, stage)
        case UpscaleStage():
            from pipelines.upscale_stage import train_upscale

            return train_upscale(run, name, stage)
        case DistillStage():
            from pipelines.distill_stage import train_distill

            return train_distill(run, name, stage)
        case ClassifierStage():
            from pipelines.classifier_stage import train_classifier

            return train_classifier(run, name, stage)
        case MdlmStage():
            from pipelines.masked_stage import train_mdlm

            return train_mdlm(run, name, stage)
        case ArStage():
            from pipelines.ar_stage import train_ar

            return train_ar(run, name, stage)
        case TextTokensStage():
            from pipelines.text.corpus import make_tokens

            return make_tokens(run, name, stage)
        case TextModelStage():
            from pipelines.text.train import train_text

            return train_text(run, name, stage)
        case TextSweepStage():
            from pipelines.text.sweep import text_sweep

            return text_sweep(run, name, stage)
        case TextEvalStage():
            from pipelines.text.report import evaluate_text

            return evaluate_text(run, name, stage)
        case GenerateStage():
            from pipelines.generate import generate

            return generate(run, name, stage)
        case SweepStage():
            from pipelines.sweep import sweep

            return sweep(run, name, stage)
        case MaskedSweepStage():
            from pipelines.masked_sweep import masked_sweep

            return masked_sweep(run, name, stage)
        case EvalStage():
            from pipelines.evaluate import evaluate

            return evaluate(run, name, stage)
        case _:
            assert_never(stage)


def prepare_process() -> None:
    """Set what a process needs once: no denormals (Adam's moments fill with them), and the threads it was given."""
    torch.set_flush_denormal(True)
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))


def ensure_data(run: Run) -> None:
    """Render the built-in scenes where a recipe asks for them and they are not there yet; miss texts at once."""
    data = run.recipe.data
    if isinstance(data, TextData):
        others = [other.file for s in run.recipe.stage.values() if isinstance(s, TextEvalStage) for other in s.other]
        for name in (data.train, data.test, *([data.valid] if data.valid else []), *others):
            if not (run.data / name).is_file():
                raise PalimpsestError(
                    f"There is no text at {run.data / name}: say where the files are with --data DIR."
                )
    if not isinstance(data, Sets):
        return
    for source, one in zip(run.pictures, (data, *data.pictures), strict=True):
        folder = source.place.folder
        if isinstance(one, ScenesData | MoreScenes) and isinstance(source.place, Here) and not folder.exists():
            with lock(folder.parent, "data"), ticking("scenes") as tick:
                write_scenes(folder, count=one.count, size=one.size, seed=one.seed, pixels=one.render, progress=tick)


@contextmanager
def lock(folder: Path, name: str) -> Iterator[None]:
    """Hold a folder for this process and refuse a second one; the system frees it when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        _acquire(handle, name, folder)
        for path in folder.glob(".*.tmp"):  # what a killed process left half written
            path.unlink(missing_ok=True)
        yield


def _acquire(handle: TextIO, name: str, folder: Path) -> None:
    """Take a lock; an orphan of a killed run needs a moment to see that, save and end."""
    for left in range(PATIENCE, -1, -1):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not left:
                raise PalimpsestError(
                    f"Another process is working on {name} in {folder}. Wait for it, or give another --out."
                ) from error
        if left == PATIENCE:
            print(f"{name}: waiting for another process in {folder}", file=sys.stderr, flush=True)
        time.sleep(1)
