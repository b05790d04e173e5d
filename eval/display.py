"""How the blocks of a report read: cells as text, tables as rows of cells, charts as SVG with their keys."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from PIL import Image

from eval import charts
from eval.blocks import Bars, Block, Cell, Chart, Column, Dots, Gallery, Row, Scatter, Table, Tradeoff, Usage
from eval.figure import Figure, Missing, Unit, why_not_finite
from eval.page import LARGEST, QUALITY, lossy
from eval.tradeoff import tradeoff


@dataclass(frozen=True)
class Shown:
    """A table cell as the page prints it: text, interval in brackets, sorting key, tooltip; number or absent."""

    text: str
    interval: str = ""
    key: str = ""
    hint: str = ""
    numeric: bool = False
    absent: bool = False


@dataclass(frozen=True)
class Grid:
    """A table as the page prints it: columns with whether they are numeric, rows with their kind."""

    columns: list[tuple[Column, bool]]
    rows: list[tuple[str, list[Shown]]]


def grid(table: Table) -> Grid:
    """Format every cell of a table. Raises ValueError for a row whose length is not the number of columns."""
    columns = [column if isinstance(column, Column) else Column(column) for column in table.columns]
    rows = []
    for given in table.rows:
        row = given if isinstance(given, Row) else Row(given)
        if len(row.cells) != len(columns):
            raise ValueError(f"table {table.title!r}: a row has {len(row.cells)} cells for {len(columns)} columns")
        cells = [
            show(cell, (isinstance(cell, Figure) and row.unit) or column.unit, signed=column.signed)
            for cell, column in zip(row.cells, columns, strict=True)
        ]
        rows.append((row.kind, cells))
    numeric = [any(cells[i].numeric for _, cells in rows) for i in range(len(columns))]
    return Grid(list(zip(columns, numeric, strict=True)), rows)


def show(cell: Cell, unit: Unit = "plain", *, signed: bool = False) -> Shown:
    """How a cell reads. A missing figure is a dash with its reason as a tooltip."""
    match cell:
        case None:
            return Shown("–", absent=True)
        case Missing(reason):
            return Shown("–", hint=reason, absent=True)
        case Figure() if not math.isfinite(cell.value):
            return Shown("–", hint=why_not_finite(cell), absent=True)
        case Figure():
            ends = cell.interval()
            interval = f"[{', '.join(number(end, unit, bare=True, signed=signed) for end in ends)}]" if ends else ""
            hint = f"n = {cell.n}; {cell.source}" if cell.source else f"n = {cell.n}"
            return Shown(number(cell.value, unit, signed=signed), interval, repr(float(cell.value)), hint, numeric=True)
        case str():
            return Shown(cell)
        case _ if math.isfinite(cell):
            return Shown(number(cell, unit, signed=signed), key=repr(float(cell)), numeric=True)
        case _:
            return Shown("–", hint=f"the computation gave {cell}", absent=True)


def number(value: float, unit: Unit = "plain", *, bare: bool = False, signed: bool = False) -> str:
    """A number for people: shares in percent, decibels to two places, the rest to four digits."""
    text = ("+" if signed and value > 0 else "") + _digits(value, unit).replace("-", "−")
    return text if bare else text + {"share": " %", "dB": " dB", "plain": ""}[unit]


def _digits(value: float, unit: Unit) -> str:
    if unit == "share":
        return f"{100 * value:.1f}"
    if unit == "dB":
        return f"{value:.2f}"
    if isinstance(value, int) or 1e4 <= abs(value) < 1e15:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:#.4g}".removesuffix(".")


def seconds(value: float) -> str:
    """A wall time: 75 -> 1 min 15 s."""
    if not math.isfinite(value):
        return "–"
    whole = round(value)
    if whole < 60:
        return f"{value:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def draw(block: Chart, prefix: str) -> dict[str, Markup | None]:
    """The charts of a block: the one that opens, the other scale where there is one, and the key."""
    if isinstance(block, Usage):
        return {"first": charts.usage(block, prefix), "other": None, "key": None}
    if isinstance(block, Bars):
        return {"first": charts.bars(block, prefix), "other": None, "key": None}
    if isinstance(block, Scatter):
        return {"first": charts.scatter(block, prefix), "other": None, "key": None}
    if isinstance(block, Tradeoff):
        key = charts.legend(list(block.series), markers=True) if len(block.series) > 1 else None
        return {"first": tradeoff(block, prefix), "other": None, "key": key}
    if isinstance(block, Dots):
        names = charts.slice_names(block)
        return {"first": charts.dots(block, prefix), "other": None, "key": charts.legend(names, markers=True)}
    both = charts.positive(block)
    first = charts.curve(block, prefix + "a-", log=block.log and both)
    other = charts.curve(block, prefix + "b-", log=not block.log) if both else None
    return {"first": first, "other": other, "key": charts.legend([series.name for series in block.series])}


def runs(blocks: Sequence[Block]) -> list[list[Block]]:
    """Neighbouring charts together, so that they stand side by side as small multiples; every other block alone."""
    made: list[list[Block]] = []
    for block in blocks:
        if made and _is_chart(block) and _is_chart(made[-1][-1]):
            made[-1].append(block)
        else:
            made.append([block])
    return made


def _is_chart(block: Block) -> bool:
    return isinstance(block, Chart)


def usage_line(block: Usage) -> str:
    """What the chart of a codebook says in one sentence."""
    total, used = sum(block.counts), sum(1 for c in block.counts if c > 0)
    if not total:
        return "No code was counted."
    entropy = -sum(c / total * math.log(c / total) for c in block.counts if c > 0)
    return (
        f"{used} of {len(block.counts)} codes used over {number(total)} tokens; perplexity {math.exp(entropy):.1f}; "
        f"the commonest code takes {number(max(block.counts) / total, 'share')}. Dashed: every code equally often."
    )


def pictures_line(block: Gallery) -> str:
    """What the page does to the pictures of a gallery in one sentence, or nothing where it shows them as they are."""
    if not any(lossy(image) for item in block.items for image, _ in labelled(block, item)):
        return ""
    return (
        f"Shown as WebP of quality {QUALITY} and at most {LARGEST} pixels a side, which alters fine detail; every "
        "figure is of the pictures themselves."
    )


def labelled(block: Gallery, item: tuple[Image.Image | Sequence[Image.Image], str]) -> list[tuple[Image.Image, str]]:
    """The pictures of a gallery item with their labels; raises ValueError where the counts disagree."""
    pictures = [item[0]] if isinstance(item[0], Image.Image) else list(item[0])
    if block.labels and len(block.labels) != len(pictures):
        raise ValueError(
            f"gallery {block.title!r}: {len(pictures)} pictures but {len(block.labels)} labels {block.labels}"
        )
    return list(zip(pictures, block.labels or [""] * len(pictures), strict=True))
