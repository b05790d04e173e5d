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
from pipelines.scoring.sets import PictureSet
from tokenizer.embed import TextEncoder, load_text_encoder

KINDS = {
    "inception": "FILE: Inception 2015-12-05, the only one whose distance is called FID",
    "inception-torchvision": "FILE: torchvision's Inception",
    "openclip": "FOLDER: open_clip_config.json and safetensors; also gives the CLIP score",
    "dinov2": "FOLDER: config.json and model.safetensors of transformers",
    "judge": "FOLDER: a stage of kind judge of a run; also gives a CLIP score of its own",
    "random-conv": "random convolutions; without a file",
    "pixels-pca": "leading directions of the reference's pixels; without a file",
}
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

    Raises PalimpsestError for unknown kinds and for a path that is missing or not wanted, ValueError or OSError where
    it holds something else.
    """
    return [_open(one, reference, seed) for one in asked or USUAL]


def _open(asked: str, reference: PictureSet | None, seed: int) -> Opened:
    kind, _, path = asked.partition("=")
    if kind not in KINDS:
        known = "\n".join(f"  {name}{' = ' if ':' in about else '  '}{about}" for name, about in KINDS.items())
        raise PalimpsestError(f"There is no embedder {kind!r}. There are\n{known}")
    wanted = KINDS[kind].partition(":")[0] if ":" in KINDS[kind] else ""
    if bool(path) != bool(wanted):
        raise PalimpsestError(f"{asked}: expected {kind}{'=' + wanted if wanted else ''}.")
    where, on = Path(path), str(device())
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
