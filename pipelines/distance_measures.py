"""Generated pictures against the data: distances by every embedder, captions, copies and failures."""

from __future__ import annotations

from eval.blocks import Section
from pipelines.measures import Evaluation, Generated
from pipelines.scoring.scoring import Scoring, judged
from pipelines.scoring.sets import PictureSet


def measure_distances(e: Evaluation) -> None:
    """Hold what every generate stage drew against training pictures, beside held-out ones, as any pictures are."""
    if not e.embedders:
        empty = "The recipe has no stage of kind judge before this one, and stage.eval names no embedders."
        e.sections.append(Section("Distances", empty=empty))
    every, split = e.generated(), e.run.held_out_name()
    work = Scoring(
        sets={made.subject: _shown(e, made, split) for made in every},
        beside={
            f"{made.subject}.unseen": _shown(e, made, "unseen") for made in every if "unseen" in made.manifest["counts"]
        },
        reference=e.reference,
        against=f"{len(e.reference)} training pictures",
        embedders=e.embedders,
        cache=e.features,
        seed=e.seed,
        held_out=e.held_out,
        searched=_searched(e),
        figures=e.figures,
        samples=e.samples,
    )
    e.sections += judged(work)


def _shown(e: Evaluation, made: Generated, split: str) -> PictureSet:
    """The pictures of a stage for a split, at the size of the data."""
    size, title = e.run.recipe.size, made.stage if made.subject == made.stage else f"{made.stage} ({made.subject})"
    drawn = e.drawn(made, split).titled(f"{title}, unseen" if split == "unseen" else title, split)
    return drawn if drawn.one_shape() == (size, size) else drawn.fitted(size, size)


def _searched(e: Evaluation) -> PictureSet | None:
    """The training pictures in which copies are looked for; None where nobody asks for them."""
    count = min(e.stage.searched, len(e.train))
    if count == len(e.reference):
        return e.reference
    return e.read.at(range(count)) if count else None
