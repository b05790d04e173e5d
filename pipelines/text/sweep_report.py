"""The sections of a sweep over text models: generated texts against evaluations, temperatures and real text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from eval.blocks import Block, Column, Curve, Pair, Row, Section, Table, Texts, Timed, Tradeoff
from eval.figure import Figure
from eval.generative import ENTROPY_MARGIN
from pipelines.sweep_table import EVALUATIONS, Axis, Measured, family, kept, level, lines
from pipelines.text.config import TextSweepStage
from pipelines.text.sweep import REAL

METRICS = {
    "genppl": ("generative perplexity", True),
    "entropy": ("entropy of words within a text", False),
    "mauve": ("MAUVE under the scorer", False),
}
SHADED = "The stronger its shade, the later a token was revealed; of one that was masked again, the last time counts."
PASSES = Axis("whole texts read", lambda row: row["passes"])


def sweep_sections(
    name: str, stage: TextSweepStage, rows: Sequence[Measured]
) -> tuple[dict[str, Figure], list[Section]]:
    """Return the figures of a sweep by their names, and its sections."""
    figures = {}
    for row in rows:
        how = f"{_label(row)}|steps={row['steps']}|temperature={row['temperature']:g}"
        for figure, value in row["figures"].items():
            source = f"{name}: {row['scorer']}, {row['mauve']}"
            figures[f"{row['model']}.sweep.{figure}[{row['group']}: {how}|n={value['n']}]"] = kept(value, source)
    return figures, _sections(stage, rows)


def _sections(stage: TextSweepStage, rows: Sequence[Measured]) -> list[Section]:
    """Figures against evaluations with the real text as a level, perplexity against entropy, and all rows."""
    real = next(row for row in rows if row["group"] == REAL)
    lead = (
        f"{stage.count} texts of {stage.length} tokens a row. Perplexity is {real['scorer']}, a model of this recipe "
        f"and no published one; MAUVE is {real['mauve']}, in brackets the range over seeds of its clustering; of "
        "so few texts it tells a collapse from the rest, and little more. A perplexity at an entropy more than "
        f"{ENTROPY_MARGIN:g} nats below that of real text means repetition, and ranks nothing."
    )
    blocks = [*_charts([row for row in rows if row["group"] == "steps"], real), *_trades(rows, real), _table(rows)]
    shown = [(f"{_label(row)}{_taken(row)}, temperature {row['temperature']:g}", _first(row)) for row in rows]
    texts = Texts("First text of each row", shown, note=SHADED if any(row.get("timed") for row in rows) else "")
    return [Section("Generated text", blocks, lead=lead), Section("Samples", [texts])]


def _first(row: Measured) -> str | Timed:
    """The first text of a row, in pieces by when they were revealed where that is known."""
    return Timed([(piece, time) for piece, time in row["timed"]]) if row.get("timed") else row["texts"][0]


def _charts(rows: Sequence[Measured], real: Measured) -> list[Block]:
    """The models side by side, each with its usual sampler; then the samplers of those that have several, by families.

    Each family has the usual sampler beside it, which is the first of the rows.
    """
    usual = {row["model"]: row["curve"] for row in reversed(rows)}
    plain = [row for row in rows if row["curve"] == usual[row["model"]]]
    blocks = [*_over(plain, real, EVALUATIONS, "models"), *_over(plain, real, PASSES, "models")]
    for model in usual:
        mine = [(family(row["curve"].removeprefix(f"{model}: ")), row) for row in rows if row["model"] == model]
        for kin in dict.fromkeys(kin for kin, row in mine if row["curve"] != usual[model]):
            chosen = [row for other, row in mine if other == kin or row["curve"] == usual[model]]
            blocks += _over(chosen, real, EVALUATIONS, f"{kin or 'other'} samplers of {model}")
    return blocks


def _over(rows: Sequence[Measured], real: Measured, axis: Axis, what: str) -> list[Block]:
    """Every metric over an axis, with the real text as a level."""
    blocks = list[Block]()
    for figure, (label, log) in METRICS.items():
        found = lines(rows, figure, axis)
        series = [level("held-out text", real, figure, found), *found]
        blocks.append(Curve(f"{label}, {what}", series, x_label=axis.label, y_label=label, log=log))
    return blocks


def _trades(rows: Sequence[Measured], real: Measured) -> list[Tradeoff]:
    """Perplexity against entropy, and where real text stands: over steps, and over temperatures.

    A model of several samplers has a chart of its own over steps, all others share one.
    """
    steps = [row for row in rows if row["group"] == "steps"]
    groups: dict[str, list[Measured]] = {}
    for row in steps:
        several = len({other["curve"] for other in steps if other["model"] == row["model"]}) > 1
        groups.setdefault(f"over steps, {row['model'] if several else 'other models'}", []).append(row)
    charts = [(what, found, _steps_of) for what, found in groups.items()]
    tempered = [row for row in rows if row["group"] == "temperature"]
    charts += [("over temperatures and cuts", tempered, _sharpness_of)] if tempered else []
    beside = [_pair(row, row["curve"]) for row in rows if row["group"] == REAL]
    least = real["figures"]["entropy"]["value"] - ENTROPY_MARGIN
    return [_trade(what, found, name, beside, least) for what, found, name in charts]


def _trade(
    what: str, rows: Sequence[Measured], name: Callable[[Measured], str], beside: Sequence[Pair], least: float
) -> Tradeoff:
    series = {}
    for curve in dict.fromkeys(row["curve"] for row in rows):
        mine = sorted((row for row in rows if row["curve"] == curve), key=lambda row: (row["steps"], *_sharpness(row)))
        series[curve] = [_pair(row, name(row), hollow=not row["comparable"]) for row in mine]
    label = "generative perplexity"
    note = (
        f"Dotted: {ENTROPY_MARGIN:g} nats below the entropy of held-out text. Hollow points are not to be ranked: they "
        "lie left of it, or their tokens do. A good model comes near the diamonds; below them is no better than above."
    )
    return Tradeoff(f"{label} against entropy, {what}", series, "entropy of words within a text, nats", label,
                    references=beside, limit=least, log=True, note=note)  # fmt: skip


def _pair(row: Measured, name: str, *, hollow: bool = False) -> Pair:
    entropy, perplexity = (kept(row["figures"][figure], row["curve"]) for figure in ("entropy", "genppl"))
    return Pair(name, entropy, perplexity, hollow=hollow)


def _steps_of(row: Measured) -> str:
    """The steps of a point, or the bound in their place."""
    return f"{row['masked']['bound']:g} nats" if row["sampler"] == "entropy_bound" else str(_steps(row) or "")


def _sharpness_of(row: Measured) -> str:
    """What makes the laws of a point sharper than the model's own."""
    temperature, top_p, top_k = _sharpness(row)
    cuts = [f"p {top_p:g}"] if top_p != 1 else [f"k {top_k}"] if top_k else []
    return " ".join(cuts) or f"{temperature:g}"


