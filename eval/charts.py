"""Charts as inline SVG that obeys the page: no style attributes (the policy blocks them), two themes, equal bytes.

matplotlib draws with the light palette; `css` maps each palette colour to its dark twin by attribute selectors.
"""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from markupsafe import Markup
from matplotlib import style as matplotlib_style
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from eval.blocks import Bars, Curve, Dots, Point, Scatter, Series, Usage
from eval.figure import Figure
from eval.labels import clip, compact, spread
from eval.page import printable
from eval.svg import inline

PALETTE = {  # name: (light, dark)
    "ink": ("#33383d", "#c9ced3"),
    "muted": ("#71787f", "#8d959c"),
    "grid": ("#e3e1db", "#2e3338"),
    "k0": ("#2b5f8f", "#7fb2e0"),
    "k1": ("#b4532a", "#e8976d"),
    "k2": ("#46795a", "#86bf9b"),
    "k3": ("#76569f", "#b89ade"),
    "k4": ("#97801f", "#d6bd5c"),
    "k5": ("#8f3f5e", "#dc8fac"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
SERIES = [LIGHT[f"k{i}"] for i in range(6)]
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2), (3, 1), (8, 3))
MARKERS = (  # matplotlib's sign and the same shape in a 12 x 12 key
    ("o", "M6 2a4 4 0 1 0 .01 0z"),
    ("s", "M2.5 2.5h7v7h-7z"),
    ("D", "M6 1.2 10.8 6 6 10.8 1.2 6z"),
    ("^", "M6 2l4.3 8H1.7z"),
    ("v", "M6 10l4.3-8H1.7z"),
    ("P", "M4.5 2h3v2.5H10v3H7.5V10h-3V7.500H2v-3h2.500z"),
)
Style = TypeVar("Style")
LINE = 0.157  # inches between the names of two points
POINTS = 400  # a line keeps at most this many points: longer ones are averaged in bins
RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "palimpsest",
    "text.parse_math": False,  # a series named "$x$" is text
    "font.size": 9.5,
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["muted"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
}


def css() -> str:
    """Rules that recolour every chart for a dark page."""
    rules = [
        f'svg [{kind}="{light}"]{{{kind}:{dark}}}' for light, dark in PALETTE.values() for kind in ("fill", "stroke")
    ]
    return "@media (prefers-color-scheme: dark){" + "".join(rules) + "}\n"


def curve(block: Curve, prefix: str, *, log: bool) -> Markup:
    """Lines over steps. Returns an SVG whose ids begin with `prefix`."""

    def draw(axes: Axes) -> None:
        for index, series in enumerate(block.series):
            x, y = thin(series)
            axes.plot(x, y, color=_colour(index), linewidth=1.5, dashes=_dash(index))
            if series.low and series.high:
                axes.plot(x, y, _turned(MARKERS, index)[0], color=_colour(index), markersize=3.5, markeredgewidth=0)
                axes.fill_between(x, series.low, series.high, color=_colour(index), alpha=0.12, linewidth=0)
        axes.set_xlabel(clip(block.x_label))
        axes.set_ylabel(clip(block.y_label))
        if log:
            _logarithmic(axes)
        _plain_ticks(axes)

    return _svg(draw, (4.2, 2.4), f"{block.title}{' on a logarithmic scale' if log else ''}", prefix)


def usage(block: Usage, prefix: str) -> Markup:
    """Code frequencies in falling order beside the even share (dashed); many codes are averaged in bins of ranks."""
    share = np.sort(np.asarray(block.counts, dtype=np.float64))[::-1]
    share = share / max(share.sum(), 1)
    edges = np.linspace(0, len(share), min(len(share), POINTS) + 1).astype(int)
    heights = np.add.reduceat(share, edges[:-1]) / np.diff(edges)

    def draw(axes: Axes) -> None:
        axes.stairs(heights, edges, fill=True, color=LIGHT["k0"], alpha=0.85)
        axes.axhline(1 / len(share), color=LIGHT["k1"], linewidth=1, dashes=(4, 3))
        axes.set_xlim(0, len(share))
        axes.set_ylim(0)
        axes.set_xlabel("codes by rank")
        axes.set_ylabel("share of all tokens")
        _plain_ticks(axes)

    return _svg(draw, (4.2, 2.4), block.title, prefix)


