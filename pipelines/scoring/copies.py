"""Whether generated pictures repeat those of the reference, taken for what a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from eval.blocks import Block, Column, Curve, Gallery, Row, Section, Series, Table
from eval.features import Embedder, feature_key
from eval.figure import Figure, Known, missing
from eval.interval import Interval, wilson
from eval.memorisation import Memorisation, memorisation
from pipelines.scoring.cached import Features
from pipelines.scoring.sets import PictureSet

ROUNDING = 1e-3  # of the threshold: batches of other sizes give other last bits
SHOWN = 8  # pairs of each set
BINS = 24
LEAD = (
    "Each generated picture beside the picture of the reference that its features are nearest to. Held-out pictures "
    "lie near the reference by chance alone; 5 % of them lie nearer than the threshold, and so would 5 % of the "
    "pictures of a model that repeats nothing."
)
COLUMNS = (
    "pictures",
    Column("nearer than 5 % of held-out pictures are", "share", "lower"),
    Column("equal to one of the reference", "share", "lower"),
    Column("equal to an earlier one", "share", "lower"),
)


def copies(
    sets: Mapping[str, tuple[PictureSet, Features]], held_out: Features, reference: PictureSet, real: Features,
    embedder: Embedder, figures: dict[str, Known], *, seed: int,
) -> Section:  # fmt: skip
    """Note how near each set lies to the reference beside held-out pictures, and show the nearest pairs."""
    rows, charts, galleries, why = list[Row](), list[Block](), list[Block](), "Nothing was generated."
    split = f"{reference.split}-{reference.sha256[:8]}"
    for title, (pictures, features) in sets.items():
        key = feature_key("nearest", embedder, generated=len(features), reference=len(real), split=split)
        try:
            found = memorisation(features, held_out, real, seed=seed)
        except ValueError as error:
            figures[f"{title}.{key}"] = missing(str(error))
            why = str(error)
            continue
        source = f"beside {len(held_out)} held-out pictures"
        equal = wilson(int((found.generated <= ROUNDING * found.threshold).sum()), len(features))
        same = Interval(found.duplicates, -np.inf, np.inf, len(features))
        known = {
            f"{title}.{key}": Figure.of(found.closer, source),
            f"{title}.{key}".replace("nearest[", "copies["): Figure.of(equal, "features equal but for rounding"),
            f"{title}.{key}".replace("nearest[", "repeats["): Figure.of(same, "equal features; no interval"),
        }
        figures |= known
        rows.append(Row([pictures.title, *known.values()]))
        charts.append(_histogram(pictures.title, found))
        galleries.append(_nearest(pictures.title, pictures, reference, found))
    note = (
        f"By {embedder.name}:{embedder.sha256[:8]}, among {len(real)} pictures. It finds what is the same to the "
        "embedder, moved or not."
    )
    table = Table("How near the generated pictures lie to the reference", list(COLUMNS), rows, note=note)
    return Section("Memorisation", [table, *charts, *galleries] if rows else [], lead=LEAD, empty=why)


def _histogram(title: str, found: Memorisation) -> Curve:
    """How far the pictures of a set, and held-out ones, lie from the nearest picture of the reference."""
    edges = np.histogram_bin_edges(np.concatenate([found.generated, found.real]), BINS)
    middle = ((edges[1:] + edges[:-1]) / 2).tolist()
    lines = [
        Series(name, middle, (np.histogram(distances, edges)[0] / len(distances)).tolist())
        for name, distances in ((title, found.generated), ("held-out", found.real))
    ]
    note = f"5 % of the held-out pictures lie nearer than {found.threshold:.3g}."
    return Curve(f"{title}: distance to the nearest", lines, "distance", "share of the pictures", note=note)


def _nearest(title: str, pictures: PictureSet, reference: PictureSet, found: Memorisation) -> Gallery:
    order = np.argsort(found.generated, kind="stable")[:SHOWN].tolist()
    items = [
        (
            [Image.fromarray(pictures.read(i)), Image.fromarray(reference.read(int(found.neighbours[i])))],
            f"{pictures.name(i)}, distance {found.generated[i]:.3g}; threshold {found.threshold:.3g}",
        )
        for i in order
    ]
    note = "The nearest of all, not a fair sample."
    return Gallery(f"{title}: nearest to the reference", items, columns=4, note=note, labels=("generated", "reference"))
