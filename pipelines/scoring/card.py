"""The validity card of an embedder: how its distance answers to damage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.blocks import Curve, Section, Series
from eval.features import Embedder
from eval.figure import Figure, Known
from eval.validity import Dose, doses, share_rising
from pipelines.errors import PalimpsestError
from pipelines.scoring.cached import embed
from pipelines.scoring.sets import Picture, PictureSet

SEEN = 0.6  # Kendall's rank correlation from which on a damage is seen
PICTURES = 800  # of the reference: half of them stay clean, the others are damaged


def card(embedder: Embedder, reference: PictureSet, figures: dict[str, Known], seed: int) -> Section:
    """Measure an embedder on the reference, note its figures, and draw its answers. Raises PalimpsestError."""

    def features(pictures: Sequence[Picture]) -> np.ndarray:
        return embed(embedder, PictureSet.of(pictures, embedder.name))

    try:
        found = doses(list(reference.some(PICTURES, seed)), features, seed=seed)
    except ValueError as error:
        raise PalimpsestError(f"--card: {error}.") from error
    name, share = f"card.{embedder.name}:{embedder.sha256[:8]}", share_rising(found)
    figures[f"{name}.rising"] = Figure.of(share, "steps of damage that make the distance larger; no interval")
    for dose in found:
        figures[f"{name}.rank[{dose.damage}]"] = Figure(dose.rank, len(dose.strengths), source=f"n = {dose.n} pictures")
    lead = (
        f"{round(share.value * share.n)} of {share.n} steps of damage make the distance larger. Left of each chart "
        "stands the distance between two untouched parts of the reference."
    )
    if blind := [dose.damage for dose in found if dose.rank < SEEN]:
        lead += f" It hardly answers to {', '.join(blind)}, or the wrong way: do not judge by it what shows in that."
    return Section(f"Validity of {embedder.name}", [_chart(dose) for dose in found], lead=lead)


def _chart(dose: Dose) -> Curve:
    line = Series("Fréchet distance", dose.strengths, dose.distances)
    return Curve(
        dose.damage, [line], x_label="strength", y_label="distance", note=f"n = {dose.n} against a clean half."
    )
