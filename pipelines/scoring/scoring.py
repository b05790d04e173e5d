"""Sets of pictures held against a reference by embedders: what a recipe's report has in common with any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from eval.blocks import Block, Section
from eval.features import Embedder
from eval.figure import Known
from eval.frechet import rank_note
from eval.samples import Samples
from pipelines.scoring.agreement import Agreement, agreement
from pipelines.scoring.cached import FeatureCache, Features
from pipelines.scoring.copies import copies
from pipelines.scoring.distances import SetRow, distances, figures_of, table_of
from pipelines.scoring.embedders import Opened
from pipelines.scoring.failures import failures
from pipelines.scoring.reference import Reference, Statistics
from pipelines.scoring.sets import PictureSet, some_of


@dataclass
class Scoring:
    """One scoring while it is being made.

    sets: what was generated, by the first part of the names of its figures; against: what tables call the reference;
    held_out: real pictures that are not in the reference; searched: pictures in which copies are looked for, where
    they are; beside: further pictures, of which only failures are counted; samples: what single pictures add to
    figures, by name.
    """

    sets: Mapping[str, PictureSet]
    reference: Reference
    against: str
    embedders: list[Opened]
    cache: FeatureCache
    seed: int
    held_out: PictureSet | None = None
    searched: PictureSet | None = None
    beside: Mapping[str, PictureSet] = field(default_factory=dict)
    figures: dict[str, Known] = field(default_factory=dict)
    samples: dict[str, Samples] = field(default_factory=dict)

    @property
    def fewest(self) -> int:
        """How many pictures of every generated set are held against the reference: distances depend on it."""
        return min((len(one) for one in self.sets.values()), default=len(self.held_out or ()))


def judged(work: Scoring) -> list[Section]:
    """Note all figures of a scoring, and return the sections that show them.

    Raises DataError that names pictures which cannot be read, or of which only some have a caption.
    """
    failed = failures({**work.sets, **work.beside}, work.held_out, work.figures)
    sections, agreements, near = list[Section](), list[Block](), list[Section]()
    for opened in work.embedders:
        embedder = opened.embedder
        made = {name: work.cache.of(embedder, one) for name, one in work.sets.items()}
        real = None if isinstance(work.reference, Statistics) else work.cache.of(embedder, work.reference)
        searched, shown = _searched(work, opened), _shown(work, opened)
        unseen = None if shown is None else (shown, work.cache.of(embedder, shown))
        sections.append(_distances(work, embedder, made, real, unseen))
        if opened.text is not None:
            words = {name: Agreement(one, made[name]) for name, one in work.sets.items()}
            ceiling = None if unseen is None else Agreement(*unseen)
            agreements += agreement(
                opened, words, ceiling, work.figures, work.samples, seed=work.seed, ends=not agreements
            )
        if searched is not None and real is not None and unseen is not None:
            near.append(_copies(work, searched, embedder, made, real, unseen[1]))
    if agreements:
        sections.append(Section("Agreement with captions", agreements))
    return [*sections, *near, failed]


def make_together(work: Scoring) -> None:
    """Make all features that `judged` asks for, of several processes each a part; without those of damaged pictures."""
    for opened in work.embedders:
        searched = _searched(work, opened)
        asked = [*work.sets.values(), work.reference, _shown(work, opened), searched]
        for pictures in asked:
            if isinstance(pictures, PictureSet):
                work.cache.make_together(opened.embedder, pictures)


def _searched(work: Scoring, opened: Opened) -> PictureSet | None:
    """In what copies of what was generated are looked for: by one embedder, which is enough."""
    wanted = work.sets and work.held_out is not None and opened is work.embedders[0]
    return work.searched if wanted else None


def _shown(work: Scoring, opened: Opened) -> PictureSet | None:
    """Held-out pictures: all where copies ask for them, else as many as are compared."""
    if work.held_out is None or _searched(work, opened) is not None:
        return work.held_out
    return work.held_out.some(work.fewest, work.seed)


def _distances(
    work: Scoring, embedder: Embedder, made: Mapping[str, Features], real: Features | None,
    unseen: tuple[PictureSet, Features] | None,
) -> Section:  # fmt: skip
    """Distances of all sets by one embedder, below those of real pictures."""
    reference, seed, rows = work.reference, work.seed, list[SetRow]()
    if isinstance(reference, Statistics):
        against, split = reference, reference.title
    else:
        assert real is not None
        against, split = real, f"{reference.split}-{reference.sha256[:8]}"
        rows.append(_ceiling(work, embedder, real, split, unseen))
    for name, found in made.items():
        cut = found[some_of(len(found), work.fewest, seed)]
        rows.append(SetRow(name, work.sets[name].title, "model", distances(cut, against, embedder, split, seed=seed)))
    work.figures |= figures_of(rows)
    alike = [one for one in work.embedders if one.embedder.name == embedder.name]
    named = embedder.name if len(alike) == 1 else f"{embedder.name}:{embedder.sha256[:8]}"
    return Section(f"Distances by {named}", [table_of(f"Against {work.against}", rows, embedder, _sizes(work, real))])


def _sizes(work: Scoring, real: Features | None) -> str:
    """How many pictures of each set are compared, and what is to be said of so few."""
    n, most = work.fewest, max((len(one) for one in work.sets.values()), default=0)
    cut = ", as many as the smallest has" if most > n else ""
    rank = "" if real is None else rank_note(n, len(real), real.shape[1])
    return f"{n} pictures of each set{cut}.{f' Fréchet distance: {rank}.' if rank else ''}"


def _ceiling(
    work: Scoring, embedder: Embedder, real: Features, split: str, unseen: tuple[PictureSet, Features] | None
) -> SetRow:
    """What real pictures score: as many held-out ones as are compared, or a part of the reference against the rest."""
    seed, n = work.seed, work.fewest
    if unseen is not None:
        cut = unseen[1][some_of(len(unseen[1]), n, seed)]
        made = distances(cut, real, embedder, split, seed=seed)
        return SetRow("real", f"{len(cut)} {unseen[0].title} pictures", "ceiling", made)
    order = np.random.default_rng(seed).permutation(len(real))
    part = min(len(real) // 2, n)
    made = distances(real[order[:part]], real[order[part:]], embedder, split, seed=seed)
    return SetRow("real", f"{part} pictures of the reference against its other {len(real) - part}", "ceiling", made)


def _copies(
    work: Scoring, known: PictureSet, embedder: Embedder, made: Mapping[str, Features], real: Features, unseen: Features
) -> Section:
    """How near the sets lie to what a model was trained on, beside held-out pictures."""
    features = real if known is work.reference else work.cache.of(embedder, known)
    sets = {name: (one, made[name]) for name, one in work.sets.items()}
    return copies(sets, unseen, known, features, embedder, work.figures, seed=work.seed)
