"""The automatic metrics of a run's report beside what people say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.definitions import SCENE, define
from eval.human.analysis import Results
from eval.human.criteria import TAGGED
from eval.human.metrics import Fit, over_models, over_prompts
from eval.human.study import Study, prompt_id
from eval.human.votes import Vote
from eval.samples import Samples, from_json
from pipelines.artefact import read_json
from pipelines.errors import PalimpsestError

PART = re.compile(r"\.sweep\.|\|slice=")  # of names of figures that are not of what a study showed
SIZE = re.compile(r"\|n=\d+")  # a picture has its own value in a set of any size


def agreements(
    votes: Sequence[Vote], results: Results, study: Study, prompts: Sequence[str], figures: Path
) -> list[Fit]:
    """How every metric of report.json agrees with the raters that count, over models and, where known, over prompts."""
    if study.mode != "pairwise":
        raise PalimpsestError("Metrics are compared with choices between pictures: this study asked for grades.")
    content = read_json(figures)
    if not isinstance(content, dict) or not isinstance(content.get("figures"), dict):
        raise PalimpsestError(f"{figures} is no report.json of `palimpsest eval`: it holds no figures.")
    subjects = {model: source.figures for model, source in study.model.items() if source.figures}
    values = _values(content["figures"], subjects)
    singly = _per_prompt(_samples(content, figures), subjects, prompts)
    if not values and not singly:
        raise PalimpsestError(
            f"{figures} has no figure of two of the models {', '.join(study.models)}: set figures in their tables of "
            "the study file to the first part of their figures' names."
        )
    out = set() if results.main is results.everyone else {r.rater for r in results.raters if r.excluded}
    own = [v for v in votes if not (v.is_gold or v.is_repeat or v.criterion == TAGGED or v.rater_id in out)]
    found = []
    for criterion in (c for c in study.criteria if any(vote.criterion == c for vote in own)):
        found += over_models(own, study.models, criterion, values, study.resample, study.seed)
        found += over_prompts(own, criterion, singly)
    return found


def _values(figures: Mapping[str, Any], subjects: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Every metric that has a better direction, of the models that it is known of, turned so that higher is better.

    Slices of scenes and sweeps are left out: they are not what the study showed.
    """
    found: dict[str, dict[str, float]] = {}
    for model, subject in subjects.items():
        for name, figure in figures.items():
            value = figure.get("value") if isinstance(figure, dict) else None
            sign, scene = _sign(name, subject), SCENE.fullmatch(name)
            if not sign or not isinstance(value, int | float) or (scene is not None and scene["slice"] is not None):
                continue
            if math.isfinite(value):
                metric = name.removeprefix(subject + ".")
                metric = (
                    SIZE.sub("", metric) if metric.startswith("clip_score") else metric
                )  # a mean, whatever the size
                found.setdefault(metric, {})[model] = sign * float(value)
    return {metric: given for metric, given in found.items() if len(given) > 1}


def _sign(name: str, subject: str) -> int:
    """1 for a figure of a subject of which more is better, -1 where less is, 0 for all others, sweeps and slices."""
    better = define(name).better if name.startswith(subject + ".") and not PART.search(name) else None
    return 0 if better is None else 1 if better == "higher" else -1


def _samples(content: Mapping[str, Any], path: Path) -> dict[str, Samples]:
    try:
        return from_json(content.get("samples", {}))
    except ValueError as error:
        raise PalimpsestError(f"{path}: {error}.") from error


def _per_prompt(
    samples: Mapping[str, Samples], subjects: Mapping[str, str], prompts: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """What is known of single prompts, turned so that higher is better; of several pictures of one, of the first.

    Unseen compositions are prompts like others; nothing where the report has no values of single pictures.
    """
    asked = set(map(prompt_id, prompts))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for model, subject in subjects.items():
        for name, one in samples.items():
            if sign := _sign(name, subject):
                metric = SIZE.sub("", name.removeprefix(subject + ".").removesuffix(".unseen"))
                for key, value in zip(one.keys, one.values, strict=True):
                    if key in asked:
                        found.setdefault(metric, {}).setdefault(model, {}).setdefault(key, sign * value)
    return {metric: given for metric, given in found.items() if len(given) > 1}
