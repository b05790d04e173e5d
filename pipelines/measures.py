"""What all measures share: the pictures that are judged, and the evaluation that collects figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eval.blocks import Section
from eval.features import quantise
from eval.figure import Figure, Known, attempted
from eval.human.errors import named
from eval.interval import Interval
from eval.samples import Samples, key_of
from eval.scene import Scores
from pipelines.artefact import ArtefactError, read_json
from pipelines.data.decode import image_and_caption
from pipelines.data.stream import some
from pipelines.judged_config import EvalStage, GenerateStage
from pipelines.judging import Judges, Pictures
from pipelines.lpips_measure import LocalLPIPS
from pipelines.pictures import NOT_FINITE
from pipelines.runs import Run
from pipelines.sampling_options import AUTOREGRESSIVE
from pipelines.saved import stem
from pipelines.scoring.cached import FeatureCache
from pipelines.scoring.embedders import Opened, apart, open_embedders
from pipelines.scoring.sets import PictureSet

REFERENCE = 2000  # training pictures that all sets are held against


@dataclass
class Set:
    """Pictures with what was asked for."""

    pictures: Pictures
    captions: list[str]
    labels: list[dict[str, Any]]
    names: list[str] | None = None
    not_finite: list[bool] | None = None  # which pictures had NaN or infinite values when they were drawn

    def __len__(self) -> int:
        return len(self.pictures)

    def first(self, count: int) -> Set:
        """The first `count`, or all where there are fewer."""
        return Set(self.pictures[:count], self.captions[:count], self.labels[:count])

    @property
    def labelled(self) -> bool:
        """Whether the labels are exact scenes."""
        return all("objects" in label for label in self.labels)

    def titled(self, title: str, split: str) -> PictureSet:
        """Return it as a set that embedders judge; split: what it is of."""
        broken = self.not_finite or [False] * len(self)
        return PictureSet.of(
            list(self.pictures), title, split=split, names=self.names, captions=self.captions,
            abouts=[{"label": label, NOT_FINITE: bad} for label, bad in zip(self.labels, broken, strict=True)],
        )  # fmt: skip


@dataclass(frozen=True)
class Generated:
    """What one generate stage made. subject: the first part of its figures' names."""

    stage: str
    model: str
    subject: str
    manifest: dict[str, Any]
    folder: Path

    @property
    def how(self) -> str:
        """The sampling settings in words."""
        used = self.manifest["settings"]
        seed = self.manifest["seed"]
        steps = "" if used["sampler"] == AUTOREGRESSIVE else f"{used['steps']} steps, "
        return f"{used['sampler']}, {steps}guidance {used['guidance']:g}, seed {seed}"


