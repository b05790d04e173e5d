"""The chart of two figures against each other: whiskers both ways, the best trade-offs joined, their knee ringed."""

import math
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes

from eval.blocks import Pair, Tradeoff
from eval.charts import LIGHT, MARKERS, _colour, _logarithmic, _plain_ticks, _svg, _turned
from eval.figure import Figure
from eval.labels import clip

MANY = 14  # points from which on only the ends of a series and the front are named
INCHES = (7.2, 4.0)


def tradeoff(block: Tradeoff, prefix: str) -> Markup:
    """Points with their intervals, those of a series joined in order."""
    lines = {name: [pair for pair in pairs if _finite(pair)] for name, pairs in block.series.items()}

    def draw(axes: Axes) -> None:
        for index, pairs in enumerate(lines.values()):
            colour = _colour(index)
            axes.plot([p.x.value for p in pairs], [p.y.value for p in pairs], color=colour, linewidth=0.8, alpha=0.5)
            for pair in pairs:
                _point(axes, pair, colour, _turned(MARKERS, index)[0])
        for index, pair in enumerate(pair for pair in block.references if _finite(pair)):
            _point(axes, pair, LIGHT["muted"], "D")
            _name(axes, pair, below=index % 2 == 1)  # they may lie side by side
        if block.front:
            x, y = ([value(pair) for pair in block.front] for value in (lambda p: p.x.value, lambda p: p.y.value))
            axes.plot(x, y, color=LIGHT["ink"], linewidth=1.1, dashes=(4, 2))
        if block.knee is not None:
            place = [block.knee.x.value], [block.knee.y.value]
            axes.plot(*place, "o", color=LIGHT["ink"], markersize=10, markerfacecolor="none", markeredgewidth=1.2)
        for pair in _named(block, list(lines.values())):
            _name(axes, pair)
        if block.limit is not None:
            axes.axvline(block.limit, color=LIGHT["ink"], linewidth=1, dashes=(1.5, 2.5))
        axes.set_xlabel(clip(block.x_label, 80))
        axes.set_ylabel(clip(block.y_label, 60))
        axes.margins(x=0.06, y=0.08)
        if block.log:
            _logarithmic(axes)
        _plain_ticks(axes)

    return _svg(draw, INCHES, block.title, prefix)


def _named(block: Tradeoff, lines: Sequence[Sequence[Pair]]) -> list[Pair]:
    """The points whose names are written: all of few, else those of the front and the ends of each series."""
    if sum(map(len, lines)) <= MANY:
        return [pair for pairs in lines for pair in pairs]
    ends = [pair for pairs in lines if pairs for pair in (pairs[0], pairs[-1])]
    return list({id(pair): pair for pair in (*block.front, *ends)}.values())


def _point(axes: Axes, pair: Pair, colour: str, mark: str) -> None:
    x, y = pair.x, pair.y
    if ends := x.interval():
        axes.plot(ends, (y.value, y.value), color=colour, linewidth=0.9, alpha=0.4, solid_capstyle="butt")
    if ends := y.interval():
        axes.plot((x.value, x.value), ends, color=colour, linewidth=0.9, alpha=0.4, solid_capstyle="butt")
    face = "none" if pair.hollow else colour
    axes.plot([x.value], [y.value], mark, color=colour, markersize=5, markerfacecolor=face, markeredgewidth=0.9)


def _name(axes: Axes, pair: Pair, *, below: bool = False) -> None:
    place, beside = (pair.x.value, pair.y.value), (4, -10 if below else 3)
    axes.annotate(clip(pair.name), place, beside, textcoords="offset points", fontsize=8, color=LIGHT["ink"])


def _finite(pair: Pair) -> bool:
    return all(isinstance(one, Figure) and math.isfinite(one.value) for one in (pair.x, pair.y))
