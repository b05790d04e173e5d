"""Distances between sets of pictures on judge features, and CLIP score, each between a floor and a ceiling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eval.blocks import Column, Row, RowKind, Section, Table
from eval.clip_score import clip_score, cosines, shuffled_floor
from eval.features import NOTE
from eval.interval import Interval
from pipelines.measures import Evaluation, Set, read_generated
from pipelines.scoring.distances import SetRow, distances, figures_of, table_of

REFERENCE = 2000  # training pictures that all sets are held against


def measure_distances(e: Evaluation) -> None:
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
    rows, scores = list[SetRow](), list[Row]()
    for label, (subject, shown, kind) in sets.items():
        features = e.judges.features(shown.pictures[:n])
        rows.append(SetRow(subject, label, kind, distances(features, reference, tower, "train", seed=e.seed)))
        scores += _clip_rows(e, subject, label, features, shown.captions[:n])
    e.figures |= figures_of(rows)
    tables = [
        table_of("Distances on judge features, against training pictures", rows, tower),
        Table(
            "CLIP score of the judge", ["pictures", Column("cosine", "plain", "higher")], scores,
            warning=f"These numbers are {NOTE}.",
        ),
    ]  # fmt: skip
    e.sections.append(Section("Distances", tables))


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

    def measured() -> Interval:
        e.note_each(embedder, subject, captions, cosines(features, texts).tolist())
        return clip_score(features, texts, captions, seed=e.seed)

    found = e.guarded(f"{subject}.{embedder}", measured, f"raw cosine, {label}{long}")
    rows = [Row([label, found], "ceiling" if subject == "real" else "model")]
    if subject == "real":
        floor = e.guarded(
            f"shuffled.{embedder}",
            lambda: shuffled_floor(features, texts, captions, seed=e.seed),
            "real pictures with captions of others, raw cosine",
        )
        rows.append(Row(["real pictures, captions shuffled", floor], "floor"))
    return rows
