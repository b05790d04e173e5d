"""What a report is made of: plain data without any knowledge of HTML. `eval.report` turns it into a page and JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar, Literal, TypeAlias

from PIL import Image

from eval.figure import Better, Figure, Known, Missing, Unit
from eval.samples import Samples

SHADES = 6  # of the pieces of a text
RowKind = Literal["model", "floor", "ceiling", "judge", "better", "worse", "unlike"]


Cell: TypeAlias = str | int | float | Figure | Missing | None


@dataclass(frozen=True)
class Column:
    """A table column; `better` draws the arrow, `unit` formats numbers, `code` sets keys and hashes in monospace.

    signed: numbers above 0 have their sign, too, as differences want it.
    """

    name: str
    unit: Unit = "plain"
    better: Better | None = None
    code: bool = False
    signed: bool = False


@dataclass(frozen=True)
class Row:
    """Cells of one table row; floors, ceilings and the judges' own rows are set apart from those of models.

    better, worse: of a comparison, beyond chance; unlike: what cannot be compared, in grey.
    `unit` overrides the columns' units where the rows of a table measure different things.
    """

    cells: Sequence[Cell]
    kind: RowKind = "model"
    unit: Unit | None = None


@dataclass(frozen=True)
class Table:
    """A sortable table. `warning` is the red note above it, `note` the quiet one below."""

    title: str
    columns: Sequence[Column | str]
    rows: Sequence[Row | Sequence[Cell]]
    note: str = ""
    warning: str = ""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Gallery:
    """Pictures with their captions. An item shows one picture, or several side by side that `labels` name."""

    title: str
    items: Sequence[tuple[Image.Image | Sequence[Image.Image], str]]
    columns: int = 8
    note: str = ""
    labels: Sequence[str] = ()
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Series:
    """One line of a chart: x and y of equal length; a y that is not finite is a gap.

    low, high: the ends of each y's interval, where there are any; points with intervals are drawn as points.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Curve:
    """A line chart. `log` opens it on a logarithmic y axis; where every y is positive the page offers both."""

    title: str
    series: Sequence[Series]
    x_label: str = "step"
    y_label: str = "loss"
    log: bool = False
    note: str = ""
    kind: ClassVar[str] = "curve"


@dataclass(frozen=True)
class Usage:
    """Rank-frequency chart of a codebook: how often each code was chosen over the whole split."""

    title: str
    counts: Sequence[int]
    note: str = ""
    kind: ClassVar[str] = "usage"


@dataclass(frozen=True)
class Bars:
    """Bars between neighbouring edges, one edge more than heights: a histogram, or figures of numbered things.

    reference: the height of a dashed line, such as a threshold.
    """

    title: str
    edges: Sequence[float]
    heights: Sequence[float]
    x_label: str
    y_label: str
    reference: float | None = None
    note: str = ""
    kind: ClassVar[str] = "bars"


@dataclass(frozen=True)
class Point:
    """A labelled point of a scatter chart; y has its interval. `floor` marks a point of comparison."""

    name: str
    x: float
    y: Figure
    floor: bool = False


@dataclass(frozen=True)
class Scatter:
    """Labelled points with the intervals of their y; points that are not finite are left out."""

    title: str
    points: Sequence[Point]
    x_label: str
    y_label: str
    note: str = ""
    kind: ClassVar[str] = "scatter"


@dataclass(frozen=True)
class Pair:
    """A named point of a trade-off: two figures, each with its interval; hollow: one that is not to be ranked."""

    name: str
    x: Figure
    y: Figure
    hollow: bool = False


@dataclass(frozen=True)
class Tradeoff:
    """Two figures against each other, the points of each series joined in order.

    front: points that are joined as the best trade-offs; knee: the one of them that is ringed; references: points of
    comparison; limit: an x that is marked by a line. `log` is for y.
    """

    title: str
    series: Mapping[str, Sequence[Pair]]
    x_label: str
    y_label: str
    front: Sequence[Pair] = ()
    knee: Pair | None = None
    references: Sequence[Pair] = ()
    limit: float | None = None
    log: bool = False
    note: str = ""
    kind: ClassVar[str] = "tradeoff"


@dataclass(frozen=True)
class Dots:
    """Figures with intervals as dots: rows[who][slice]; `reference` is the dashed line, such as chance."""

    title: str
    rows: Mapping[str, Mapping[str, Known]]
    unit: Unit = "share"
    reference: float | None = None
    note: str = ""
    kind: ClassVar[str] = "dots"


@dataclass(frozen=True)
class Timed:
    """A text in pieces, each with when it was revealed, in [0, 1]; as a string it is the text alone."""

    pieces: Sequence[tuple[str, float]]

    def __str__(self) -> str:
        return "".join(piece for piece, _ in self.pieces)

    @property
    def shaded(self) -> list[tuple[str, int]]:
        """Neighbouring pieces of one of SHADES shades together, each with its shade."""
        shades = [(piece, min(SHADES - 1, int(time * SHADES))) for piece, time in self.pieces]
        return [("".join(p for p, _ in group), shade) for shade, group in groupby(shades, key=lambda pair: pair[1])]


@dataclass(frozen=True)
class Texts:
    """Generated texts, each alone or as (label, text)."""

    title: str
    items: Sequence[str | tuple[str, str | Timed]]
    note: str = ""
    kind: ClassVar[str] = "texts"


Chart: TypeAlias = Curve | Usage | Bars | Scatter | Tradeoff | Dots
Block: TypeAlias = Table | Gallery | Texts | Chart


@dataclass(frozen=True)
class Section:
    """A part of the report; without blocks it says `empty` in one sentence."""

    title: str
    blocks: Sequence[Block] = ()
    lead: str = ""
    empty: str = "Nothing to show: no stage of this recipe makes these figures."


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A model, or a set of pictures by their hash, that a report is about. What nobody knows stays empty.

    checkpoint: hash of its weights, which `weights` says in words; steps: and evaluations, where they differ.
    """

    name: str
    checkpoint: str = ""
    pictures: str = ""
    weights: str = ""
    sampler: str = ""
    steps: str = ""
    guidance: str = ""
    precision: str = ""
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made the figures: enough to run the same thing again.

    command: what was asked for; resolved: the whole recipe as it was used, every default written out; wall_time in
    seconds per stage; models: what was judged; files: sha256 of the files behind it, by their paths.
    """

    commit: str | None
    dirty: bool
    recipe: str
    recipe_hash: str
    command: str
    resolved: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    artefacts: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    wall_time: Mapping[str, float] = field(default_factory=dict)
    machine: str = ""
    models: Sequence[Judged] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that `eval.report.write_report` needs. `highlights` names the tiles at the top, where they were measured.

    about: what it reports on, which also names the file with the figures beside the page. samples: what single pictures
    add to figures that are means over them, by the figure's name.
    """

    title: str
    summary: str
    provenance: Provenance
    sections: Sequence[Section]
    figures: Mapping[str, Known]
    highlights: Sequence[str] = (
        "vae.psnr",
        "vqvae.psnr",
        "latent.scene.colour",
        "latent.scene.shape",
        "mdlm.scene.colour",
        "mdlm.scene.shape",
        "caption.scene.colour",
        "text.nats_per_token",
    )
    about: Literal["recipe", "study"] = "recipe"
    samples: Mapping[str, Samples] = field(default_factory=dict)

    @property
    def twin(self) -> str:
        """The file with the figures beside the page."""
        return "study.json" if self.about == "study" else "report.json"
