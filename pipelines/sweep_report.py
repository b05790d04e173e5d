"""The sections of a sweep: quality against evaluations, guidance scales, and students beside their teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eval.blocks import Better, Block, Column, Curve, Figure, Row, Section, Series, Table, Unit
from eval.features import NOTE
from pipelines.judged_config import MaskedSweepStage, SweepStage
from pipelines.measures import Evaluation
from pipelines.sampling_options import NOISY_SAMPLERS, REMASKING_SAMPLERS
from pipelines.sweep_rows import ROWS, read_rows

LIKELIHOODS = {
    "ode": "density of held-out latents along the ODE, down to t = 0.001",
    "bound": "variational bound on held-out latents, down to the noise of their own",
}
FAMILIES = {  # of curves, few enough for one chart
    "multistep": ("ddim", "dpmpp_2m", "dpmpp_3m", "unipc"),
    "stochastic": NOISY_SAMPLERS,
    "confidence-ordered": ("confidence", "maskgit", "entropy_bound"),
    "remasking": REMASKING_SAMPLERS,
}


class Metric(NamedTuple):
    """What a row was measured by."""

    key: str
    label: str
    unit: Unit
    better: Better

    @property
    def column(self) -> Column:
        """Its column in a table."""
        return Column(self.label, self.unit, self.better)


METRICS = (
    Metric("colour", "colours as asked", "share", "higher"),
    Metric("shape", "shapes as asked", "share", "higher"),
    Metric("caption_colour", "colours in captions", "share", "higher"),
    Metric("caption_shape", "shapes in captions", "share", "higher"),
    Metric("kd", "kernel distance", "plain", "lower"),
)
Measured = Mapping[str, Any]


class Axis(NamedTuple):
    """What the rows of a group vary along."""

    key: str
    label: str


EVALUATIONS, SCALE = Axis("evaluations", "network evaluations"), Axis("scale", "guidance scale")
GROUPS = (
    ("samplers", "Samplers", EVALUATIONS),
    ("captions", "Samplers of captions", EVALUATIONS),
    ("guidance", "Guidance", SCALE),
)


def sweeps(e: Evaluation) -> None:
    """Add the sections of every sweep before this stage, and note their figures."""
    for name in e.run.recipe.forerunners(e.name):
        stage = e.run.recipe.stage[name]
        if isinstance(stage, SweepStage | MaskedSweepStage):
            for model, found in e.run.manifest(name).get("bits_per_dim", {}).items():
                for how, bits in found.items():
                    e.figures[f"{model}.bits_per_dim[{how}]"] = kept(bits, f"{name}: {LIKELIHOODS[how]}")
            rows = list(read_rows(e.run.stage_folder(name) / ROWS).values())
            _note(e, name, rows)
            budgets = stage.evaluations if isinstance(stage, SweepStage) else stage.steps
            e.sections += _sections(name, stage.count, budgets, rows)


def _note(e: Evaluation, name: str, rows: Sequence[Measured]) -> None:
    for row in rows:
        for metric in row["figures"]:
            how = f"{row['curve']}|evaluations={row['evaluations']}|guidance={row['scale']:g}"
            how += f"|tolerance={row['latent']['tolerance']:g}" if row["sampler"] == "dormand_prince" else ""
            how += f"|bound={row['masked']['bound']:g}" if row["sampler"] == "entropy_bound" else ""
            e.figures[f"{row['model']}.sweep.{metric}[{row['group']}: {how}]"] = _figure(row, metric, name)


def _figure(row: Measured, metric: str, name: str) -> Figure:
    sampler = row["sampler"] if row["curve"] == row["sampler"] else f"{row['curve']} ({row['sampler']})"
    how = f"{sampler}, {row['evaluations']} evaluations, guidance {row['scale']:g}"
    return kept(row["figures"][metric], f"{name}: {row['model']}, {how}")


def kept(interval: Mapping[str, Any], source: str) -> Figure:
    """Return the figure of an interval that was written down as plain values."""
    return Figure(interval["value"], interval["n"], interval["low"], interval["high"], source)


def _sections(name: str, count: int, budgets: Sequence[int], rows: Sequence[Measured]) -> list[Section]:
    """Return one section per model and group that has rows; students stand together, beside their teacher."""
    lead = f"{count} held-out captions per row, the same for all. Kernel distances are {NOTE}."
    made = []
    for group, title, axis in GROUPS:
        ours = [row for row in rows if row["group"] == group]
        for model in dict.fromkeys(row["model"] for row in ours):
            mine = [row for row in ours if row["model"] == model]
            best = [_best(mine, budgets, name)] if axis == EVALUATIONS else []
            blocks = [*best, *_curves(mine, axis), _table(title, mine, name)]
            made.append(Section(f"{title}: {model}", blocks, lead=lead))
    if students := [row for row in rows if row["group"] == "students"]:
        blocks = [*_curves(students, EVALUATIONS), _table("Few steps", students, name)]
        made.append(Section("Few steps", blocks, lead=lead))
    return made


def family(curve: str) -> str:
    """The family of samplers that a curve belongs to; empty for plain ones."""
    return next((label for label, curves in FAMILIES.items() if curve in curves), "")


def _curves(rows: Sequence[Measured], axis: Axis) -> list[Block]:
    blocks: list[Block] = []
    for metric in METRICS:
        found = [row for row in rows if metric.key in row["figures"]]
        for kin in dict.fromkeys(family(row["curve"]) for row in found):
            series = lines([row for row in found if family(row["curve"]) == kin], metric.key, axis.key)
            title = f"{metric.label}{f', {kin} samplers' if kin else ''}"
            blocks.append(Curve(title, series, x_label=axis.label, y_label=metric.label, log=metric.key == "kd"))
    return blocks


def _measured(rows: Sequence[Measured]) -> list[Metric]:
    """The metrics that some row was measured by."""
    return [metric for metric in METRICS if any(metric.key in row["figures"] for row in rows)]


def lines(rows: Sequence[Measured], metric: str, x_key: str) -> list[Series]:
    """The curves of a chart: a metric with its intervals over what the rows vary along."""
    made = []
    for curve in dict.fromkeys(row["curve"] for row in rows):
        mine = sorted((row for row in rows if row["curve"] == curve), key=lambda row: row[x_key])
        y, low, high = ([row["figures"][metric][end] for row in mine] for end in ("value", "low", "high"))
        made.append(Series(curve, [row[x_key] for row in mine], y, low, high))
    return made


def _best(rows: Sequence[Measured], budgets: Sequence[int], name: str) -> Table:
    """The best sampler within each number of evaluations, by each metric."""
    lines, metrics = [], _measured(rows)
    for budget in budgets:
        within = [row for row in rows if row["evaluations"] <= budget and (row["within"] in (None, budget))]
        cells: list[Any] = [str(budget)]
        for metric in metrics:
            fit = [row for row in within if metric.key in row["figures"]]
            sign = -1 if metric.better == "higher" else 1
            top = min(fit, key=lambda row: sign * row["figures"][metric.key]["value"], default=None)
            cells += ["–", None] if top is None else [top["curve"], _figure(top, metric.key, name)]
        lines.append(Row(cells))
    columns: list[Column | str] = ["evaluations"]
    for metric in metrics:
        columns += [f"best by {metric.label}", metric.column]
    return Table("Best sampler within a number of evaluations", columns, lines, note="Overlapping intervals are ties.")


def _table(title: str, rows: Sequence[Measured], name: str) -> Table:
    metrics = _measured(rows)
    columns = ["curve", Column("evaluations", "plain", "lower"), "guidance", *(metric.column for metric in metrics)]
    lines = [
        Row(
            [
                row["curve"],
                row["evaluations"],
                f"{row['scale']:g}",
                *(_figure(row, m.key, name) if m.key in row["figures"] else None for m in metrics),
            ]
        )
        for row in rows
    ]
    return Table(f"{title}: all rows", columns, lines)
