"""The sections of sweeps over models of pictures, their figures, and their numbers in a table beside the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from eval.blocks import Cell, Column, Row, Section, Table
from eval.features import NOTE
from eval.figure import Figure, Known, missing
from pipelines.judged_config import MaskedSweepStage, SweepStage
from pipelines.measures import Evaluation
from pipelines.runs import Run
from pipelines.sampling_options import AUTOREGRESSIVE
from pipelines.sweep_csv import NAME, write_csv
from pipelines.sweep_guidance import guidance
from pipelines.sweep_judged import BATCH, REAL, where
from pipelines.sweep_progress import lengths, line, training
from pipelines.sweep_rows import ROWS, read_rows
from pipelines.sweep_table import (
    COLUMNS,
    DISTANCE,
    EVALUATIONS,
    SECONDS,
    Axis,
    Measured,
    curves,
    distance,
    figure_of,
    kept,
    known,
    measured,
    real_of,
    table,
)

LIKELIHOODS = {
    "ode": "density of {where} latents along the ODE, down to t = 0.001",
    "bound": "variational bound on {where} latents, down to the noise of their own",
}
BEST = ("colour", "shape", "caption_colour", "caption_shape", "clip_score")  # and the distance: what has a best sampler
TEMPERATURE = Axis("temperature", lambda row: row["temperature"])
SAMPLED = {"samplers": ("Samplers", ("colour", "shape", DISTANCE)),
           "captions": ("Samplers of captions", ("caption_colour", "caption_shape"))}  # fmt: skip
TEMPERED = {
    "temperature": (
        "Temperature",
        ("colour", "shape", DISTANCE, "clip_score", "recall", "code_entropy"),
    ),
    "caption_temperature": ("Temperature of captions", ("caption_colour", "caption_shape", "caption_entropy")),
}


def sweeps(e: Evaluation) -> None:
    """Add the sections of every sweep before this stage, note their figures, and write their table."""
    found: dict[str, list[Measured]] = {}
    made: dict[str, dict[str, Known]] = {}
    for name in e.run.recipe.forerunners(e.name):
        stage = e.run.recipe.stage[name]
        if isinstance(stage, SweepStage | MaskedSweepStage):
            rows = found[name] = list(read_rows(e.run.stage_folder(name) / ROWS).values())
            made[name] = {**_likelihoods(e.run, name), **dict(figures(name, rows))}
            budgets = stage.evaluations if isinstance(stage, SweepStage) else stage.steps
            e.sections += sections(e.run, name, stage.count, budgets, rows)
    e.figures |= apart(made)
    write_csv(e.run.stage_folder(e.name), found)


def _likelihoods(run: Run, name: str) -> dict[str, Known]:
    """What latents cost under the models of a sweep, by the figures' names."""
    return {
        f"{model}.bits_per_dim[{how}]": kept(bits, f"{name}: {LIKELIHOODS[how].format(where=where(run))}")
        for model, bits_of in run.manifest(name).get("bits_per_dim", {}).items()
        for how, bits in bits_of.items()
    }


def apart(sweeps: Mapping[str, Mapping[str, Known]]) -> dict[str, Known]:
    """The figures of sweeps by their names; where several have one name, each has its sweep in the brackets, too."""
    taken = Counter(name for of in sweeps.values() for name in of)
    return {
        name if taken[name] == 1 else f"{name.removesuffix(']')}|sweep={sweep}]": figure
        for sweep, of in sweeps.items()
        for name, figure in of.items()
    }


def figures(name: str, rows: Sequence[Measured]) -> Iterator[tuple[str, Known]]:
    """Yield the figures of all rows with their names, which hold all that they depend on; or why one is missing."""
    for row in rows:
        notes = row.get("notes", {})
        for metric in dict.fromkeys([*row["figures"], *(metric for metric in notes if metric != "line")]):
            if figure := known(row, metric, name):
                yield _name(row, metric, row.get("keys", {}).get(metric, metric)), figure
        if fit := row.get("line"):
            source = f"{name}: a line over 1 / n of both sides; its error is {fit['se']:.3g}, R2 {fit['r2']:.3f}"
            yield _line(row), Figure(fit["value"], row["figures"]["fd"]["n"], source=source)
        elif "line" in notes:
            yield _line(row), missing(notes["line"])


def _name(row: Measured, metric: str, key: str) -> str:
    """The name of a figure; its count stands in it where the key has no sizes."""
    full, _, embedder = key.removesuffix("]").partition("[")
    counted = metric in row["figures"] and "n=" not in embedder
    count = f"n={row['figures'][metric]['n']}" if counted else ""
    inside = "|".join(filter(None, (f"{row['group']}: {_how(row)}", embedder, count)))
    return f"{row['model']}.sweep.{full}[{inside}]"


def _line(row: Measured) -> str:
    return _name(row, "fd", row["keys"]["fd"].replace("fd[", "fd-infinity[", 1))


def _how(row: Measured) -> str:
    """What tells a row from the others of its group: what was asked, and not what it took."""
    if row["group"] == REAL:
        return row["curve"]
    parts = [row["curve"], *_asked(row), f"guidance={row['scale']:g}"]
    parts += [f"temperature={row['temperature']:g}"] if row["group"] in TEMPERED else []
    parts += [f"{of}={row[of]:g}" for of in ("length", "step") if row.get(of) is not None]
    return "|".join(parts)


