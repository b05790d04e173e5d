"""How much the sets of a recipe hold, before anything is read of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pipelines.data.config import FIRST
from pipelines.data.place import Place
from pipelines.data.shards import open_split
from pipelines.dry import in_bytes
from pipelines.recipe import Recipe
from pipelines.sets import Source, pictures_of, texts_of


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much a set has to train on: samples, bytes and shards.

    share: what is drawn of it for each picture; texts: whether it has no pictures.
    """

    samples: int
    bytes: int
    shards: int
    name: str = FIRST
    share: Fraction = Fraction(1)
    texts: bool = False


def amounts(recipe: Recipe, data: Place, out: Path) -> list[Amount]:
    """Return how much the training split of each set holds; data: where the first lies, out: where runs are kept.

    Raises DataError as `open_split` does.
    """
    pictures, texts = pictures_of(recipe, data, out), texts_of(recipe)
    return [_amount(recipe, source, source in texts) for source in (*pictures, *texts)]


def _amount(recipe: Recipe, source: Source, texts: bool) -> Amount:
    split = open_split(source.place, "train")
    sizes = split.shards.stamps[:, 0].tolist()
    share = Fraction(recipe.shares().get(source.name, "1"))
    return Amount(samples=len(split), bytes=sum(sizes), shards=len(sizes), name=source.name, share=share, texts=texts)


def volume(data: Sequence[Amount], rate: float) -> str:
    """Say how much is read of each set, how fast, and from how many files."""
    lines = []
    for one in data:
        drawn = f" ({one.share} for each picture that is drawn)" if len(data) > 1 else ""
        label = "Data" if len(data) == 1 else f"Data, {one.name}"
        lines.append(
            f"{label}: {one.samples:,} samples of {one.bytes / one.samples / 1e3:,.1f} kB in {one.shards:,} shards, "
            f"{in_bytes(one.bytes)}{drawn}."
        )
    each = float(sum(one.share * Fraction(one.bytes, one.samples) for one in data))
    whole = f"A stage that reads them as fast as the fastest here would read {in_bytes(rate * each)} a second."
    return "\n".join([*lines, whole]) if len(data) > 1 else f"{lines[0]} {whole}"
