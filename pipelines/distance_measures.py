"""Distances between sets of pictures on judge features, and CLIP score, each between a floor and a ceiling."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from eval.blocks import Column, Known, Row, RowKind, Section, Table
from eval.clip_score import clip_score, shuffled_floor
from eval.features import NOTE, Tower, feature_key
from eval.frechet import frechet_interval, rank_note
from eval.interval import Interval
from eval.kernel import kid_interval
from eval.prdc import PRDC, prdc
from pipelines.measures import Evaluation, Set, read_generated

REFERENCE = 2000  # training pictures that all sets are held against
NEAREST = 5  # neighbours of the balls of precision, recall, density and coverage
DISTANCES = (
    Column("Frechet", "plain", "lower"),
    Column("kernel", "plain", "lower"),
    Column("precision", "share", "higher"),
    Column("recall", "share", "higher"),
    Column("density", "plain", "higher"),
    Column("coverage", "share", "higher"),
    Column("key", code=True),
)


def distances(e: Evaluation) -> None:
    """Frechet and kernel distance, precision and recall, and CLIP score of real and generated pictures."""
    tower = e.judges.tower
    if tower is None:
        e.sections.append(Section("Distances", empty="The recipe has no stage of kind judge before this one."))
        return
    sets: dict[str, tuple[str, Set, RowKind]] = {f"real {e.where} pictures": ("real", e.real, "ceiling")}
    for made in e.generated():
        pictures = read_generated(made.folder / e.run.held_out_name())
        sets[f"{made.stage} ({made.subject})"] = (made.subject, pictures, "model")
    n = min(len(shown) for _, shown, _ in sets.values())  # distances depend on n: all sets are cut to the smallest
    reference = e.judges.features(e.train.pictures[:REFERENCE])
    rows, scores = [], []
    for label, (subject, shown, kind) in sets.items():
        features = e.judges.features(shown.pictures[:n])
        key, figures = _distances(e, tower, subject, features, reference)
        rows.append(Row([label, *figures, key], kind))
        scores += _clip_rows(e, subject, label, features, shown.captions[:n])
    warning = f"These numbers are {NOTE}."
    title = "Distances on judge features, against training pictures"
    tables = [
        Table(title, ["pictures", *DISTANCES], rows, warning=warning),
        Table("CLIP score of the judge", ["pictures", Column("cosine", "plain", "higher")], scores, warning=warning),
    ]
    e.sections.append(Section("Distances", tables))


def _distances(
    e: Evaluation, tower: Tower, subject: str, features: NDArray[np.float32], reference: NDArray[np.float32]
) -> tuple[str, list[Known]]:
    """Note the distances of one set; returns the key of the first and the figures for its row."""

    n, same = len(features), min(len(features), len(reference))

    def name(metric: str, generated: int = n, reference: int = len(reference)) -> str:
        return str(feature_key(metric, tower, generated=generated, reference=reference, split="train"))

    @cache
    def overlap() -> PRDC:
        return prdc(reference[:same], features[:same], k=NEAREST)

    def measured(part: str) -> Interval:
        return Interval(getattr(overlap(), part), -np.inf, np.inf, same)

    fd = "jackknife over blocks, biased upwards by about c / n"
    note = rank_note(n, len(reference), features.shape[1])
    figures = [
        e.guarded(
            f"{subject}.{name('fd')}",
            lambda: frechet_interval(features, reference),
            "; ".join(filter(None, (fd, note))),
        ),
        e.guarded(f"{subject}.{name('kd')}", lambda: kid_interval(features, reference), "jackknife over blocks"),
    ]
    for part in ("precision", "recall", "density", "coverage"):
        key = f"{subject}.{name(f'{part}-k{NEAREST}', same, same)}"
        figures.append(e.guarded(key, partial(measured, part), "equal sizes of both sets"))
    return name("fd"), figures


def _clip_rows(
    e: Evaluation, subject: str, label: str, features: NDArray[np.float32], captions: list[str]
) -> list[Row]:
    """Note the CLIP score of one set, and for real pictures also that of shuffled captions."""
    tower = e.judges.tower
    assert tower is not None
    texts = e.judges.caption_features(captions)
    cut = e.judges.cut(captions)
    long = f"; of {cut} prompts the judge reads only the beginning" if cut else ""
    embedder = f"clip_score[{tower.name}:{tower.sha256[:8]}]"
    found = e.guarded(
        f"{subject}.{embedder}",
        lambda: clip_score(features, texts, captions, seed=e.seed),
        f"raw cosine, {label}{long}",
    )
    rows = [Row([label, found], "ceiling" if subject == "real" else "model")]
    if subject == "real":
        floor = e.guarded(
            f"shuffled.{embedder}",
            lambda: shuffled_floor(features, texts, captions, seed=e.seed),
            "real pictures with captions of others, raw cosine",
        )
        rows.append(Row(["real pictures, captions shuffled", floor], "floor"))
    return rows
