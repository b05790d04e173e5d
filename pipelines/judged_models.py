"""What a report says of each model that it judges: which weights, and how they were drawn with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from eval.blocks import Judged
from pipelines.judged_config import GenerateStage
from pipelines.runs import Run
from pipelines.samplers import calls_of
from pipelines.sampling_options import AUTOREGRESSIVE, LATENT_SAMPLERS

PRECISION = "float32"  # nothing is drawn or judged under autocast
DIGITS = 12  # of a hash
SWEEPS = ("sweep", "masked_sweep", "text_sweep")
SUPPORT = ("judge", "scene_judge")  # stages that an evaluation needs and does not judge


def judged_models(run: Run, name: str, manifests: Mapping[str, Mapping[str, Any]]) -> list[Judged]:
    """The models whose results stage `name` judges, from the manifests of the stages; those that draw first."""
    needed = [other for other in run.recipe.stage[name].needs if other in manifests]
    drawing = [other for other in needed if isinstance(run.recipe.stage[other], GenerateStage)]
    drawn = {manifests[other]["model"] for other in drawing}
    sweeps = [run.recipe.stage[other] for other in needed if run.recipe.stage[other].kind in SWEEPS]
    swept = [other for sweep in sweeps for other in sweep.needs if other in manifests and other not in drawn]
    rest = [other for other in dict.fromkeys((*needed, *swept)) if other not in drawing]
    rest = [other for other in rest if run.recipe.stage[other].kind not in SUPPORT]
    return [*_drawing(run, drawing, manifests), *_others(run, rest, manifests)]


def drawn_with(settings: Mapping[str, Any]) -> dict[str, str]:
    """Sampler, steps and guidance of a manifest or of the file beside a picture, in words."""
    sampler, steps, latent = settings["sampler"], settings["steps"], settings.get("latent", {})
    guidance = [f"{settings['guidance']:g}"]
    said = "" if sampler == AUTOREGRESSIVE else str(steps)
    if sampler in LATENT_SAMPLERS:
        calls = calls_of(sampler, steps, latent.get("langevin_steps", 1))
        said += "" if calls in (steps, None) else f" ({calls} evaluations)"
        said = f"tolerance {latent['tolerance']:g}" if calls is None else said
        guidance += [latent["rule"]] if latent.get("rule", "plain") != "plain" else []
        guidance += [f"by {latent[guide]}" for guide in ("weak", "classifier") if latent.get(guide)]
        low, high = latent.get("interval", (0, 1))
        guidance += [f"times {low:g} to {high:g}"] if (low, high) != (0, 1) else []
    elif sampler == "entropy_bound":
        said = f"bound {settings['masked']['bound']:g}"
    return {"sampler": sampler, "steps": said, "guidance": ", ".join(guidance)}


def files_behind(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Hashes of all files of the stages by their paths in the run's folder."""
    return {f"{name}/{file}": sha for name, made in manifests.items() for file, sha in made.get("files", {}).items()}


def _drawing(run: Run, stages: list[str], manifests: Mapping[str, Mapping[str, Any]]) -> Iterator[Judged]:
    for name in stages:
        made = manifests[name]
        model = made["model"]
        checkpoint, weights = _weights(run, model, manifests[model])
        yield Judged(
            name=f"{model} ({name})", checkpoint=checkpoint, weights=weights, precision=PRECISION, seed=made["seed"],
            **drawn_with(made["settings"]),
        )  # fmt: skip


def _others(run: Run, stages: list[str], manifests: Mapping[str, Mapping[str, Any]]) -> Iterator[Judged]:
    for name in stages:
        checkpoint, weights = _weights(run, name, manifests[name])
        if checkpoint:
            yield Judged(name=name, checkpoint=checkpoint, weights=weights, precision=PRECISION)


def _weights(run: Run, name: str, made: Mapping[str, Any]) -> tuple[str, str]:
    """Hash of the weights that a stage is drawn with (models.best_weights), and which of its training they are."""
    files, training = made.get("files", {}), getattr(run.recipe.stage[name], "training", None)
    step = f", of step {made['chosen_step']}" if "chosen_step" in made else ""
    if averaged := files.get("ema.safetensors"):
        length = f"over a length of {made['ema_length']:g}" if "ema_length" in made else ""
        decay = f"with decay {training.ema:g}" if training is not None and training.ema is not None else ""
        return averaged[:DIGITS], f"averaged {length or decay}".strip() + step
    last = files.get("model.safetensors", "")[:DIGITS]
    return last, f"not averaged{step}" if training is not None else "as given"
