"""Embedders by name, as the command line asks for them; all weights are read from this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.features import Embedder, PixelsPCA, RandomConv
from eval.resize import resized
from eval.towers import dinov2, inception, openclip
from pipelines.errors import PalimpsestError
from pipelines.judging import judge_tower
from pipelines.models import device
from pipelines.scoring.kinds import missing_weights, parsed
from pipelines.scoring.sets import PictureSet
from tokenizer.embed import TextEncoder, load_text_encoder

USUAL = ("random-conv", "pixels-pca")  # what needs no weights
SIDE = 64  # pixels of a side that those two see
DIRECTIONS, FITTED = 64, 1000  # of pixels-pca, and the reference pictures that it is fitted to


@dataclass(frozen=True)
class Opened:
    """An embedder, and its text side where it has one."""

    embedder: Embedder
    text: TextEncoder | None = None


def open_embedders(asked: Sequence[str], reference: PictureSet | None, seed: int) -> list[Opened]:
    """Open embedders, `KIND` or `KIND=PATH` each; without any the usual ones.

    Raises PalimpsestError for unknown kinds, for a path that is missing, empty or not wanted, and for one embedder that
    is named twice, ValueError or OSError where a path holds something else.
    """
    return apart([_open(one, reference, seed) for one in asked or USUAL])


def apart(opened: Sequence[Opened]) -> list[Opened]:
    """Return embedders of which no two are the same. Raises PalimpsestError."""
    known = set[tuple[str, str, str]]()
    for one in opened:
        embedder = one.embedder
        if (identity := (embedder.name, embedder.sha256, embedder.resize)) in known:
            raise PalimpsestError(f"The embedder {embedder.name}:{embedder.sha256[:8]} is named twice: name it once.")
        known.add(identity)
    return list(opened)


def _open(asked: str, reference: PictureSet | None, seed: int) -> Opened:
    kind, path = parsed(asked)
    if problem := missing_weights(asked):
        raise PalimpsestError(f"{asked}: {problem}.")
    where, on = path or Path(), str(device())
    match kind:
        case "inception":
            return Opened(inception(where, device=on))
        case "inception-torchvision":
            return Opened(inception(where, "torchvision", device=on))
        case "dinov2":
            return Opened(dinov2(where, device=on))
        case "openclip":
            return Opened(openclip(where, device=on), load_text_encoder(where).to(device()))
        case "judge":
            return Opened(judge_tower(where), load_text_encoder(where).to(device()))
        case "random-conv":
            return Opened(RandomConv(size=SIDE, how="clean"))
        case _:
            return Opened(_pixels(reference, seed))


def _pixels(reference: PictureSet | None, seed: int) -> PixelsPCA:
    if reference is None:
        raise PalimpsestError("pixels-pca is fitted to the pictures of the reference: give them, or another embedder.")
    some = reference.some(FITTED, seed)
    images = np.concatenate([resized(picture[None], SIDE, "clean") for picture in some]).round().astype(np.uint8)
    return PixelsPCA.fit(images, dim=min(DIRECTIONS, len(images) - 1), size=SIDE, how="clean")