@dataclass
class Evaluation:
    """One evaluation while it is being made: figures by name, and the sections that show them."""

    run: Run
    name: str
    stage: EvalStage
    judges: Judges
    real: Set
    train: Set
    lpips: LocalLPIPS | None = None  # of reconstructions, where the recipe says where its weights are
    figures: dict[str, Known] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    samples: dict[str, Samples] = field(default_factory=dict)  # what single pictures add to figures, by name
    _drawn: dict[tuple[str, str], Set] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """Seed of every bootstrap."""
        return self.run.recipe.seed

    def note(self, name: str, interval: Interval, source: str) -> None:
        """Keep a figure."""
        self.figures[name] = Figure.of(interval, source)

    def note_each(
        self, metric: str, subject: str, of: Sequence[str | bytes], values: Sequence[float] | NDArray,
        weights: Sequence[float] = (),
    ) -> None:  # fmt: skip
        """Keep what every picture adds to the figure `subject.metric`, for comparisons with people and other reports.

        of: the captions that pictures were made for, or the bytes of those that were reconstructed.
        """
        keys, numbers = tuple(map(key_of, of)), tuple(map(float, values))
        self.samples[f"{subject}.{metric}"] = Samples(keys, numbers, tuple(map(float, weights)))

    def note_verdicts(self, subject: str, of: Sequence[str | bytes], scores: Sequence[Scores], part: str = "") -> None:
        """Keep, for every attribute of a scene, the share of each picture's verdicts that are right, and their number.

        part: what follows the attribute in the figures' names.
        """
        for attribute in scores[0]:
            asked = [(key, one[attribute]) for key, one in zip(of, scores, strict=True) if one[attribute]]
            if asked:
                keys, verdicts = zip(*asked, strict=True)
                shares, counts = [sum(one) / len(one) for one in verdicts], [len(one) for one in verdicts]
                self.note_each(f"scene.{attribute}{part}", subject, keys, shares, counts)

    @property
    def where(self) -> str:
        """Say which pictures judge: held out, or, where the data has no test split, those of the training."""
        return "held-out" if self.run.held_out_name() == "test" else "TRAINING (the data has no test split)"

    def generated(self) -> list[Generated]:
        """Return what the generate stages before this one made; a model's second set goes by its stage's name."""
        found: list[Generated] = []
        for name in self.run.recipe.order():
            if isinstance(self.run.recipe.stage[name], GenerateStage) and name in self.run.recipe.forerunners(
                self.name
            ):
                manifest = self.run.manifest(name)
                taken = {made.subject for made in found}
                subject = name if manifest["model"] in taken else manifest["model"]
                found.append(Generated(name, manifest["model"], subject, manifest, self.run.stage_folder(name)))
        return found

    def drawn(self, made: Generated, split: str) -> Set:
        """Return the pictures of a generate stage for one split. Raises ArtefactError as `read_generated` does."""
        if (key := (made.stage, split)) not in self._drawn:
            self._drawn[key] = read_generated(made, split)
        return self._drawn[key]

    @cached_property
    def held_out(self) -> PictureSet:
        """The real pictures that judge."""
        return self.real.titled(self.where, self.run.held_out_name())

    @cached_property
    def reference(self) -> PictureSet:
        """The training pictures that all sets are held against."""
        return self.read.at(range(min(REFERENCE, len(self.train))))

    @cached_property
    def read(self) -> PictureSet:
        """All training pictures that are read."""
        return self.train.titled("training pictures", "train")

    @cached_property
    def embedders(self) -> list[Opened]:
        """The judge of the recipe, and the embedders that the stage names. Raises PalimpsestError."""
        tower = self.judges.tower
        own = [] if tower is None else [Opened(tower, self.judges.text)]
        asked = self.stage.embedders
        return apart(own + (open_embedders(asked, self.reference, self.seed) if asked else []))

    @cached_property
    def features(self) -> FeatureCache:
        """Features of pictures, kept in the run by what made them."""
        return FeatureCache(self.run.folder / "cache" / "features")

    def guarded(self, name: str, measure: Callable[[], Interval], source: str) -> Known:
        """Keep a figure, or why it cannot be had."""
        self.figures[name] = attempted(measure, source)
        return self.figures[name]


def read_set(run: Run, split: str, count: int) -> Set:
    """Read the first pictures of a split with captions and labels."""
    batch = some(run.open(split), image_and_caption(run.recipe.size), count, seed=run.recipe.seed)
    return Set(quantise(batch["image"]), batch["caption"], batch["label"])


def read_generated(made: Generated, split: str) -> Set:
    """Read what a generate stage drew for one split.

    Raises ArtefactError that names pictures which are missing or unreadable: a figure over the rest would hide them.
    """
    folder, count = made.folder / split, made.manifest["counts"][split]
    paths = [folder / f"{stem(number)}.png" for number in range(count)]
    if missing := [one.name for path in paths for one in (path, path.with_suffix(".json")) if not one.is_file()]:
        raise ArtefactError(f"{folder} lacks {len(missing)} of its {2 * count} files: {named(missing)}. {_again(made)}")
    told, pictures, unreadable = [read_json(path.with_suffix(".json")) for path in paths], list[NDArray](), list[str]()
    for path in paths:
        try:
            pictures.append(np.asarray(Image.open(path).convert("RGB")))
        except (OSError, SyntaxError, ValueError):
            unreadable.append(path.name)
    if unreadable:
        raise ArtefactError(f"{folder}: no pictures are {named(unreadable)}. {_again(made)}")
    return Set(
        np.stack(pictures),
        [one["prompt"] for one in told],
        [one["label"] for one in told],
        [f"{split}/{path.name}" for path in paths],
        [bool(one.get(NOT_FINITE)) for one in told],
    )


def _again(made: Generated) -> str:
    return f"Delete {made.folder} and run stage {made.stage} again."