def _asked(row: Measured) -> list[str]:
    """By what a sampler was told how long to go on."""
    match row["sampler"]:
        case "dormand_prince":
            return [f"tolerance={row['latent']['tolerance']:g}"]
        case "entropy_bound":
            return [f"bound={row['masked']['bound']:g}"]
        case "annealed_langevin":
            return [f"steps={row['steps']}", f"langevin={row['latent']['langevin_steps']}"]
        case sampler:
            return [] if sampler == AUTOREGRESSIVE else [f"steps={row['steps']}"]


def sections(run: Run, name: str, count: int, budgets: Sequence[int], rows: Sequence[Measured]) -> list[Section]:
    """Return one section per model and group that has rows; students stand together, beside their teacher."""
    lead = (
        f"{count} {where(run)} captions per row, the same for all, with the same draws. Distances and CLIP scores are "
        f"{NOTE}. The figures of all rows, with their intervals and remarks, are in {NAME} beside this page."
    )
    made: list[Section] = []
    models = dict.fromkeys(row["model"] for row in rows if row["model"] != REAL)
    for group in SAMPLED:
        made += [_sampled(name, model, group, rows, budgets, lead) for model in models if _of(rows, group, model)]
    made += [guidance(run, name, model, rows, lead) for model in models if _of(rows, "guidance", model)]
    for group in TEMPERED:
        made += [_tempered(name, model, group, rows, lead) for model in models if _of(rows, group, model)]
    made += _students(name, rows, lead)
    for model in models:
        made += [*lengths(run, name, model, rows, lead), *training(run, name, model, rows, lead)]
        made += line(run, name, model, rows)
    return made


def _of(rows: Sequence[Measured], group: str, model: str) -> list[Measured]:
    return [row for row in rows if row["group"] == group and row["model"] == model]


def _sampled(name: str, model: str, group: str, rows: Sequence[Measured], budgets: Sequence[int], lead: str) -> Section:
    """Samplers over evaluations, and the distance over the seconds that a picture took."""
    title, metrics = SAMPLED[group]
    mine, real = _of(rows, group, model), real_of(rows) if group == "samplers" else None
    blocks = [_best(mine, budgets, name), *curves(mine, metrics, EVALUATIONS, families=True)]
    timed = [row for row in mine if "seconds" in row["figures"]]
    if group == "samplers":
        blocks += curves(timed, [DISTANCE], SECONDS, families=True, more=" over time")
    blocks.append(table(f"{title}: all rows", [*([real] if real else []), *mine], name, COLUMNS, note=_clock(mine)))
    return Section(f"{title}: {model}", blocks, lead=lead)


def _clock(rows: Sequence[Measured]) -> str:
    """What is to be known of the seconds of rows."""
    if not (machines := dict.fromkeys(row["machine"] for row in rows if "seconds" in row["figures"])):
        return ""
    return (
        f"Seconds are wall time on {'; '.join(machines)}, batches of {BATCH}; a model's first batch was drawn before "
        "the clock ran. Other work on that machine makes rows slower: compare within a section only."
    )


def _tempered(name: str, model: str, group: str, rows: Sequence[Measured], lead: str) -> Section:
    """Figures over temperatures, beside what real pictures have."""
    title, metrics = TEMPERED[group]
    mine, beside = _of(rows, group, model), [row for row in (real_of(rows),) if row is not None]
    levels = {row["curve"]: row for row in rows if row["group"] == REAL and row["model"] == model}
    columns = {**COLUMNS, "temperature": lambda row: None if row["group"] == REAL else f"{row['temperature']:g}"}
    shown = [*(beside if group == "temperature" else []), *levels.values(), *mine]
    blocks = [*curves(mine, metrics, TEMPERATURE, levels=levels),
              table(f"{title}: all rows", shown, name, columns, differences=True)]  # fmt: skip
    return Section(f"{title}: {model}", blocks, lead=lead)


def _students(name: str, rows: Sequence[Measured], lead: str) -> list[Section]:
    mine = [row for row in rows if row["group"] == "students"]
    timed = [row for row in mine if "seconds" in row["figures"]]
    blocks = [*curves(mine, ("colour", "shape", DISTANCE), EVALUATIONS),
              *curves(timed, [DISTANCE], SECONDS, more=" over time"),
              table("Few steps", mine, name, COLUMNS, note=_clock(mine))]  # fmt: skip
    return [Section("Few steps", blocks, lead=lead)] if mine else []


def _best(rows: Sequence[Measured], budgets: Sequence[int], name: str) -> Table:
    """The best sampler within each number of evaluations, by each metric."""
    read = {*BEST, distance(rows).key}
    lines, metrics = [], [metric for metric in measured(rows) if metric.key in read]
    for budget in budgets:
        within = [row for row in rows if row["evaluations"] <= budget]
        cells: list[Cell] = [str(budget)]
        for metric in metrics:
            fit = [row for row in within if metric.key in row["figures"]]
            sign = -1 if metric.better == "higher" else 1
            top = min(fit, key=lambda row: sign * row["figures"][metric.key]["value"], default=None)
            cells += ["–", None] if top is None else [top["curve"], figure_of(top, metric.key, name)]
        lines.append(Row(cells))
    columns: list[Column | str] = ["evaluations"]
    for metric in metrics:
        columns += [f"best by {metric.label}", metric.column]
    return Table("Best sampler within a number of evaluations", columns, lines, note="Overlapping intervals are ties.")
