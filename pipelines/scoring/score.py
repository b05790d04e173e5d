"""`palimpsest eval --generated`: pictures of any system, held against a reference by any embedders, in one report."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from eval.blocks import Column, Gallery, Known, Report, Row, Section, Table, attempted
from eval.change import Baseline, with_change
from eval.clip_score import clip_score, shuffled_floor
from eval.features import Embedder
from eval.report import write_report
from pipelines.artefact import digest
from pipelines.data.remote.address import without_credentials
from pipelines.errors import PalimpsestError
from pipelines.provenance import made_by
from pipelines.scoring.cached import FeatureCache, Features
from pipelines.scoring.card import card
from pipelines.scoring.copies import copies
from pipelines.scoring.distances import SetRow, distances, figures_of, table_of
from pipelines.scoring.embedders import Opened, open_embedders
from pipelines.scoring.made import judged_set
from pipelines.scoring.reference import Reference, Statistics, open_reference
from pipelines.scoring.sets import PictureSet, open_set, splits_there
from pipelines.scoring.titles import titles_of

SHOWN = 48  # pictures of each set in the report
log = logging.getLogger("palimpsest")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be scored against what.

    generated: folders of pictures, or shards, side by side; reference: a folder, shards or an .npz of statistics;
    embedders: as in pipelines.scoring.embedders; prompts: captions of the generated pictures; split: of shards;
    count, reference_count: pictures of each at most; as_they_are: leave the reference at its own size, where else it
    is brought to that of what was generated.
    """

    generated: tuple[str, ...]
    reference: str
    out: Path
    embedders: tuple[str, ...] = ()
    prompts: Path | None = None
    held_out: str = ""  # real pictures that no model has seen; of shards their test split, where this names none
    split: str = "train"
    count: int | None = None
    reference_count: int | None = None
    as_they_are: bool = False
    card: bool = False  # measure, on damaged pictures of the reference, whether the embedders see what people see
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that judge nothing."""
        for name, value in (("count", self.count), ("reference_count", self.reference_count)):
            if value is not None and value < 2:
                raise PalimpsestError(f"--{name.replace('_', '-')} is {value}, expected at least 2 pictures.")


@dataclass
class Scoring:
    """One scoring while it is being made."""

    asked: Asked
    sets: list[PictureSet]
    reference: Reference
    embedders: list[Opened]
    cache: FeatureCache
    held_out: PictureSet | None = None
    figures: dict[str, Known] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)


def score(asked: Asked, command: str, before: Baseline | None = None) -> tuple[Path, Path]:
    """Score what is asked; returns the paths of report.html and report.json in `asked.out`.

    before: an earlier report that the new one is compared with. Raises PalimpsestError for sets, captions and embedders
    that cannot be used, CompareError for a report on other data.
    """
    began = time.monotonic()
    sets = _sets(asked)
    reference = _reference(asked, sets)
    if before is not None:
        before.check_data(reference.sha256[:16])
    embedders = open_embedders(asked.embedders, reference if isinstance(reference, PictureSet) else None, asked.seed)
    cache = FeatureCache(asked.out / "features")
    work = Scoring(asked, sets, reference, embedders, cache, _held_out(asked, reference))
    agreement, nearest = list[Table](), list[Section]()
    for opened in embedders:
        features = {one.title: work.cache.of(opened.embedder, one) for one in sets}
        work.sections.append(_distances(work, opened.embedder, features))
        agreement += _agreement(work, opened, features)
        if opened is embedders[0]:  # one is enough
            nearest = _nearest(work, opened.embedder, features)
        if asked.card and isinstance(reference, PictureSet):
            work.sections.append(card(opened.embedder, reference, work.figures, asked.seed))
    if agreement:
        work.sections.append(Section("Agreement with captions", agreement))
    work.sections += nearest
    work.sections.append(Section("Pictures", [*_side_by_side(sets), *(_gallery(one) for one in sets)]))
    return write_report(with_change(_report(work, command, time.monotonic() - began), before), asked.out)


def _sets(asked: Asked) -> list[PictureSet]:
    """The generated sets, cut to one size: distances depend on it."""
    opened = [
        open_set(path, split=asked.split, prompts=asked.prompts, title=title)
        for path, title in titles_of("--generated", asked.generated).items()
    ]
    n = min(len(one) for one in opened) if asked.count is None else min(asked.count, *map(len, opened))
    for one in opened:
        if len(one) > n:
            log.warning("%s: %d of %d pictures are judged, as many as of all sets.", one.title, n, len(one))
    return [one.some(n, asked.seed) for one in opened]


def _reference(asked: Asked, sets: Sequence[PictureSet]) -> Reference:
    """The reference, at the size of what was generated where that is one."""
    opened = open_reference(asked.reference, split=asked.split)
    if isinstance(opened, Statistics):
        return opened
    taken = opened.some(asked.reference_count, asked.seed)
    shapes = {one.one_shape() for one in sets}
    shape = shapes.pop() if len(shapes) == 1 else None
    return taken if asked.as_they_are or shape is None else taken.fitted(*shape)


def _held_out(asked: Asked, reference: Reference) -> PictureSet | None:
    """Real pictures that are not in the reference, at its size, where there are any."""
    if not isinstance(reference, PictureSet):
        if asked.held_out or asked.card:
            raise PalimpsestError("--held-out and --card need the pictures of the reference, not statistics of them.")
        return None
    if asked.held_out and asked.held_out == asked.reference and reference.split != "train":
        raise PalimpsestError(f"--held-out is the reference, {asked.held_out}: name pictures that are not in it.")
    where, split = asked.held_out or asked.reference, "test"
    if not asked.held_out and (reference.split != "train" or "test" not in splits_there(where)):
        return None
    found = open_set(where, split=split, title="held-out", captions=False)
    shape = None if asked.as_they_are else reference.one_size
    return found if shape is None else found.fitted(*shape)


def _distances(work: Scoring, embedder: Embedder, features: Mapping[str, Features]) -> Section:
    """Distances of all sets by one embedder; the ceiling is a part of the reference against the rest of it."""
    reference, seed = work.reference, work.asked.seed
    rows = list[SetRow]()
    if isinstance(reference, PictureSet):
        against: Features | Statistics = work.cache.of(embedder, reference)
        split = f"{reference.split}-{reference.sha256[:8]}"
        rows.append(_ceiling(work, embedder, against, split, min(map(len, features.values()))))
    else:
        against, split = reference, reference.title
    for title, found in features.items():
        rows.append(SetRow(title, title, "model", distances(found, against, embedder, split, seed=seed)))
    work.figures |= figures_of(rows)
    return Section(
        f"Distances by {embedder.name}",
        [table_of(f"Against {without_credentials(work.asked.reference)}", rows, embedder)],
    )


def _ceiling(work: Scoring, embedder: Embedder, real: Features, split: str, n: int) -> SetRow:
    """What real pictures score, n of them where there are so many: held-out ones, or a part of the reference."""
    seed = work.asked.seed
    if work.held_out is not None:
        unseen = work.held_out.some(n, seed)
        made = distances(work.cache.of(embedder, unseen), real, embedder, split, seed=seed)
        return SetRow("real", f"{len(unseen)} held-out pictures", "ceiling", made)
    order = np.random.default_rng(seed).permutation(len(real))
    part = min(len(real) // 2, n)
    made = distances(real[order[:part]], real[order[part:]], embedder, split, seed=seed)
    return SetRow("real", f"{part} pictures of the reference against its other {len(real) - part}", "ceiling", made)


def _nearest(work: Scoring, embedder: Embedder, features: Mapping[str, Features]) -> list[Section]:
    """How near the sets lie to the reference, where there are held-out pictures to hold them against."""
    if work.held_out is None or not isinstance(work.reference, PictureSet):
        return []
    found = {one.title: (one, features[one.title]) for one in work.sets}
    real, unseen = (work.cache.of(embedder, one) for one in (work.reference, work.held_out))
    return [copies(found, unseen, work.reference, real, embedder, work.figures, seed=work.asked.seed)]


def _agreement(work: Scoring, opened: Opened, features: Mapping[str, Features]) -> list[Table]:
    """CLIP score of the sets that have captions, their floor with shuffled ones, how many captions were cut."""
    if opened.text is None:
        return []
    embedder, rows = opened.embedder, []
    for one in work.sets:
        captions = one.captions()
        if captions is None:
            continue
        encoded = opened.text.tokenizer.encode(captions)
        texts = opened.text.embed_tokens(encoded).pooled.double().cpu().numpy()
        key = f"clip_score[{embedder.name}:{embedder.sha256[:8]}|resize={embedder.resize}|n={len(one)}]"
        cut = int(encoded.truncated.sum())
        source = f"raw cosine, {cut} of {len(one)} captions cut at {opened.text.length} tokens"
        measures = {one.title: clip_score, f"shuffled.{one.title}": shuffled_floor}
        for subject, measure in measures.items():
            found = partial(measure, features[one.title], texts, captions, seed=work.asked.seed)
            work.figures[f"{subject}.{key}"] = attempted(found, source)
        rows.append(Row([one.title, work.figures[f"{one.title}.{key}"], cut]))
        rows.append(Row([f"{one.title}, captions shuffled", work.figures[f"shuffled.{one.title}.{key}"], cut], "floor"))
    title = f"CLIP score by {embedder.name}:{embedder.sha256[:8]}"
    columns = ["pictures", Column("cosine", "plain", "higher"), "captions cut"]
    note = "The raw cosine, neither scaled nor clamped: x 100 and x 2.5 are other people's scales."
    return [Table(title, columns, rows, note=note)] if rows else []


def _gallery(one: PictureSet) -> Gallery:
    count, said = min(SHOWN, len(one)), one.caption or one.name
    items = [(Image.fromarray(one.read(i)), said(i)) for i in range(count)]
    return Gallery(one.title, items, note=f"The first {count} of {len(one)}, none picked.")


def _side_by_side(sets: Sequence[PictureSet]) -> list[Gallery]:
    """What all sets make of the captions that they share, where there are several sets; of equal captions the first."""
    if len(sets) < 2:
        return []
    first = [_first_of(one) for one in sets]
    shared = [caption for caption in first[0] if all(caption in found for found in first)]
    items = [
        ([Image.fromarray(one.read(found[caption])) for one, found in zip(sets, first, strict=True)], caption)
        for caption in shared[:SHOWN]
    ]
    note = f"The first {len(items)} of the {len(shared)} captions that all sets share, none picked."
    labels = [one.title for one in sets]
    columns = max(1, 8 // len(sets))
    return [Gallery("The same caption by every set", items, columns, note, labels)] if items else []


def _first_of(one: PictureSet) -> dict[str, int]:
    """The first picture of each caption."""
    found: dict[str, int] = {}
    for i, caption in enumerate(one.captions() or []):
        found.setdefault(caption, i)
    return found


def _highlights(work: Scoring) -> list[str]:
    """What stands on top, where there is one set: of several, a tile would not say which it is of."""
    alone = work.sets[0].title if len(work.sets) == 1 else ""
    return [name for name in work.figures if alone and name.startswith(f"{alone}.")][:8]


def _report(work: Scoring, command: str, seconds: float) -> Report:
    asked, reference = work.asked, work.reference
    hashes = {one.title: one.sha256[:16] for one in work.sets}
    settings = dataclasses.asdict(asked).items()
    resolved = {key: None if value is None else without_credentials(str(value)) for key, value in settings}
    against = without_credentials(asked.reference)
    known = isinstance(reference, PictureSet)
    size, split = (f"{len(reference)} pictures of ", {"split": reference.split}) if known else ("", {})
    provenance = made_by(
        recipe="pictures from anywhere",
        recipe_hash=digest([hashes, reference.sha256])[:16],
        command=without_credentials(command),
        resolved=resolved,
        seeds={"scoring": asked.seed},
        artefacts={one.embedder.name: one.embedder.sha256[:16] for one in work.embedders},
        data={**hashes, "hash": reference.sha256[:16], "reference": against, **split},
        wall_time={"scoring": seconds},
        models=[judged_set(one, path) for one, path in zip(work.sets, asked.generated, strict=True)],
    )
    return Report(
        title="Palimpsest: " + ", ".join(one.title for one in work.sets),
        summary=f"{len(work.sets[0])} pictures of each set against {size}{against}",
        provenance=provenance,
        sections=work.sections,
        figures=work.figures,
        highlights=_highlights(work),
    )
