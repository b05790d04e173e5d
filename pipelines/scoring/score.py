"""`palimpsest eval --generated`: pictures of any system, held against a reference by any embedders, in one report."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from PIL import Image

from eval.blocks import Gallery, Report, Section
from eval.report import write_report
from pipelines.artefact import digest
from pipelines.beside import NOTHING, Beside
from pipelines.data.remote.address import without_credentials
from pipelines.errors import PalimpsestError
from pipelines.provenance import made_by
from pipelines.scoring.cached import FeatureCache
from pipelines.scoring.card import card
from pipelines.scoring.embedders import Opened, open_embedders
from pipelines.scoring.made import judged_set
from pipelines.scoring.reference import Reference, Statistics, open_reference
from pipelines.scoring.scoring import Scoring, judged, make_together
from pipelines.scoring.sets import PictureSet, open_set, splits_there
from pipelines.scoring.shared_captions import side_by_side
from pipelines.scoring.titles import titles_of
from pipelines.together import together

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


def score(asked: Asked, command: str, beside: Beside = NOTHING) -> tuple[Path, Path]:
    """Score what is asked; returns the paths of report.html and report.json in `asked.out`.

    beside: what the report holds beside its figures. Of several processes (torchrun) each makes the features
    of a part, and the main one all else. Raises PalimpsestError for sets, captions and embedders that cannot be used,
    CompareError for a report on other data.
    """
    began = time.monotonic()
    processes = PartialState(cpu=not torch.cuda.is_available())
    with together():
        work = _opened(asked, beside)
    if processes.num_processes > 1:
        make_together(work)
    if not processes.is_main_process:
        return asked.out / "report.html", asked.out / "report.json"
    sections, sets = judged(work), list(work.sets.values())
    if asked.card and isinstance(work.reference, PictureSet):
        sections += [card(opened.embedder, work.reference, work.figures, asked.seed) for opened in work.embedders]
    sections.append(Section("Pictures", [*side_by_side(sets, SHOWN), *(_gallery(one) for one in sets)]))
    report = _report(asked, work, sections, command, time.monotonic() - began)
    return write_report(beside.added_to(report), asked.out)


def _opened(asked: Asked, beside: Beside) -> Scoring:
    """All that a scoring reads."""
    sets = _sets(asked)
    reference = _reference(asked, sets)
    beside.check_data(reference.sha256[:16])
    pictures = reference if isinstance(reference, PictureSet) else None
    embedders = open_embedders(asked.embedders, pictures, asked.seed)
    if isinstance(reference, Statistics):
        _check_width(reference, embedders)
    return Scoring(
        sets={one.title: one for one in sets}, reference=reference, against=without_credentials(asked.reference),
        embedders=embedders, cache=FeatureCache(asked.out / "features"),
        seed=asked.seed, held_out=_held_out(asked, reference), searched=pictures,
    )  # fmt: skip


def _check_width(reference: Statistics, embedders: Sequence[Opened]) -> None:
    """Raise PalimpsestError where no embedder can have made the statistics."""
    for one in embedders:
        if one.embedder.dim != len(reference.mean):
            raise PalimpsestError(
                f"{reference.title} holds statistics of {len(reference.mean)} numbers a picture, {one.embedder.name} "
                f"makes {one.embedder.dim}: name the embedder that made them with --embedders."
            )


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


def _gallery(one: PictureSet) -> Gallery:
    count, said = min(SHOWN, len(one)), one.caption or one.name
    items = [(Image.fromarray(one.read(i)), said(i)) for i in range(count)]
    return Gallery(one.title, items, note=f"The first {count} of {len(one)}, none picked.")


def _highlights(work: Scoring) -> list[str]:
    """What stands on top, where there is one set: of several, a tile would not say which it is of."""
    (alone, *others) = work.sets
    own = [name for name in work.figures if name.startswith(f"{alone}.") and ".failures[" not in name]
    return [] if others else own[:8]


def _report(asked: Asked, work: Scoring, sections: list[Section], command: str, seconds: float) -> Report:
    reference, sets = work.reference, work.sets
    hashes = {title: one.sha256[:16] for title, one in sets.items()}
    settings = dataclasses.asdict(asked).items()
    resolved = {key: None if value is None else without_credentials(str(value)) for key, value in settings}
    known = isinstance(reference, PictureSet)
    size, split = (f"{len(reference)} pictures of ", {"split": reference.split}) if known else ("", {})
    provenance = made_by(
        recipe="pictures from anywhere",
        recipe_hash=digest([hashes, reference.sha256])[:16],
        command=without_credentials(command),
        resolved=resolved,
        seeds={"scoring": asked.seed},
        artefacts={one.embedder.name: one.embedder.sha256[:16] for one in work.embedders},
        data={**hashes, "hash": reference.sha256[:16], "reference": work.against, **split},
        wall_time={"scoring": seconds},
        models=[judged_set(one, path) for one, path in zip(sets.values(), asked.generated, strict=True)],
    )
    return Report(
        title="Palimpsest: " + ", ".join(sets),
        summary=f"{len(next(iter(sets.values())))} pictures of each set against {size}{work.against}",
        provenance=provenance,
        sections=sections,
        figures=work.figures,
        samples=work.samples,
        highlights=_highlights(work),
    )
