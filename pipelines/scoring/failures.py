"""Pictures that are no result: not finite when they were drawn, black, of one colour, the same as another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from eval.blocks import Block, Column, Gallery, Row, Section, Table
from eval.figure import Figure, Known
from eval.human.errors import named
from pipelines.errors import DataError
from pipelines.scoring.sets import Picture, PictureSet

KINDS = {"not_finite": "not finite", "black": "black", "even": "of one colour", "repeated": "repeated"}
SLACK = 3  # of 255, within which a picture is black or of one colour
SHOWN = 16  # of what failed in a set
LEAD = (
    "Every count of a generated set should be 0. A picture that is missing or cannot be read stops the evaluation, so "
    "there is none. Held-out pictures say what the data itself holds."
)
NOTE = (
    f"Not finite: a value was NaN or infinite when the picture was drawn. Black, of one colour: within {SLACK} of 255. "
    "Repeated: the same pixels as an earlier picture of the set."
)


@dataclass(frozen=True)
class Failed:
    """The places of the pictures that failed, by how."""

    places: dict[str, list[int]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    @property
    def all(self) -> list[int]:
        """The places of all of them, in order."""
        return sorted({i for places in self.places.values() for i in places})

    def how(self, i: int) -> str:
        """What is wrong with one of them."""
        return ", ".join(KINDS[kind] for kind, places in self.places.items() if i in places)


def failures(sets: Mapping[str, PictureSet], real: PictureSet | None, figures: dict[str, Known]) -> Section:
    """Note how many pictures of each set failed, and show the first. Raises DataError that names unreadable ones."""
    rows, galleries = list[Row](), list[Block]()
    for name, one in {**({} if real is None else {"real": real}), **sets}.items():
        found = look(one)
        counts = {f"{name}.failures[{kind}]": len(places) for kind, places in found.places.items()}
        figures |= {key: Figure(count, len(one), source="a count") for key, count in counts.items()}
        rows.append(Row([one.title, len(one), *counts.values()], "ceiling" if one is real else "model"))
        if found.all and one is not real:
            galleries.append(_gallery(one, found))
    columns = ["pictures", "n", *(Column(said, "plain", "lower") for said in KINDS.values())]
    table = Table("Pictures that are no result", columns, rows, NOTE)
    return Section("Failures", [table, *galleries] if rows else [], lead=LEAD)


def look(pictures: PictureSet) -> Failed:
    """Look at every picture once. Raises DataError that names those that cannot be read."""
    found, seen, unreadable = Failed(), set[int](), list[str]()
    for i in range(len(pictures)):
        try:
            picture = pictures.read(i)
        except DataError as error:
            unreadable.append(str(error))
            continue
        pixels = hash((picture.shape, picture.tobytes()))
        marks = {
            "not_finite": pictures.about is not None and bool(pictures.about(i).get("not_finite")),
            "black": is_black(picture),
            "even": is_even(picture),
            "repeated": pixels in seen,
        }
        seen.add(pixels)
        for kind, so in marks.items():
            if so:
                found.places[kind].append(i)
    if unreadable:
        raise _refusal(pictures, unreadable)
    return found


def is_black(picture: Picture) -> bool:
    """Whether a picture is black."""
    return int(picture.max()) <= SLACK


def is_even(picture: Picture) -> bool:
    """Whether a picture has one colour that is not black."""
    spread = picture.max((0, 1)).astype(int) - picture.min((0, 1))
    return int(spread.max()) <= SLACK and not is_black(picture)


def _refusal(pictures: PictureSet, unreadable: Sequence[str]) -> DataError:
    if len(unreadable) == 1:
        return DataError(unreadable[0])
    return DataError(f"{pictures.title}: {len(unreadable)} of {len(pictures)} pictures: {named(unreadable)}")


def _gallery(one: PictureSet, found: Failed) -> Gallery:
    shown = found.all[:SHOWN]
    items = []
    for i in shown:
        words = f" {one.caption(i)}" if one.caption is not None else ""
        items.append((Image.fromarray(one.read(i)), f"{one.name(i)}: {found.how(i)}.{words}"))
    return Gallery(f"{one.title}: failed", items, note=f"The first {len(shown)} of {len(found.all)}.")