def bars(block: Bars, prefix: str) -> Markup:
    """Bars from zero; a dashed line at the reference."""

    def draw(axes: Axes) -> None:
        axes.stairs(block.heights, block.edges, fill=True, color=LIGHT["k0"], alpha=0.85)
        if block.reference is not None:
            axes.axhline(block.reference, color=LIGHT["k1"], linewidth=1, dashes=(4, 3))
        axes.set_xlabel(clip(block.x_label))
        axes.set_ylabel(clip(block.y_label))
        axes.margins(x=0.01)
        axes.grid(visible=False, axis="x")
        _plain_ticks(axes)

    return _svg(draw, (4.2, 2.4), block.title, prefix)


def scatter(block: Scatter, prefix: str) -> Markup:
    """A dot per point with its interval and its name beside it; x is logarithmic where it spans more than ten.

    The chart is as tall as its names need.
    """
    shown = [point for point in block.points if math.isfinite(point.x) and math.isfinite(point.y.value)]
    shown.sort(key=lambda point: point.y.value)

    height = max(2.9, 0.5 + 1.05 * LINE * len(shown))  # inches, half of one for the axis below

    def draw(axes: Axes) -> None:
        for point in shown:
            colour = LIGHT["muted"] if point.floor else LIGHT["k0"]
            if ends := point.y.interval():
                axes.plot((point.x, point.x), ends, color=colour, linewidth=1.6, solid_capstyle="butt")
            mark = "D" if point.floor else "o"
            axes.plot([point.x], [point.y.value], mark, color=colour, markersize=4.2, markeredgewidth=0)
        places = [point.x for point in shown]
        if shown and 0 < 10 * min(places) < max(places):
            axes.set_xscale("log")
        axes.margins(x=0.1, y=0.12)
        axes.autoscale_view()
        _names(axes, shown, LINE / (height - 0.5))
        axes.set_xlabel(clip(block.x_label))
        axes.set_ylabel(clip(block.y_label))
        _plain_ticks(axes)

    return _svg(draw, (4.2, height), block.title, prefix)


def dots(block: Dots, prefix: str) -> Markup:
    """One line per row; within it a dot with its interval per slice. Shares run over 0 to 100 %."""
    rows, slices = list(block.rows), slice_names(block)

    def draw(axes: Axes) -> None:
        for line, who in enumerate(rows):
            for index, name in enumerate(slices):
                known = block.rows[who].get(name)
                if isinstance(known, Figure) and math.isfinite(known.value):
                    _dot(axes, known, line + (index - (len(slices) - 1) / 2) * 0.17, index)
        if block.reference is not None:
            axes.axvline(block.reference, color=LIGHT["ink"], linewidth=1, dashes=(4, 3))
        axes.set_yticks(range(len(rows)), [clip(who) for who in rows])
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        if block.unit == "share":
            axes.set_xlim(-0.02, 1.02)
            axes.set_xticks(np.linspace(0, 1, 5), [f"{p} %" for p in (0, 25, 50, 75, 100)])
        else:
            axes.xaxis.set_major_formatter(lambda x, _: compact(x))

    return _svg(draw, (4.2, 0.55 + max(len(slices) * 0.13, 0.3) * len(rows)), block.title, prefix)


def slice_names(block: Dots) -> list[str]:
    """Names of all slices in order of first appearance."""
    return list(dict.fromkeys(name for figures in block.rows.values() for name in figures))


