"""What the training of a VQ-VAE says of its codebook: whether data can start it, how it is used, what helps it."""

from __future__ import annotations

import math
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from eval.reconstruction import Codebook, codebook, count_codes
from pipelines.errors import PalimpsestError
from tokenizer.quantize import (
    FSQConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualConfig,
    SimVQConfig,
    VQConfig,
)
from tokenizer.vqvae import VQVAEConfig

COLLAPSED = 0.03  # perplexity as a share of the codes below which a codebook is about to be lost


def check_start(config: VQVAEConfig, pictures: int, height: int, width: int | None = None) -> None:
    """Raise PalimpsestError where training pictures of a size have fewer vectors than a codebook starts from.

    Each level has to have a vector for each of its own codes; a coarser one may read pictures twice for the others.
    """
    names, there = ("top.quantizer", "quantizer")[-len(config.levels) :], 0
    sides = (height, height if width is None else width)
    size = f"{height}" if sides[0] == sides[1] else f"{height}x{width}"
    for above, (name, level) in enumerate(zip(names, config.levels, strict=True)):
        if not level.started:
            continue
        there = pictures * math.prod(side * 2**above // config.multiple for side in sides)  # more from level to level
        if there < level.started:
            raise PalimpsestError(
                f"{_have(pictures, size, there)}, too few to start {level.started:,} codes from: give the {name} at "
                f"most {there:,} codes, or more data."
            )
    if config.started_codes and there < config.initial_vectors:
        raise PalimpsestError(
            f"{_have(pictures, size, there)}, fewer than model.initial_vectors = {config.initial_vectors:,}: set it to "
            f"{there} or less."
        )


def _have(pictures: int, size: str, vectors: int) -> str:
    return f"{pictures:,} training pictures of {size} pixels have {vectors:,} vectors"


def worst_grid(codes: NDArray[np.integer], config: VQVAEConfig) -> tuple[int, Codebook]:
    """Return the grid of codes (B, L) whose perplexity is the lowest share of what it could be, and how it is used.

    Grids count from 0, in the order of their codes, each of which has a range of its own.
    """
    sizes = config.vocabularies
    parts = np.split(np.asarray(count_codes(codes, config.codes)), np.cumsum(sizes)[:-1])
    found = list(enumerate(map(codebook, parts)))
    return min(found, key=lambda one: one[1].perplexity / min(sizes[one[0]], one[1].tokens))


def warning_of(config: VQVAEConfig, grid: int, used: Codebook) -> str:
    """Return what to say of a codebook that collapses, with a remedy; nothing where it does not."""
    grids, size = len(config.vocabularies), config.vocabularies[grid]
    if used.perplexity >= max(1.5, COLLAPSED * min(size, used.tokens)):
        return ""
    which = "The codebook" if grids == 1 else f"Codebook {grid + 1} of {grids}"
    return (
        f"{which} collapses: {size - used.dead} of {size} codes occur in {used.tokens} tokens, as if there were "
        f"{used.perplexity:.0f}. {_remedy(config.grid_levels[grid])}"
    )


def _remedy(config: QuantizerConfig) -> str:
    match config:
        case VQConfig() | ResidualConfig():
            return "Lower the learning rate, revive more often (model.revive_every), or take another quantizer."
        case LFQConfig():
            return "Raise its entropy_weight, or lower the learning rate."
        case FSQConfig() | SimVQConfig():
            return "Lower the learning rate."
        case _:
            assert_never(config)
