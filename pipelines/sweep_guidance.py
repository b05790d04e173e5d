"""The section about guidance: what agreement with captions costs in likeness to real pictures, and where it is dear."""

from __future__ import annotations

from collections.abc import Sequence

from eval.blocks import Block, Pair, Section, Tradeoff
from eval.pareto import front, knee
from pipelines.runs import Run
from pipelines.sweep_table import COLUMNS, Axis, Measured, curves, distance, figure_of, real_of, table

SCALE = Axis("guidance scale", lambda row: row["scale"])
CHARTS = ("precision", "recall", "colour", "shape")


def guidance(run: Run, name: str, model: str, rows: Sequence[Measured], lead: str) -> Section:
    """The trade-off, its parts over the scale, and all numbers; rows: all of the sweep."""
    mine = [row for row in rows if row["group"] == "guidance" and row["model"] == model]
    beside = [row for row in (real_of(rows), real_of(rows, shuffled=True)) if row is not None]
    kin = kinship(run, name, model)
    scored = [row for row in mine if {"clip_score", distance(mine).key} <= row["figures"].keys()]
    blocks: list[Block] = [_tradeoff(name, model, scored, beside[:1], kin)] if scored else []
    blocks += curves(mine, CHARTS if scored else (*CHARTS, "kd"), SCALE)
    blocks.append(table("Guidance: all rows", [*beside, *mine], name, COLUMNS, differences=True))
    return Section(f"Guidance: {model}", blocks, lead=lead)


def _tradeoff(name: str, model: str, rows: Sequence[Measured], beside: Sequence[Measured], kin: str) -> Tradeoff:
    """Distance against CLIP score, a point for each scale."""
    metric = distance(rows)

    def pair(row: Measured, label: str) -> Pair:
        return Pair(label, figure_of(row, "clip_score", name), figure_of(row, metric.key, name))

    named = [(row, pair(row, f"{row['scale']:g}")) for row in rows]
    series = {curve: sorted((p for row, p in named if row["curve"] == curve), key=lambda p: float(p.name))
              for curve in dict.fromkeys(row["curve"] for row, _ in named)}  # fmt: skip
    best = front([p.x.value for _, p in named], [p.y.value for _, p in named])
    bend = knee([named[i][1].x.value for i in best], [named[i][1].y.value for i in best])
    row, ringed = named[best[bend]] if bend is not None else (None, None)
    return Tradeoff(
        f"{metric.label} against CLIP score: {model}",
        series,
        x_label="CLIP score (cosine), higher is better",
        y_label=f"{metric.label}, lower is better",
        front=[named[i][1] for i in best],
        knee=ringed,
        references=[pair(row, row["curve"]) for row in beside if metric.key in row["figures"]],
        note=" ".join(filter(None, (_read(metric.key, rows), _bend(row), kin))),
    )


def _read(metric: str, rows: Sequence[Measured]) -> str:
    """How the chart is to be read."""
    n = max(row["figures"][metric]["n"] for row in rows)
    why = "" if metric == "fd" else f" It is the kernel distance, since {n} pictures are too few for Fréchet's here."
    return (
        f"A point is a scale, which is written beside it; {n} pictures each.{why} Dashed: the Pareto front, the points "
        "that no other one beats in both figures. Points whose whiskers overlap may stand in another order."
    )


def _bend(row: Measured | None) -> str:
    where = "there is none here" if row is None else f"{row['curve']} at {row['scale']:g}"
    return (
        "The knee, ringed, is the point of the front farthest on the better side of the line between the front's ends, "
        f"both figures scaled to 0 and 1 there: {where}."
    )


def kinship(run: Run, name: str, model: str) -> str:
    """Say how near the judge of a sweep stands to what conditions a model: guidance by a judge flatters it."""
    judge = run.recipe.of_kind(name, "judge")[0]
    if run.recipe.stage[model].kind != "latent":
        return f"{model} reads the words themselves, and no text encoder that could be kin to the judge conditions it."
    clip = run.recipe.of_kind(model, "clip")[0]
    weights = [_weights(run, stage) for stage in (judge, clip)]
    if weights[0] & weights[1]:
        return (
            f"Beware: the weights of {judge}, which judges, are those of {clip}, which conditions {model}, so that "
            "guidance raises the score by itself: judge by a tower trained apart."
        )
    return (
        f"The stage {judge}, which judges, was trained apart from {clip}, which conditions {model}, yet in the same "
        "way on the same pictures: what guidance leads to in the eyes of the one also looks better to the other."
    )


def _weights(run: Run, stage: str) -> set[str]:
    return {sha for file, sha in run.manifest(stage)["files"].items() if file.endswith(".safetensors")}
