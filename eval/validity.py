"""Does an embedder see what people see? Distances must rise as pictures are damaged, and as whole kinds go missing."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import stats

from eval.frechet import frechet_distance
from eval.interval import Interval
from eval.resize import resized

Picture = NDArray[np.uint8]  # (H, W, 3)
Embed = Callable[[Sequence[Picture]], NDArray[np.float32]]  # pictures -> (n, d)
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_DROPPED = 0.75  # share of the pictures that the strongest loss of kinds takes away
SEEN = 16  # pixels of a side, where the kinds of pictures are told apart


def blurred(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    """Gaussian blur of a deviation up to a sixteenth of the shorter side."""
    radius = strength * min(picture.shape[:2]) / 16
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def noisy(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    """Gaussian noise of a deviation up to 64 of 255."""
    return np.clip(picture + rng.normal(0, 64 * strength, picture.shape) + 0.5, 0, 255).astype(np.uint8)


def compressed(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    """JPEG of a quality from 95 down to 5; at strength 0 none."""
    if not strength:
        return picture
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=round(95 - 90 * strength))
    return np.asarray(Image.open(buffer).convert("RGB"))


DAMAGES: Mapping[str, Callable[[Picture, float, np.random.Generator], Picture]] = {
    "blur": blurred,
    "noise": noisy,
    "JPEG": compressed,
}
DROPPED = "lost kinds"


@dataclass(frozen=True)
class Dose:
    """Distances of n pictures at rising strengths of one damage."""

    damage: str
    strengths: tuple[float, ...]
    distances: tuple[float, ...]
    n: int

    @property
    def rises(self) -> bool:
        """Whether every step of damage makes the distance larger."""
        return all(b > a for a, b in zip(self.distances, self.distances[1:], strict=False))

    @property
    def rank(self) -> float:
        """Kendall's tau of distances and strengths."""
        found: Any = stats.kendalltau(self.strengths, self.distances)
        return float(found.statistic)


def doses(pictures: Sequence[Picture], embed: Embed, *, seed: int = 0) -> list[Dose]:
    """Fréchet distances between one half of real pictures and the other, damaged in four ways.

    Every distance is of equal sizes: a half against as many of the other as the strongest loss of kinds leaves. Raises
    ValueError where there are fewer than 16 pictures.
    """
    if len(pictures) < 16:
        raise ValueError(f"{len(pictures)} pictures are too few to judge an embedder by, at least 16 are needed")
    order = np.random.default_rng(seed).permutation(len(pictures))
    half = len(order) // 2
    clean, other = ([pictures[i] for i in part] for part in (order[:half], order[half:]))
    reference, kept = embed(clean), round(len(other) * (1 - MOST_DROPPED))
    made = []
    for name, damage in DAMAGES.items():
        found = []
        for strength in STRENGTHS:
            rng = np.random.default_rng(seed)
            found.append(frechet_distance(embed([damage(p, strength, rng) for p in other[:kept]]), reference))
        made.append(Dose(name, STRENGTHS, tuple(found), kept))
    features, kinds = embed(other), kind_order(other)
    lost = []
    for strength in STRENGTHS:
        left = kinds[: len(kinds) - round(strength * MOST_DROPPED * len(kinds))]
        drawn = np.random.default_rng(seed).permutation(left)[:kept]
        lost.append(frechet_distance(features[drawn], reference))
    return [*made, Dose(DROPPED, STRENGTHS, tuple(lost), kept)]


def kind_order(pictures: Sequence[Picture]) -> NDArray[np.int64]:
    """Pictures by where they lie along the direction in which small copies of them differ most."""
    small = np.stack([resized(picture[None], SEEN, "clean")[0].ravel() for picture in pictures]).astype(np.float64)
    direction = np.linalg.svd(small - small.mean(0), full_matrices=False)[2][0]
    direction *= np.sign(direction[np.abs(direction).argmax()])
    return np.argsort(small @ direction, kind="stable")


def share_rising(found: Sequence[Dose]) -> Interval:
    """Share of the steps of damage that make the distance larger, without an interval: the steps share pictures."""
    steps = [b > a for dose in found for a, b in zip(dose.distances, dose.distances[1:], strict=False)]
    return Interval(float(np.mean(steps)), -np.inf, np.inf, len(steps))