def legend(names: Sequence[str], *, markers: bool = False) -> Markup:
    """The key of a chart as HTML, so that long or hostile names wrap and escape like any other text."""
    items = []
    for index, name in enumerate(names):
        dash = ",".join(f"{d * 1.5:g}" for d in _turned(DASHES, index)) or "none"
        line = Markup('<path d="M0 6H22" stroke="{}" stroke-width="2" stroke-dasharray="{}"/>').format(
            _colour(index), dash
        )
        mark = Markup('<path d="{}" fill="{}"/>').format(_turned(MARKERS, index)[1], _colour(index))
        chip = Markup('<svg class="chip" viewBox="0 0 {0} 12" width="{0}" height="12" aria-hidden="true">{1}</svg>')
        drawn = chip.format(12 if markers else 22, mark if markers else line)
        items.append(Markup("<li>{}<bdi>{}</bdi></li>").format(drawn, printable(name)))
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


def thin(series: Series) -> tuple[NDArray, NDArray]:
    """x and y in at most POINTS points: means over equal bins, so that spikes are averaged and not dropped."""
    x, y = np.asarray(series.x, dtype=np.float64), np.asarray(series.y, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"series {series.name!r} has {len(x)} x values and {len(y)} y values: they must agree")
    y = np.where(np.isfinite(y), y, np.nan)
    if len(x) <= POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS + 1).astype(int)[:-1]
    sizes = np.diff(np.append(edges, len(x)))
    return np.add.reduceat(x, edges) / sizes, np.add.reduceat(y, edges) / sizes


def positive(block: Curve) -> bool:
    """Whether a logarithmic scale can show the whole curve."""
    values = np.concatenate([np.asarray(s.y, dtype=np.float64) for s in block.series]) if block.series else np.zeros(1)
    finite = values[np.isfinite(values)]
    return bool(len(finite) and (finite > 0).all())


def _dot(axes: Axes, figure: Figure, y: float, index: int) -> None:
    colour, ends = _colour(index), figure.interval()
    if ends:
        axes.plot(ends, (y, y), color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.plot([figure.value], [y], _turned(MARKERS, index)[0], color=colour, markersize=4.2, markeredgewidth=0)


def _names(axes: Axes, points: Sequence[Point], step: float) -> None:
    """Names of points in order of height, towards the middle; one that had to move is tied to its point by a line."""
    within = axes.transData + axes.transAxes.inverted()
    places = [within.transform((point.x, point.y.value)) for point in points]
    for point, (x, y), height in zip(points, places, spread([y for _, y in places], step), strict=True):
        where, side = (x + 0.03, "left") if x < 0.5 else (x - 0.03, "right")
        if abs(height - y) > step / 4:
            axes.plot((x, where), (y, height), color=LIGHT["muted"], linewidth=0.4, transform=axes.transAxes)
        axes.text(where, height, clip(point.name), transform=axes.transAxes, ha=side, va="center", fontsize=8.5)


def _logarithmic(axes: Axes) -> None:
    """Powers of ten are marked, or round numbers where the curve spans too little to hold two of them."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < 100:
        axes.yaxis.set_major_locator(MaxNLocator(5) if high / low < 5 else LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())


def _plain_ticks(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda x, _: compact(x))
        axis.set_minor_formatter(lambda x, _: "")


def _svg(draw: Callable[[Axes], None], inches: tuple[float, float], title: str, prefix: str) -> Markup:
    buffer = io.BytesIO()
    with matplotlib_style.context(["default", RC]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has the font
        canvas = Canvas(figsize=inches, layout="constrained")
        draw(canvas.subplots())
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline(buffer.getvalue().decode(), title, prefix)


def _colour(index: int) -> str:
    return SERIES[index % len(SERIES)]


def _turned(styles: Sequence[Style], index: int) -> Style:
    """The style of a series: once the colours are used up, each comes back with the next one."""
    return styles[(index + index // len(SERIES)) % len(styles)]


def _dash(index: int) -> tuple[float | None, ...]:
    return _turned(DASHES, index) or (None, None)
