"""The automatic metrics of a run's report beside what people say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.definitions import SCENE, define
from eval.human.analysis import Results
from eval.human.criteria import TAGGED
from eval.human.metrics import Fit, over_models, over_prompts
from eval.human.study import Study, prompt_id
from eval.human.votes import Vote
from pipelines.artefact import read_json
from pipelines.errors import PalimpsestError
from pipelines.measures import PER_PROMPT


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
    singly = _per_prompt(figures.with_name(PER_PROMPT), subjects, prompts)
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
            better = define(name).better
            if not name.startswith(subject + ".") or better is None or not isinstance(value, int | float):
                continue
            scene = SCENE.fullmatch(name)
            sliced = ".sweep." in name or "|slice=" in name or (scene is not None and scene["slice"] is not None)
            if math.isfinite(value) and not sliced:
                metric = name.removeprefix(subject + ".")
                found.setdefault(metric, {})[model] = float(value) if better == "higher" else -float(value)
    return {metric: given for metric, given in found.items() if len(given) > 1}


def _per_prompt(
    path: Path, subjects: Mapping[str, str], prompts: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """What is known of single prompts; nothing where the report has none."""
    if not path.exists():
        return {}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for metric, given in read_json(path).items():
        for model, subject in subjects.items():
            known = {prompt_id(p): given[subject][p] for p in prompts if p in given.get(subject, {})}
            if known:
                found.setdefault(metric, {})[model] = known
    return {metric: given for metric, given in found.items() if len(given) > 1}
