"""Controls with a known answer, by which a rater who does not look is found.

right / wrong    a real picture against that of another prompt: relevance      (needs real pictures)
clean / corrupt  a picture against the same, strongly spoiled: defects, looks, preference
same             a picture against itself: a tie
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from eval.human.study import Study

GoldKind = Literal["right", "wrong", "clean", "corrupt", "same"]
GOLD = "gold:"  # what stands in place of a model in the table of votes
GOLD_OTHER = {"right": "gold:other", "clean": "gold:spoiled", "same": "gold:itself"}  # in place of the second model
LOOKS = ("defects", "aesthetics", "preference")
ASKED: dict[str, tuple[str, ...] | None] = {  # the criteria whose answer is known; None is all
    "right": ("relevance",),
    "wrong": ("relevance",),
    "clean": LOOKS,
    "corrupt": LOOKS,
    "same": None,
}
ANSWERS = {"right": ("a",), "clean": ("a",), "same": ("tie", "both_bad"), "wrong": ("1", "2"), "corrupt": ("1", "2")}
TILES = 8  # tiles a side that are shuffled


def gold_kinds(study: Study, *, truth: bool) -> list[GoldKind]:
    """The kinds of controls that a study can have."""
    possible: list[GoldKind] = ["right", "clean", "same"] if study.mode == "pairwise" else ["wrong", "corrupt"]
    kept: list[GoldKind] = [kind for kind in possible if truth or kind not in ("right", "wrong")]
    return [kind for kind in kept if any(has_answer(GOLD + kind, criterion) for criterion in study.criteria)]


def has_answer(model_a: str, criterion: str) -> bool:
    """Whether the answer to a control on this criterion is known."""
    if not model_a.startswith(GOLD):
        return False
    asked = ASKED[model_a.removeprefix(GOLD)]
    return asked is None or criterion in asked


def as_expected(model_a: str, choice: str) -> bool:
    """Whether a control was answered as it should be."""
    return choice in ANSWERS[model_a.removeprefix(GOLD)]


def corrupted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture with a third of its tiles shuffled and strong noise: nobody who looks prefers it."""
    pixels = np.asarray(image.convert("RGB")).astype(np.float64)
    height, width = pixels.shape[:2]
    tall, wide = max(height // TILES, 1), max(width // TILES, 1)
    corners = [(y, x) for y in range(0, height - tall + 1, tall) for x in range(0, width - wide + 1, wide)]
    chosen = [corners[i] for i in rng.permutation(len(corners))[: max(2, len(corners) // 3)]]
    before = [pixels[y : y + tall, x : x + wide].copy() for y, x in chosen]
    for (y, x), tile in zip(chosen, _turned(before), strict=True):
        pixels[y : y + tall, x : x + wide] = tile
    noisy = pixels + rng.normal(0, 48, pixels.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _turned(tiles: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Every tile in the place of the next, upside down."""
    return [tile[::-1, ::-1] for tile in [*tiles[1:], *tiles[:1]]]
