"""The sections of a sweep: quality against evaluations, guidance scales, and students beside their teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from eval.blocks import Block, Column, Curve, Figure, Row, Section, Series, Table
from eval.features import NOTE
from pipelines.measures import Evaluation
from pipelines.stage_config import NOISY_SAMPLERS, SweepStage
from pipelines.sweep import ROWS, read_rows

LIKELIHOODS = {"ode": "density of held-out latents along the ODE", "bound": "variational bound on held-out latents"}
MULTISTEP = ("ddim", "dpmpp_2m", "dpmpp_3m", "unipc")


class Metric(NamedTuple):
    """What a row was measured by."""

    key: str
    label: str
    unit: Any
    better: Any


METRICS = (Metric("colour", "colours as asked", "share", "higher"), Metric("kd", "kernel distance", "plain", "lower"))
Measured = Mapping[str, Any]


def sweeps(e: Evaluation) -> None:
    """Add the sections of every sweep before this stage, and note their figures."""
    for name in e.run.recipe.forerunners(e.name):
        stage = e.run.recipe.stage[name]
        if isinstance(stage, SweepStage):
            for model, found in e.run.manifest(name)["bits_per_dim"].items():
                for how, bits in found.items():
                    figure = Figure(
                        bits["value"], int(bits["n"]), bits["low"], bits["high"], f"{name}: {LIKELIHOODS[how]}"
                    )
                    e.figures[f"{model}.bits_per_dim[{how}]"] = figure
            rows = list(read_rows(e.run.stage_folder(name) / ROWS).values())
            _note(e, name, rows)
            e.sections += _sections(name, stage, rows)


def _note(e: Evaluation, name: str, rows: Sequence[Measured]) -> None:
    for row in rows:
        for metric in row["figures"]:
            how = f"{row['curve']}|evaluations={row['evaluations']}|guidance={row['scale']:g}"
            e.figures[f"{row['model']}.sweep.{metric}[{row['group']}: {how}]"] = _figure(row, metric, name)


def _figure(row: Measured, metric: str, name: str) -> Figure:
    found = row["figures"][metric]
    how = f"{row['sampler']}, {row['evaluations']} evaluations, guidance {row['scale']:g}"
    return Figure(found["value"], found["n"], found["low"], found["high"], f"{name}: {row['model']}, {how}")


def _sections(name: str, stage: SweepStage, rows: Sequence[Measured]) -> list[Section]:
    """Return one section per group that has rows."""
    made = []
    warning = f"{stage.count} held-out captions per row, the same for all. Kernel distances are {NOTE}."
    for group, title, x_key, x_label in (
        ("samplers", "Samplers", "evaluations", "network evaluations"),
        ("guidance", "Guidance", "scale", "guidance scale"),
        ("students", "Few steps", "evaluations", "network evaluations"),
    ):
        for model in dict.fromkeys(row["model"] for row in rows if row["group"] == group and group != "students"):
            mine = [row for row in rows if row["group"] == group and row["model"] == model]
            best = [_best(mine, stage.evaluations)] if group == "samplers" else []
            blocks = [*best, *_curves(mine, x_key, x_label), _table(title, mine, name)]
            made.append(Section(f"{title}: {model}", blocks, lead=warning))
        if group == "students" and (mine := [row for row in rows if row["group"] == group]):
            made.append(Section(title, [*_curves(mine, x_key, x_label), _table(title, mine, name)], lead=warning))
    return made


def _families(rows: Sequence[Measured]) -> Iterable[tuple[str, list[Measured]]]:
    """Split samplers into families of few enough lines for one chart."""
    families: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("multistep", lambda curve: curve in MULTISTEP),
        ("stochastic", lambda curve: curve in NOISY_SAMPLERS),
        ("", lambda curve: curve not in MULTISTEP and curve not in NOISY_SAMPLERS),
    )
    for label, belongs in families:
        if found := [row for row in rows if belongs(row["curve"])]:
            yield label, found


def _curves(rows: Sequence[Measured], x_key: str, x_label: str) -> list[Block]:
    blocks: list[Block] = []
    for metric in METRICS:
        for family, part in _families(rows):
            series = [_series(curve, part, metric.key, x_key) for curve in dict.fromkeys(row["curve"] for row in part)]
            title = f"{metric.label}{f', {family} samplers' if family else ''}"
            if shown := [one for one in series if one.x]:
                blocks.append(Curve(title, shown, x_label=x_label, y_label=metric.label, log=metric.key == "kd"))
    return blocks


def _series(curve: str, rows: Sequence[Measured], metric: str, x_key: str) -> Series:
    mine = sorted((row for row in rows if row["curve"] == curve and metric in row["figures"]), key=lambda r: r[x_key])
    x, y, low, high = ([], [], [], []) if not mine else zip(
        *((row[x_key], *(row["figures"][metric][end] for end in ("value", "low", "high"))) for row in mine), strict=True
    )  # fmt: skip
    return Series(curve, list(x), list(y), list(low), list(high))


def _best(rows: Sequence[Measured], budgets: Sequence[int]) -> Table:
    """The best sampler within each number of evaluations, by either metric."""
    lines = []
    for budget in budgets:
        within = [row for row in rows if row["evaluations"] <= budget and (row["within"] in (None, budget))]
        cells: list[Any] = [str(budget)]
        for metric in METRICS:
            fit = [row for row in within if metric.key in row["figures"]]
            sign = -1 if metric.better == "higher" else 1
            top = min(fit, key=lambda row: sign * row["figures"][metric.key]["value"], default=None)
            cells += ["–", None] if top is None else [top["sampler"], _figure(top, metric.key, "sweep")]
        lines.append(Row(cells))
    columns = ["evaluations"]
    for metric in METRICS:
        columns += [f"best by {metric.label}", Column(metric.label, metric.unit, metric.better)]  # type: ignore[list-item]
    return Table("Best sampler within a number of evaluations", columns, lines, note="Overlapping intervals are ties.")


def _table(title: str, rows: Sequence[Measured], name: str) -> Table:
    columns = [
        "curve",
        Column("evaluations", "plain", "lower"),
        "guidance",
        *(Column(m.label, m.unit, m.better) for m in METRICS),
    ]
    lines = [
        Row(
            [
                row["curve"],
                row["evaluations"],
                f"{row['scale']:g}",
                *(_figure(row, m.key, name) if m.key in row["figures"] else None for m in METRICS),
            ]
        )
        for row in rows
    ]
    return Table(f"{title}: all rows", columns, lines)