def _label(row: Measured) -> str:
    """The curve of a row, with the value of what cuts its laws, or of the bound that stands in place of steps."""
    options = row["masked"]
    cuts = [options[name] for name, all_of_it in (("top_p", 1.0), ("top_k", 0)) if options[name] != all_of_it]
    bounds = [options["bound"]] if row["sampler"] == "entropy_bound" else []
    return " ".join([row["curve"], *(f"{value:g}" for value in (*bounds, *cuts))])


def _steps(row: Measured) -> int | None:
    """How many steps were taken; nothing where the settings do not say it."""
    return None if row["sampler"] in (REAL, "one_by_one", "entropy_bound") else row["steps"]


def _taken(row: Measured) -> str:
    return f", {steps} steps" if (steps := _steps(row)) else ""


def _sharpness(row: Measured) -> tuple[float, float, int]:
    """Temperature, top-p and top-k of a row."""
    return row["temperature"], row["masked"]["top_p"], row["masked"]["top_k"]


def _table(rows: Sequence[Measured]) -> Table:
    columns = ["texts", "steps", "temperature", Column("evaluations", "plain", "lower"),
               Column("whole texts read", "plain", "lower"), "perplexity", "entropy of words", "entropy of tokens",
               Column("MAUVE", "plain", "higher"), Column("self-BLEU", "plain", "lower"), "distinct 1, 2, 4",
               "duplicates", "longest copy", "may be ranked", Column("seconds each", "plain", "lower")]  # fmt: skip
    lines = []
    for row in rows:
        figures = {name: kept(value, row["curve"]) for name, value in row["figures"].items()}
        kind = "ceiling" if row["group"] == REAL else "model"
        variety = row["variety"]
        distinct = ", ".join(f"{variety[f'distinct_{n}']:.2f}" for n in (1, 2, 4))
        cells = [_label(row), _steps(row), row["temperature"], row["evaluations"], row["passes"], figures["genppl"],
                 figures["entropy"], figures.get("token_entropy"), figures["mauve"], figures["self_bleu_4"], distinct,
                 f"{variety['duplicates']:.0%}", variety["longest_copied"],
                 "yes" if row["comparable"] else "no", figures.get("seconds")]  # fmt: skip
        lines.append(Row(cells, kind=kind))
    return Table(
        "All rows",
        columns,
        lines,
        note="Distinct runs of 1, 2 and 4 words, and the longest run that the training "
        "text holds, are over all texts of a row.",
    )
