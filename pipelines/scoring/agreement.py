"""Agreement of pictures with their captions: CLIP score with its floor, by slices, and the pictures at both ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eval.blocks import Block, Column, Gallery, Row, RowKind, Table
from eval.clip_score import clip_score, cosines, shuffled_floor
from eval.features import NOTE
from eval.figure import Figure, Known, attempted
from eval.samples import Samples, key_of, within_prompts
from pipelines.errors import DataError
from pipelines.scoring.cached import Features
from pipelines.scoring.embedders import Opened
from pipelines.scoring.sets import PictureSet
from pipelines.scoring.slices import slices_of

ENDS = 8  # pictures of each end
SLICED = {"words": "number of words in the caption", "caption": "whether the embedder read the caption whole"}
SLICE_NOTE = "The number of pictures behind each value stands in the appendix, in the names of the figures."
COSINE = Column("cosine", "plain", "higher")


@dataclass(frozen=True)
class Agreement:
    """A set of pictures and their features, (n, d)."""

    pictures: PictureSet
    features: Features

    @cached_property
    def captions(self) -> list[str] | None:
        """What was asked for. Raises DataError where only some pictures have a caption."""
        return self.pictures.captions()


@dataclass(frozen=True)
class _Read:
    """A set whose captions have been read: features of both, (n, d), and which captions were cut, (n,)."""

    shown: Agreement
    captions: list[str]
    texts: NDArray[np.float64]
    cut: NDArray[np.bool_]
    kind: RowKind


def agreement(
    opened: Opened, sets: Mapping[str, Agreement], real: Agreement | None, figures: dict[str, Known],
    samples: dict[str, Samples], *, seed: int, ends: bool = True,
) -> list[Block]:  # fmt: skip
    """Note CLIP scores of all sets with captions; return tables, slices, and the pictures that agree best and worst.

    real: held-out pictures, whose own captions, where all have one, are the ceiling; ends: whether the best and the
    worst are shown. Raises DataError where only some pictures of a set have a caption.
    """
    read = {"real": _read(opened, real, "ceiling")} if real is not None and _captioned(real) else {}
    read |= {name: _read(opened, one, "model") for name, one in sets.items() if one.captions}
    if not read:
        return []
    rows = [row for name, one in read.items() for row in _rows(opened, name, one, figures, samples, seed)]
    embedder = opened.embedder
    title = f"CLIP score by {embedder.name}:{embedder.sha256[:8]}"
    note = "The raw cosine, neither scaled nor clamped: x 100 and x 2.5 are other people's scales."
    warning = f"These numbers are {NOTE}." if embedder.name.startswith("indomain") else ""
    columns = ["pictures", COSINE, "captions cut"]
    shown = [gallery for name, one in read.items() if ends and name in sets for gallery in _ends(one)]
    return [Table(title, columns, rows, note, warning), *_sliced(opened, read, figures, seed), *shown]


def _captioned(real: Agreement) -> bool:
    try:
        return bool(real.captions)
    except DataError:
        return False


def _read(opened: Opened, shown: Agreement, kind: RowKind) -> _Read:
    assert opened.text is not None and shown.captions is not None
    encoded = opened.text.tokenizer.encode(shown.captions)
    texts = opened.text.embed_tokens(encoded).pooled.double().cpu().numpy()
    return _Read(shown, shown.captions, texts, np.asarray(encoded.truncated, dtype=bool), kind)


def _key(opened: Opened, n: int, part: str = "") -> str:
    embedder = opened.embedder
    return f"clip_score[{embedder.name}:{embedder.sha256[:8]}|resize={embedder.resize}|n={n}{part}]"


def _rows(
    opened: Opened, name: str, one: _Read, figures: dict[str, Known], samples: dict[str, Samples], seed: int
) -> list[Row]:
    """The score of a set, and that of its pictures with captions of others, which are its floor."""
    assert opened.text is not None
    key, cut, title = _key(opened, len(one.captions)), int(one.cut.sum()), one.shown.pictures.title
    source = f"raw cosine, {cut} of {len(one.captions)} captions cut at {opened.text.length} tokens"
    for subject, measure in ((name, clip_score), (f"shuffled.{name}", partial(shuffled_floor, seed=seed))):
        found = partial(measure, one.shown.features, one.texts, one.captions)
        figures[f"{subject}.{key}"] = attempted(found, source)
    if isinstance(figures[f"{name}.{key}"], Figure):
        keys, said = tuple(map(key_of, one.captions)), cosines(one.shown.features, one.texts)
        samples[f"{name}.{key}"] = Samples(keys, tuple(said.tolist()), within_prompts(keys))
    return [
        Row([title, figures[f"{name}.{key}"], cut], one.kind),
        Row([f"{title}, captions shuffled", figures[f"shuffled.{name}.{key}"], cut], "floor"),
    ]


def _sliced(opened: Opened, read: Mapping[str, _Read], figures: dict[str, Known], seed: int) -> list[Table]:
    """The score by length of caption, by whether it was cut, and by what labels say; the same slices of all sets."""
    named = {name: (one.captions, one.cut, _labels(one.shown.pictures)) for name, one in read.items()}
    tables = []
    for kind, parts in slices_of(named).items():
        rows = []
        for name, one in read.items():
            cells = [
                _slice(opened, name, one, f"{kind}:{part}", parts[part].get(name), figures, seed) for part in parts
            ]
            rows.append(Row([one.shown.pictures.title, *cells], one.kind))
        columns = ["pictures", *(Column(part, "plain", "higher") for part in parts)]
        what = SLICED.get(kind, kind.replace(".", " "))
        tables.append(Table(f"CLIP score by {what}, {opened.embedder.name}", columns, rows, SLICE_NOTE))
    return tables


def _slice(
    opened: Opened, name: str, one: _Read, part: str, inside: NDArray[np.bool_] | None, figures: dict[str, Known],
    seed: int,
) -> Known | None:  # fmt: skip
    """Note the score of a part of a set; None where the set has nothing of it."""
    if inside is None:
        return None
    captions = [words for words, belongs in zip(one.captions, inside, strict=True) if belongs]
    measure = partial(clip_score, one.shown.features[inside], one.texts[inside], captions)
    key = f"{name}.{_key(opened, len(captions), f'|slice={part}')}"
    figures[key] = attempted(measure, f"raw cosine, {len(captions)} of {len(one.captions)} pictures")
    return figures[key]


def _labels(pictures: PictureSet) -> list[dict]:
    about = pictures.about
    found = [{} if about is None else about(i).get("label") for i in range(len(pictures))]
    return [one if isinstance(one, dict) else {} for one in found]


def _ends(one: _Read) -> list[Gallery]:
    """The pictures that agree best and worst with their captions."""
    said, pictures = cosines(one.shown.features, one.texts), one.shown.pictures
    order = np.argsort(said, kind="stable").tolist()
    many = min(ENDS, len(order) // 2)
    note = f"Picked by the cosine out of {len(order)}: no fair sample, and no better than what picked them."

    def gallery(which: str, places: Sequence[int]) -> Gallery:
        items = [(Image.fromarray(pictures.read(i)), f"{said[i]:.3f}. \u2068{one.captions[i]}\u2069") for i in places]
        return Gallery(f"{pictures.title}: the {len(items)} that agree {which} with their captions", items, note=note)

    return [gallery("best", order[::-1][:many]), gallery("worst", order[:many])] if many else []
