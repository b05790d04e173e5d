"""`palimpsest ema`: give a finished stage averaged weights of another length, and all that follows from them.

What a stage finds out after its training (statistics of latents, an order of reveal) belongs to its default weights. So
the length is asked for in a file, and the stage is made again with that in place of its training.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipelines.artefact import MANIFEST, load_weights, read_json, save_weights, write_atomically, write_json
from pipelines.checkpoints import ASKED
from pipelines.errors import PalimpsestError
from pipelines.posthoc import SNAPSHOTS, read_index, synthesise
from pipelines.power_average import exponent
from pipelines.task import Task

if TYPE_CHECKING:
    from pipelines.runs import Run

FAR = 0.05  # an error of the profile that is worth a warning


def asked(folder: Path) -> bool:
    """Whether another length is asked of a stage whose training is over."""
    return (folder / ASKED).exists()


def answer(task: Task, folder: Path) -> dict[str, Any]:
    """Put averaged weights of the length that is asked for in place; returns the facts of the training, and of this.

    Of several lengths the one whose figure is lowest is kept; of none, what training left.
    """
    request, index = read_json(folder / ASKED), read_index(folder)
    load_weights(task.network, folder / "model.safetensors")
    ema, trained = folder / "ema.safetensors", folder / SNAPSHOTS / "ema.safetensors"
    if not request["lengths"]:
        if trained.exists():
            write_atomically(ema, lambda temporary: shutil.copyfile(trained, temporary))
        else:
            ema.unlink(missing_ok=True)
        return index["facts"]
    compared, best = dict[str, dict[str, float]](), (float("inf"), request["lengths"][0])
    for length in request["lengths"] if len(request["lengths"]) > 1 else ():
        figures = _figures(task, synthesise(folder, index, length)[0])
        compared[f"{length:g}"] = figures
        best = min(best, (_figure(figures, request["by"] or task.criterion or "loss"), length))
    state, error = synthesise(folder, index, best[1])
    save_weights(ema, state)
    kept = {name: value for name, value in index["facts"].items() if not name.startswith("chosen_")}
    more = {"ema_compared": compared} if compared else {}
    return {**kept, "ema_length": best[1], "ema_error": round(error, 6), **more}


def _figures(task: Task, state: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return what a stage validates by, of averaged weights."""
    network: nn.Module = copy.deepcopy(task.network)
    network.load_state_dict(state)
    with torch.no_grad():
        return task.validate(network.eval())


def _figure(figures: dict[str, float], name: str) -> float:
    if name not in figures:
        known = ", ".join(figures) or "none at all"
        raise PalimpsestError(f"The stage validates by no figure {name!r}: give --by one of {known}.")
    return figures[name]


def change_length(run: Run, name: str, lengths: tuple[float, ...], by: str | None) -> str:
    """Make a finished stage again with averages of another length; returns what to tell.

    Raises PalimpsestError where the stage is not finished, has no snapshots, or a length is none.
    """
    from pipelines.stages import lock, run_stage

    folder = run.stage_folder(name)
    try:
        for length in lengths:
            exponent(length)
    except ValueError as error:
        raise PalimpsestError(f"{error}: give another --length") from error
    with lock(folder, name):
        if not asked(folder):  # else an earlier command was interrupted: its manifest is gone
            run.manifest(name)
        read_index(folder)
        write_json(folder / ASKED, {"lengths": lengths, "by": by})
        (folder / MANIFEST).unlink(missing_ok=True)
    manifest = run_stage(run, name)
    return "\n".join([*_told(name, manifest), *_built_on(run, name)])


def _told(name: str, manifest: dict[str, Any]) -> list[str]:
    """Say what the averaged weights of a stage are now."""
    if "ema_length" not in manifest:
        return [f"{name}: the weights are those that training left."]
    rows = manifest.get("ema_compared", {}).items()
    lines = [f"  length {at}  " + "  ".join(f"{key} {value:.5g}" for key, value in row.items()) for at, row in rows]
    error = manifest["ema_error"]
    far = " That is far: train with more snapshots, or stay nearer to the tracked lengths." if error > FAR else ""
    kept = (
        f"{name}: averaged over a relative length of {manifest['ema_length']:g}; its profile is met up to {error:.2%}."
    )
    return [*lines, kept + far]


def _built_on(run: Run, name: str) -> list[str]:
    """Say which finished stages stand on other weights of this one now."""
    stands = {other for other in run.recipe.stage if (run.stage_folder(other) / MANIFEST).exists()}
    after = [other for other in run.recipe.order() if other in stands and name in run.recipe.stage[other].needs]
    now = read_json(run.stage_folder(name) / MANIFEST)["hash"]
    stale = [
        other
        for other in after
        if read_json(run.stage_folder(other) / MANIFEST).get("identity", {}).get("needs", {}).get(name) != now
    ]
    if not stale:
        return []
    return [f"Built on other weights of it, and refused from now on until they are made anew: {', '.join(stale)}."]
