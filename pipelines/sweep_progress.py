"""The sections about what training left: averages of other lengths, the steps of the training, the line over 1 / n."""

from __future__ import annotations

from collections.abc import Sequence

from eval.blocks import Block, Curve, Section, Series
from pipelines.logged import logged, read_log
from pipelines.runs import Run
from pipelines.sweep_judged import STEPS, USUAL, where
from pipelines.sweep_table import DISTANCE, METRICS, Axis, Measured, curves, distance, table
from pipelines.sweep_training import IN_USE, LENGTH

LENGTHS = Axis("relative length of the average", lambda row: row["length"])
TRAINED = Axis("step", lambda row: row["step"])
BY_LENGTH = (DISTANCE, "clip_score", "colour")
BY_STEP = (DISTANCE, "mind", "clip_score", "colour")


def lengths(run: Run, name: str, model: str, rows: Sequence[Measured], lead: str) -> list[Section]:
    """Averages of several lengths, the weights in use as a level, and the length of the least distance marked."""
    mine = [row for row in rows if row["group"] == LENGTH and row["model"] == model]
    swept = [row for row in mine if row["length"] is not None]
    if not swept:
        return []
    metric, used = distance(mine), [row for row in mine if row["length"] is None]
    best = min((row for row in swept if metric.key in row["figures"]), default=None,
               key=lambda row: row["figures"][metric.key]["value"])  # fmt: skip
    in_use = _in_use(run, model)
    charts = curves(swept, BY_LENGTH, LENGTHS, more=" by length", levels=dict(zip([IN_USE], used, strict=False)))
    marked = [_marked(chart, best) for chart in charts if isinstance(chart, Curve)]
    columns = {
        "weights": lambda row: IN_USE if row["length"] is None else "average",
        "length": lambda row: row["length"],
        "distance of its profile": lambda row: row["profile_error"] if row["length"] else None,
        "": lambda row: _mark(row, best, in_use, metric.label),
    }
    note = (
        f"In use: {in_use}. An average is made of the snapshots that training.posthoc kept; the distance of its "
        "profile is a share, 0 where the length is met exactly. `palimpsest ema` puts another length in place."
    )
    rows_of = table("Lengths: all rows", mine, name, columns, differences=True, note=note)
    return [Section(f"Length of the average: {model}", [*marked, rows_of], lead=lead)]


def _in_use(run: Run, model: str) -> str:
    made = run.manifest(model)
    if "ema_length" in made:
        return f"an average of length {made['ema_length']:g}"
    training = getattr(run.recipe.stage[model], "training", None)
    assert training is not None  # a swept model has trained
    which = "that validated best" if training.keep == "best" else "of the last step"
    return f"the average of decay {training.ema:g} {which}" if training.ema else f"the weights {which}"


def _mark(row: Measured, best: Measured | None, in_use: str, label: str) -> str:
    marks = ["in use"] if row["length"] is None or in_use.endswith(f"length {row['length']:g}") else []
    return ", ".join([*marks, *([f"least {label}"] if row is best else [])])


def _marked(chart: Curve, best: Measured | None) -> Curve:
    """The chart with the interval of the best length as a line of its own."""
    key = next(metric.key for metric in METRICS.values() if metric.label == chart.y_label)
    if best is None or key not in best["figures"]:
        return chart
    figure, x = best["figures"][key], best["length"]
    heights = [height for height in (figure["low"], figure["value"], figure["high"]) if height is not None]
    chosen = Series(f"least distance, at {x:g}", [x] * len(heights), heights)
    return Curve(chart.title, [*chart.series, chosen], x_label=chart.x_label, y_label=chart.y_label, log=chart.log)


def training(run: Run, name: str, model: str, rows: Sequence[Measured], lead: str) -> list[Section]:
    """Figures over the steps of the training, beside its loss."""
    mine = [row for row in rows if row["group"] == STEPS and row["model"] == model]
    if not mine:
        return []
    log = read_log(run.stage_folder(model))
    losses = [line for split in ("train", "validation") if (line := logged(log, "loss", split, split)).x]
    blocks: list[Block] = curves(mine, BY_STEP, TRAINED, more=" over the training")
    positive = all(value > 0 for line in losses for value in line.y)
    blocks += [Curve(f"{model}: loss", losses, y_label="loss", log=positive)] if losses else []
    columns = {"step": lambda row: row["step"], "weights": _which}
    note = "MIND is the cheap one of the distances: it needs no covariance, and few pictures already tell it."
    blocks.append(table("Training: all rows", mine, name, columns, note=note))
    return [Section(f"Over the training: {model}", blocks, lead=lead)]


def _which(row: Measured) -> str:
    return "a checkpoint" if row["length"] is None else f"average of length {row['length']:g}"


def line(run: Run, name: str, model: str, rows: Sequence[Measured]) -> list[Section]:
    """The Fréchet distance of the model as it is usually sampled, over 1 / n, and all figures of those pictures."""
    mine = [row for row in rows if row["group"] == USUAL and row["model"] == model]
    blocks: list[Block] = []
    for row in mine:
        if fit := row.get("line"):
            blocks.append(_fit(fit))
        columns = {"sampler": lambda row: row["sampler"], "steps": lambda row: row["steps"],
                   "guidance": lambda row: f"{row['scale']:g}"}  # fmt: skip
        note = row.get("notes", {}).get("line", "")
        blocks.append(table("As it is usually sampled", [row], name, columns, note=f"No line: {note}." if note else ""))
    title = f"Fréchet distance over 1 / n: {model}"
    return [Section(title, blocks, lead=_lead(run, mine[0]))] if mine else []


def _lead(run: Run, row: Measured) -> str:
    n = row["figures"]["seconds"]["n"]
    how = f"{row['sampler']}, {row['evaluations']} evaluations, guidance {row['scale']:g}"
    return f"{n} {where(run)} captions, {how}."


def _fit(fit: Measured) -> Curve:
    """Points and the line through them, down to infinitely many pictures."""
    most = max(n for n, _, _ in fit["points"])
    x, y = [1 / n for n, _, _ in fit["points"]], [value for _, _, value in fit["points"]]
    ends = [0.0, max(x)]
    fitted = [fit["value"] + fit["bias"] * most * place for place in ends]
    bounds = [fit["value"] - 1.96 * fit["se"], fit["value"] + 1.96 * fit["se"]]
    series = [
        Series("subsets of both sets", x, y, y, y),
        Series("line through them", ends, fitted),
        Series("95 % of the fit at 1 / n = 0", [0.0, 0.0], bounds),
    ]
    note = (
        f"Continued to 1 / n = 0 the distance is {fit['value']:.4g}; of {most} pictures it is {fit['bias']:.4g} more, "
        f"which is bias. The error of the fit is {fit['se']:.3g}, R2 {fit['r2']:.3f}; another sample would move the "
        "line further."
    )
    return Curve("Fréchet distance over 1 / n", series, x_label="1 / n", y_label="Fréchet distance", note=note)
