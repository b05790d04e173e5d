"""The sections that follow from the figures' names alone: what a reader wants to see first."""

import re
from collections import Counter
from collections.abc import Mapping

from eval.blocks import Column, Dots, Row, RowKind, Section, Table
from eval.definitions import ATTRIBUTES, SCENE, SLICES, define, subject
from eval.figure import Figure, Known

KINDS: dict[str, RowKind] = {"real": "judge", "shuffled": "floor", "chance": "floor"}
RECONSTRUCTION = re.compile(r"[^.]+\.(psnr|ssim|usage|perplexity|patch_kmeans_psnr|bicubic_psnr)")
Grid = dict[str, dict[str, dict[str, Known]]]  # attribute -> subject -> slice -> figure


def headline(figures: Mapping[str, Known]) -> Section:
    """Reconstruction, text-to-image scene accuracy and text, each where the figures have it.

    Scene rows are named `SUBJECT.scene.ATTRIBUTE[.SLICE]`; the subjects real, recon.*, shuffled and chance are the
    judge's own rows and the floor. `caption.scene.*` counts as text.
    """
    grid = scene_grid(figures)
    tables = [_listed("Reconstruction", {k: f for k, f in figures.items() if RECONSTRUCTION.fullmatch(k)})]
    tables += [_overview(grid), *_panels(grid), _slices(grid)]
    text = {k: f for k, f in figures.items() if k.startswith(("text.", "caption.scene."))}
    tables.append(_listed("Text", text))
    return Section("Headline", [table for table in tables if table is not None])


def scene_grid(figures: Mapping[str, Known]) -> Grid:
    """Scene figures by attribute, subject and slice ('' is all scenes), models first, then the judge's rows."""
    grid: Grid = {}
    names = [(name, found) for name in figures if (found := SCENE.fullmatch(name)) and found["subject"] != "caption"]
    names.sort(key=lambda pair: ["model", "ceiling", "judge", "floor"].index(row_kind(pair[1]["subject"])))
    for attribute in dict.fromkeys((*ATTRIBUTES, *(found["attribute"] for _, found in names))):
        for name, found in names:
            if found["attribute"] == attribute:
                grid.setdefault(attribute, {}).setdefault(found["subject"], {})[found["slice"] or ""] = figures[name]
    return grid


def row_kind(key: str) -> RowKind:
    """Whether a subject is a model, the judge's own row or a floor."""
    return KINDS.get(key, "judge" if key.startswith("recon.") else "model")


def _listed(title: str, figures: Mapping[str, Known]) -> Table | None:
    """Each figure on its own line, for groups whose members have different units."""
    if not figures:
        return None
    rows, labels = [], Counter(define(name).label for name in figures)
    for name, figure in figures.items():
        known = define(name)
        label = known.label if labels[known.label] == 1 else f"{name.split('.')[0]}: {known.label}"
        about = (figure.n, figure.source) if isinstance(figure, Figure) else (None, None)
        rows.append(Row([label, figure, known.better, *about, name], unit=known.unit))
    return Table(title, ["figure", "value", "better", "n", "source", Column("name", code=True)], rows)


def _overview(grid: Grid) -> Table | None:
    if not grid:
        return None
    subjects = list(dict.fromkeys(key for by_subject in grid.values() for key in by_subject))
    rows = [
        Row([subject(key), *(grid[attribute].get(key, {}).get("") for attribute in grid)], row_kind(key))
        for key in subjects
    ]
    columns = ["pictures from", *(Column(attribute, "share", "higher") for attribute in grid)]
    note = (
        "Share of pictures in which the scene judge reads the attribute as the caption asked, each object in its own "
        "place. The judge's own rows say how far its reading can be trusted: a model above that of real pictures is a "
        "sign of the judge's error."
    )
    return Table("Text to image: scene accuracy, all held-out scenes", columns, rows, note)


def _panels(grid: Grid) -> list[Dots]:
    """One small chart per attribute on the same scale; chance is the dashed line."""
    panels = []
    for attribute, by_subject in grid.items():
        rows = {
            subject(key): {SLICES[part]: figure for part, figure in sorted(slices.items(), key=_slice_order)}
            for key, slices in by_subject.items()
            if key != "chance"
        }
        chance = by_subject.get("chance", {}).get("")
        reference = chance.value if isinstance(chance, Figure) else None
        if rows:
            panels.append(Dots(attribute, rows, "share", reference, "Dashed: chance." if reference is not None else ""))
    return panels


def _slices(grid: Grid) -> Table | None:
    present = {part for by_subject in grid.values() for slices in by_subject.values() for part in slices}
    parts = [part for part in SLICES if part in present]
    if len(parts) < 2:
        return None
    keys = dict.fromkeys(key for by_subject in grid.values() for key in by_subject)
    rows = [
        Row([subject(key), attribute, *(by_subject[key].get(part) for part in parts)], row_kind(key))
        for key in keys
        for attribute, by_subject in grid.items()
        if key in by_subject
    ]
    columns = ["pictures from", "attribute", *(Column(SLICES[part], "share", "higher") for part in parts)]
    note = "Unseen pairs: every value occurs in training, these pairs of values never do."
    return Table("Scene accuracy by slice", columns, rows, note)


def _slice_order(pair: tuple[str, Known]) -> int:
    return list(SLICES).index(pair[0])
