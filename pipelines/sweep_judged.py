"""What every row of a sweep over pictures is measured by, and against; the same draws and captions serve all rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.clip_score import clip_score, cosines, shuffled_floor
from eval.features import Tower, feature_key
from eval.frechet import frechet_interval, rank_note
from eval.frechet_infinity import frechet_infinity
from eval.interval import Interval, mean_interval
from eval.kernel import kid_interval
from eval.prdc import prdc_intervals
from eval.sliced import mind_interval
from eval.text import sequence_entropy
from pipelines.judging import Judges, Pictures, scene_scores, scored
from pipelines.kept_weights import USED, Weights
from pipelines.measures import Set
from pipelines.painter import Painted, Painter, load_painter
from pipelines.provenance import machine
from pipelines.runs import Run
from pipelines.sampling import batches
from pipelines.sampling_options import Settings
from pipelines.scoring.distances import LARGER, NEIGHBOURS
from pipelines.sweep_rows import Setting, plain_interval, timed

BATCH = 50
ATTRIBUTES = ("colour", "shape", "relation")
BLOCKS = 10
REAL, SHUFFLED, USUAL, STEPS = "real", "captions shuffled", "usual", "checkpoints"  # groups, and a curve of the first
DISTANCES = {"kd", "fd", "precision", "recall"}
SAME = "the data has no test split: the real pictures are in the reference, and no distance to it says anything"
Features = NDArray[np.float32]  # (n, d)


@dataclass
class Figures:
    """What a row was measured by.

    figures: intervals; keys: of those that have one; notes: remarks, or why one is missing; each: means of prompts.
    """

    figures: dict[str, Interval] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    each: dict[str, list[float]] = field(default_factory=dict)
    line: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, measure: Callable[[], Interval]) -> None:
        """Keep a figure, or why it cannot be had: too few pictures must not cost the row."""
        try:
            self.figures[name] = measure()
        except ValueError as error:
            self.notes[name] = str(error)

    def only(self, *names: str) -> Figures:
        """These alone, with their keys and remarks."""
        figures = {name: value for name, value in self.figures.items() if name in names}
        keys, notes = ({name: part[name] for name in names if name in part} for part in (self.keys, self.notes))
        return Figures(figures, keys, notes)

    def plain(self) -> dict[str, Any]:
        """As plain values; what is empty is left out."""
        parts = {"keys": self.keys, "notes": self.notes, "each": self.each, "line": self.line}
        kept = {name: part for name, part in parts.items() if part}
        return {"figures": {name: plain_interval(value) for name, value in self.figures.items()}, **kept}


@dataclass
class Judged:
    """What rows are measured against, made once. reference: features (m, d) of training pictures."""

    run: Run
    judges: Judges
    real: Set
    reference: Features
    seed: int
    painters: dict[tuple[str, Weights], Painter] = field(default_factory=dict)
    warm: set[str] = field(default_factory=set)  # models that have drawn in this process

    @cached_property
    def texts(self) -> NDArray[np.float64]:
        """The judge's features (n, d) of the captions."""
        return self.judges.caption_features(self.real.captions)

    @property
    def tower(self) -> Tower:
        """What makes the features."""
        assert self.judges.tower is not None  # a sweep needs a judge
        return self.judges.tower

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Draw the pictures of one setting and judge them."""
        if setting.group == REAL:
            return {**setting.plain, "evaluations": 0, "scale": 1.0, **self._real(setting.curve == SHUFFLED).plain()}
        painter = self._painter(setting)
        painted, seconds = self._paint(setting, painter)
        found = self.judge(painted.pictures, mind_too=setting.group == STEPS, line=setting.group == USUAL)
        found.figures["seconds"] = seconds
        if painted.codes is not None:
            found.figures["code_entropy"] = self.entropy(painted.codes.tolist())
        row = {**setting.plain, "evaluations": painted.evaluations, "scale": setting.scale}
        return {**row, "profile_error": painter.error, "machine": machine(), **found.plain()}

    def entropy(self, sequences: Sequence[Sequence[Any]]) -> Interval:
        """Entropy in nats of what stands within a sequence, a mean over those of all captions."""
        return mean_interval([sequence_entropy(one) for one in sequences], self.real.captions, seed=self.seed)

    def judge(self, made: Pictures, *, mind_too: bool = False, line: bool = False) -> Figures:
        """Judge pictures (n, H, W, 3) of the captions of `real`.

        mind_too: also by MIND; line: also by the Fréchet distance of infinitely many.
        """
        features, found = self.judges.features(made), Figures()
        sets = self._mixed(features)
        self._distances(found, *sets)
        if mind_too:
            sizes = len(features), len(self.reference)
            blocks = min(BLOCKS, min(sizes) // 2)
            self._keyed(found, "mind", sizes, lambda: mind_interval(*sets, blocks=blocks))
        if line:
            self._line(found, *sets)
        self._as_asked(found, features, made)
        return found

    def _mixed(self, features: Features) -> tuple[Features, Features]:
        """Features (n, d) and the reference (m, d), both in an order that the seed draws, for all distances of a row.

        Parts of a set are taken as they come, and pictures in order may mean kinds in order.
        """
        rng = np.random.default_rng(self.seed)
        first, second = (rows[rng.permutation(len(rows))] for rows in (features, self.reference))
        return first, second

    def _as_asked(self, found: Figures, features: Features, made: Pictures) -> None:
        """How pictures (n, H, W, 3) and their features (n, d) agree with the captions of `real`, each with its own."""
        found.add("clip_score", lambda: clip_score(features, self.texts, self.real.captions))
        found.keys["clip_score"] = f"clip_score[{self.tower.name}:{self.tower.sha256[:8]}|n={len(features)}]"
        if "clip_score" in found.figures:
            found.each["clip_score"] = self._by_prompt(cosines(features, self.texts).tolist())
        if self.real.labelled and self.judges.scene:
            scores = scene_scores(self.judges, made, self.real.labels)
            scenes = scored(scores, self.real.labels)
            found.figures |= {name: scenes[name] for name in ATTRIBUTES if name in scenes}
            right = [[verdict for verdicts in one.values() for verdict in verdicts] for one in scores]
            found.each["scene"] = self._by_prompt([sum(one) / len(one) for one in right])

    def _real(self, shuffled: bool) -> Figures:
        """What real pictures have with their own captions, or with those of others.

        Pictures of the training have no distance to themselves.
        """
        found = self.judge(self.real.pictures)
        if shuffled:
            features = self.judges.features(self.real.pictures)
            key, found = found.keys["clip_score"], found.only("fd", "kd")
            found.keys["clip_score"] = key
            found.add("clip_score", lambda: shuffled_floor(features, self.texts, self.real.captions, seed=self.seed))
        if not held_out(self.run):
            for name in found.keys.keys() & DISTANCES:
                found.figures.pop(name, None)
                found.notes[name] = SAME
        return found

    def _distances(self, found: Figures, features: Features, reference: Features) -> None:
        n, m = len(features), len(reference)
        same = min(n, m)
        self._keyed(found, "kd", (n, m), lambda: kid_interval(features, reference, blocks=min(BLOCKS, same // 2)))
        self._keyed(found, "fd", (n, m), lambda: frechet_interval(features, reference, blocks=BLOCKS))
        if "fd" in found.figures and (rank := rank_note(n, m, self.tower.dim)):
            found.notes["fd"] = rank
        overlap = cache(lambda: prdc_intervals(reference[:same], features[:same], NEIGHBOURS))
        for name in ("precision", "recall"):  # of equal sizes of both sets: they depend on them
            self._keyed(found, name, (same, same), lambda name=name: overlap()[name], f"{name}-k{NEIGHBOURS}")

    def _keyed(
        self, found: Figures, name: str, sizes: tuple[int, int], measure: Callable[[], Interval], metric: str = ""
    ) -> None:
        """Keep a figure that depends on the sizes of both sets, with its key."""
        found.add(name, measure)
        n, m = sizes
        found.keys[name] = str(feature_key(metric or name, self.tower, generated=n, reference=m, split="train"))

    def _line(self, found: Figures, features: Features, reference: Features) -> None:
        """The Fréchet distance at 15 sizes of both sets, and the line through them."""
        few, wanted = min(len(features), len(reference)), LARGER * self.tower.dim
        if few < wanted:
            found.notes["line"] = (
                f"{few} pictures for {self.tower.dim} dimensions: the law in 1 / n holds from {wanted} on; raise `line`"
            )
            return
        try:
            fit = frechet_infinity(features, reference, seed=self.seed)
        except ValueError as error:
            found.notes["line"] = str(error)
            return
        found.line = {"value": fit.value, "se": fit.se, "r2": fit.r2, "bias": fit.bias, "points": fit.points}

    def _painter(self, setting: Setting) -> Painter:
        """The model of a setting; of weights that differ from row to row only the last ones stay in memory."""
        which = setting.model, setting.weights
        if which not in self.painters:
            if setting.weights != USED:
                self.painters.clear()
            self.painters[which] = load_painter(self.run, *which)
        return self.painters[which]

    def _paint(self, setting: Setting, painter: Painter) -> tuple[Painted, Interval]:
        """Draw one picture for each caption; the seconds are those of a picture, a mean over batches.

        The first batch that a model draws in this process is drawn twice, since the first time takes longer.
        """
        captions, settings = self.real.captions, setting.settings
        if setting.model not in self.warm:
            painter.paint(*next(batches(captions[:BATCH], self.seed, BATCH)), settings)
            self.warm.add(setting.model)
        parts, taken = list[Painted](), list[float]()
        for prompts, draws in batches(captions, self.seed, BATCH):
            begun = time.perf_counter()
            parts.append(painter.paint(prompts, draws, settings))
            taken.append(time.perf_counter() - begun)
        calls = parts[0].evaluations
        if any(part.evaluations != calls for part in parts):
            calls = round(sum(part.evaluations * len(part.pictures) for part in parts) / len(captions), 2)
        codes = [part.codes for part in parts if part.codes is not None]
        pictures = np.concatenate([part.pictures for part in parts])
        return Painted(pictures, calls, np.concatenate(codes) if codes else None), timed(
            taken, [len(part.pictures) for part in parts]
        )

    def _by_prompt(self, values: Sequence[float]) -> list[float]:
        """Means over the pictures of a prompt, in order of first appearance, which is the same in all rows."""
        groups: dict[str, list[float]] = {}
        for caption, value in zip(self.real.captions, values, strict=True):
            groups.setdefault(caption, []).append(value)
        return [round(float(np.mean(group)), 6) for group in groups.values()]


def settings_of_real(run: Run) -> list[Setting]:
    """The rows between which those of models lie."""
    plain = Settings(sampler=REAL, steps=1, guidance=1.0)
    return [Setting(REAL, REAL, curve, plain) for curve in (f"{where(run)} pictures", SHUFFLED)]


def held_out(run: Run) -> bool:
    """Whether the pictures and captions that judge are held out."""
    return run.held_out_name() == "test"


def where(run: Run) -> str:
    """Say which pictures and captions judge: held out, or, where the data has no test split, those of the training."""
    return "held-out" if held_out(run) else "TRAINING (the data has no test split)"
