"""What all measures share: the pictures that are judged, and the evaluation that collects figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.blocks import (
    Figure,
    Known,
    Section,
    attempted,
)
from eval.features import quantise
from eval.interval import Interval
from pipelines.artefact import read_json
from pipelines.data.decode import image_and_caption
from pipelines.data.stream import some
from pipelines.judged_config import EvalStage, GenerateStage
from pipelines.judging import Judges, Pictures
from pipelines.runs import Run
from pipelines.sampling_options import AUTOREGRESSIVE

PER_PROMPT = "per_prompt.json"  # beside report.json: {metric: {subject: {caption: value}}}, higher is better


@dataclass
class Set:
    """Pictures with what was asked for."""

    pictures: Pictures
    captions: list[str]
    labels: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def labelled(self) -> bool:
        """Whether the labels are exact scenes."""
        return all("objects" in label for label in self.labels)


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
    figures: dict[str, Known] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    per_prompt: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # metric, subject, caption

    @property
    def seed(self) -> int:
        """Seed of every bootstrap."""
        return self.run.recipe.seed

    def note(self, name: str, interval: Interval, source: str) -> None:
        """Keep a figure."""
        self.figures[name] = Figure.of(interval, source)

    def note_each(self, metric: str, subject: str, captions: Sequence[str], values: Sequence[float]) -> None:
        """Keep what a metric says of every picture, for a comparison with people; of equal captions the first."""
        kept = self.per_prompt.setdefault(metric, {}).setdefault(subject, {})
        for caption, value in zip(captions, values, strict=True):
            kept.setdefault(caption, float(value))

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

    def guarded(self, name: str, measure: Callable[[], Interval], source: str) -> Known:
        """Keep a figure, or why it cannot be had."""
        self.figures[name] = attempted(measure, source)
        return self.figures[name]


def read_set(run: Run, split: str, count: int) -> Set:
    """Read the first pictures of a split with captions and labels."""
    batch = some(run.open(split), image_and_caption(run.recipe.size), count, seed=run.recipe.seed)
    return Set(quantise(batch["image"]), batch["caption"], batch["label"])


def read_generated(folder: Path) -> Set:
    """Read what a generate stage wrote for one split."""
    sidecars = sorted(folder.glob("*.json"))
    made = [read_json(path) for path in sidecars]
    pictures = np.stack([np.asarray(Image.open(path.with_suffix(".png")).convert("RGB")) for path in sidecars])
    return Set(pictures, [m["prompt"] for m in made], [m["label"] for m in made])
