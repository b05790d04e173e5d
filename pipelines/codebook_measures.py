"""The codebook of a VQ-VAE over the whole held-out split: how its codes are used, level by level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from eval.blocks import Column, Row, Table, Usage
from eval.figure import Figure, missing
from eval.interval import jackknife
from eval.reconstruction import (
    SUBSAMPLE,
    codebook,
    count_codes,
    entropies_without,
    perplexity_interval,
    top_share_interval,
)
from pipelines.data.decode import image_and_caption
from pipelines.data.stream import once
from pipelines.hardware import device_of
from pipelines.measures import Evaluation
from pipelines.progress import track
from tokenizer.vqvae import VQVAE

BATCH = 128
FIGURES = ("usage", "perplexity", "dead_codes", "top_share", "usage_at_10k")
COLUMNS = (
    "codebook",
    Column("used", "share", "higher"),
    Column("perplexity", "plain", "higher"),
    "dead",
    Column("commonest", "share"),
    Column("used in 10,000 tokens", "share", "higher"),
)
Codes = NDArray[np.int32]  # (n, L): the codes of each picture


def codebook_use(e: Evaluation, stage: str, model: VQVAE) -> tuple[list[Row], list[Usage]]:
    """Note the use of the codebook of a VQ-VAE, as a whole and by level, and its rates; return rows and charts."""
    codes = held_out_codes(e, stage, model)
    levels = by_level(codes, model.config.vocabularies)
    source = f"{stage} {e.run.manifest(stage)['hash'][:12]}, {codes.shape[1]} codes of each of {len(codes)} {e.where}"
    _rates(e, stage, levels, source)
    parts = {stage: (codes, model.config.codes)}
    if len(levels) > 1:
        parts |= {f"{stage}.level{number}": level for number, level in enumerate(levels, 1)}
    rows = []
    for name, (held, many) in parts.items():
        _note(e, name, held, many, f"{source} pictures")
        rows.append(Row([name, *(e.figures[f"{name}.{figure}"] for figure in FIGURES)]))
    shown = list(parts.items())[1:] or list(parts.items())
    return rows, [Usage(f"{name}: use of the codes", count_codes(held, many).tolist()) for name, (held, many) in shown]


def table(rows: list[Row]) -> Table:
    """The codebooks of all stages under one another."""
    note = (
        "Over every picture of the split. Counts of codes have no interval: they belong to these pictures, and more "
        "pictures would hold more codes, which is why usage is given for 10,000 tokens, too. The intervals of the "
        "perplexity (jackknife) and of the commonest code are over pictures, whose codes hang together."
    )
    return Table("Codebooks", COLUMNS, rows, note)


@torch.no_grad()
def held_out_codes(e: Evaluation, stage: str, model: VQVAE) -> Codes:
    """Encode every picture of the held-out split: (n, L)."""
    split = e.run.held_out()
    batches = once(split, image_and_caption(e.run.recipe.size), batch=BATCH)
    device = device_of(model)
    return np.concatenate(
        [
            model.codes(batch["image"].to(device)).flatten(1).int().cpu().numpy()
            for batch in track(batches, f"{stage} codes", len(split), weight=BATCH)
        ]
    )


def by_level(codes: Codes, vocabularies: Sequence[int]) -> list[tuple[Codes, int]]:
    """The codes (n, L) of each grid, counted from 0 within its own range, (n, L_i), and the size of that range."""
    starts = np.cumsum([0, *vocabularies])
    inside = [(codes >= start) & (codes < end) for start, end in pairwise(starts)]
    parts = [codes[held].reshape(len(codes), -1) - start for held, start in zip(inside, starts, strict=False)]
    return list(zip(parts, vocabularies, strict=True))


def _rates(e: Evaluation, stage: str, levels: list[tuple[Codes, int]], source: str) -> None:
    """Note bits per pixel, with codes of equal length and at the entropy of each level."""
    pixels = e.run.recipe.size**2
    flat = sum(held.shape[1] * math.log2(size) for held, size in levels) / pixels
    pictures = len(levels[0][0])
    e.figures[f"{stage}.bits_per_pixel"] = Figure(flat, pictures, source=f"{source}; the same for every picture")
    per_nat = [held.shape[1] / pixels / math.log(2) for held, _ in levels]
    nats = [math.log(codebook(count_codes(*level)).perplexity) for level in levels]
    without = [entropies_without(*level) for level in levels]
    rate = float(np.dot(per_nat, nats))
    e.note(f"{stage}.bits_per_pixel[entropy]", jackknife(rate, np.asarray(per_nat) @ without), f"{source}; jackknife")


def _note(e: Evaluation, name: str, codes: Codes, size: int, source: str) -> None:
    book = codebook(count_codes(codes, size))
    count = f"{source}; a count over all tokens"
    e.figures[f"{name}.usage"] = Figure(book.usage, book.tokens, source=count)
    e.figures[f"{name}.dead_codes"] = Figure(book.dead, book.tokens, source=f"{count}, of {size} codes")
    e.note(f"{name}.perplexity", perplexity_interval(codes, size), f"{source}; jackknife over pictures")
    e.note(f"{name}.top_share", top_share_interval(codes, size), f"{source}; a mean over pictures")
    if math.isnan(book.usage_at_subsample):
        few = f"{SUBSAMPLE:,} tokens are drawn, and the {len(codes)} pictures hold {book.tokens:,}"
        e.figures[f"{name}.usage_at_10k"] = missing(few)
    else:
        source = f"{source}; expectation over draws of {SUBSAMPLE:,} of the {book.tokens:,} tokens"
        e.figures[f"{name}.usage_at_10k"] = Figure(book.usage_at_subsample, book.tokens, source=source)
