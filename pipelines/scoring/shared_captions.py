"""What several sets of pictures make of the captions that they share."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from eval.blocks import Gallery
from pipelines.scoring.sets import PictureSet

WIDE = 8  # pictures beside each other on the page


def side_by_side(sets: Sequence[PictureSet], count: int) -> list[Gallery]:
    """A gallery of the first `count` captions that all sets share, where there are several; of equal ones the first."""
    if len(sets) < 2:
        return []
    places = [_first_of(one) for one in sets]
    shared = [caption for caption in places[0] if all(caption in found for found in places)]
    items = [
        ([Image.fromarray(one.read(found[caption])) for one, found in zip(sets, places, strict=True)], caption)
        for caption in shared[:count]
    ]
    note = f"The first {len(items)} of the {len(shared)} captions that all sets share, none picked."
    labels, columns = [one.title for one in sets], max(1, WIDE // len(sets))
    return [Gallery("The same caption by every set", items, columns, note, labels)] if items else []


def _first_of(one: PictureSet) -> dict[str, int]:
    """The first picture of each caption."""
    found: dict[str, int] = {}
    for i, caption in enumerate(one.captions() or []):
        found.setdefault(caption, i)
    return found
