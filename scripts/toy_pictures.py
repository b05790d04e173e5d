"""Pictures of many small panels, and the figures between two comments of a page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from scripts.markdown import table
from scripts.toy_models import Distance

matplotlib.use("Agg")
COLOURS = np.array(["#1f4e9c", "#d9541e"])
HALF_WIDTH = 2.9  # of a panel, in units of the data's standard deviation
DPI = 90


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A cloud of points (n, 2) with a line of text and its distance to fresh data.

    label: (n,), gives colours; lines: (N, k, 2), the ways of some points.
    """

    points: Tensor
    text: str = ""
    distance: Distance | None = None
    label: Tensor | None = None
    lines: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Page:
    """A picture: the names of its columns, and its panels by the name of their row; None is an empty place."""

    columns: Sequence[str]
    panels: dict[str, list[Panel | None]]


def draw_page(file: Path, page: Page) -> None:
    """Write a page as a PNG; commas in the names of rows become new lines."""
    figure = Figure(figsize=(1.3 + 1.05 * len(page.columns), 0.4 + 1.2 * len(page.panels)), dpi=DPI)
    axes = figure.subplots(len(page.panels), len(page.columns), squeeze=False)
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left=1.3 / width, right=1, bottom=0, top=1 - 0.4 / height, wspace=0.04, hspace=0.16)
    for line, (name, panels) in zip(axes, page.panels.items(), strict=True):
        line[0].text(-0.08, 0.5, name.replace(", ", "\n"), transform=line[0].transAxes, ha="right", va="center", size=8)
        for place, panel in zip(line, panels, strict=True):
            _draw(place, panel)
    for place, name in zip(axes[0], page.columns, strict=True):
        place.text(0.5, 1.2, name, transform=place.transAxes, ha="center", size=8)
    _save(figure, file)


def written(distance: Distance) -> str:
    """A distance and its interval in thousandths."""
    value, low, high = (1000 * part for part in distance)
    return f"{value:z.1f} [{low:z.1f}, {high:z.1f}]"


def figures(page: Page) -> str:
    """The distances of a page as a Markdown table of its rows and columns, without those that have none."""
    cells = {
        name: [written(panel.distance) if panel and panel.distance else "" for panel in panels]
        for name, panels in page.panels.items()
    }
    kept = [i for i in range(len(page.columns)) if any(row[i] for row in cells.values())]
    return table(
        ["", *(page.columns[i] for i in kept)], [[name, *(row[i] for i in kept)] for name, row in cells.items()]
    )


def replace_figures(page: Path, name: str, figures: str) -> None:
    """Put figures between the comments NAME and end of NAME of a page. Raises ValueError where these are missing."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text, count = re.subn(
        f"{first}.*{last}", lambda _: f"{first}\n\n{figures}\n\n{last}", page.read_text(), flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(
            f"{page} has {count} places {first} ... {last}, expected 1; put the two comments into the page"
        )
    page.write_text(text)


def _draw(place: Axes, panel: Panel | None) -> None:
    place.set(xlim=(-HALF_WIDTH, HALF_WIDTH), ylim=(-HALF_WIDTH, HALF_WIDTH), xticks=[], yticks=[])
    if panel is None:
        place.axis("off")
        return
    for spine in place.spines.values():
        spine.set_color("#cccccc")
    label = torch.zeros(len(panel.points), dtype=torch.long) if panel.label is None else panel.label
    if panel.lines is not None:
        place.plot(*panel.lines.permute(2, 0, 1).numpy(), color="#999999", linewidth=0.4)
    place.scatter(*panel.points.T.numpy(), s=1.0, c=COLOURS[label.numpy()], marker="s", linewidths=0, antialiased=False)
    words = [written(panel.distance).split(" [")[0]] if panel.distance else []
    text = ", ".join([*words, *([panel.text] if panel.text else [])])
    place.text(0.5, 1.03, text, transform=place.transAxes, ha="center", size=7)


def _save(figure: Figure, file: Path) -> None:
    """Few colours make a small file."""
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png")
        Image.open(buffer).convert("RGB").quantize(16).save(file, optimize=True)
