"""Block by block, from left to right: texts of any length, each block by any of the samplers."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from backbone.noise import Randomness
from discrete.attend import check_blocks
from discrete.predict import Denoise, Sharpen, subs
from discrete.sample.draw import unmade
from discrete.sample.reveal import cached
from discrete.schedule import Schedule
from discrete.text_model import TextTransformer


class Sampler(Protocol):
    """What fills in x: every sampler on a grid of times is one."""

    def __call__(
        self,
        denoise: Denoise,
        schedule: Schedule,
        x: Tensor,
        times: Tensor,
        *,
        mask_id: int,
        generator: Randomness,
        known: Tensor | None = None,
    ) -> Tensor:
        """x: (B, L) -> (B, L), the known tokens as they were."""
        ...


def block(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    mask_id: int,
    generator: Randomness,
    known: Tensor | None = None,
    sampler: Sampler,
    size: int,
    window: int | None = None,
) -> Tensor:
    """Fill in one block after the other with a bidirectional model; behind a block it sees what is known, and masks.

    x: (B, L) int64, L a multiple of size; window: the longest sequence that the model reads, none where it reads all of
    L: it holds the block and as much as fits before it, or, at the start of the text, masks behind it. Calls the
    denoiser for every block as often as the sampler does. For models without time conditioning, to which no time stands
    for masks behind a block. Returns (B, L). Raises ValueError where size divides neither L nor fits the window.
    """
    check_blocks(x.shape[1], size)
    if window is not None and window < size:
        raise ValueError(f"blocks of {size} tokens do not fit a window of {window}: take smaller blocks")
    for start in range(0, x.shape[1], size):
        stop = start + size
        first = 0 if window is None else max(0, stop - window)
        seen = slice(first, x.shape[1] if window is None else first + window)
        piece = x[:, seen]
        fixed = torch.ones_like(piece, dtype=torch.bool)
        fixed[:, start - first : stop - first] = False
        if known is not None:
            fixed |= known[:, seen]
        if not bool(unmade(piece, fixed, mask_id).any()):
            continue  # nothing is open here
        filled = sampler(denoise, schedule, piece, times, mask_id=mask_id, generator=generator, known=fixed)
        x = torch.cat([x[:, :first], filled, x[:, first + piece.shape[1] :]], 1)
    return x


@torch.no_grad()
def block_causal(
    network: TextTransformer,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness,
    known: Tensor | None = None,
    sampler: Sampler,
    size: int,
    sharpen: Sharpen | None = None,
) -> Tensor:
    """Fill in one block after the other with a model that was trained so (`discrete.objective.Blocks`, BD3-LM).

    The keys and values of finished blocks are remembered: a call of the network costs one block, however long the text,
    and gives what reading the whole text anew would give. x: (B, L) int64, L a multiple of size, of any length;
    sharpen: logits -> logits, such as temperature or top-p. Returns (B, L). Raises ValueError for the sampler `cached`,
    which asks about some of the sequences only, while the memories are of all.
    """
    check_blocks(x.shape[1], size)
    if getattr(sampler, "func", sampler) is cached:
        raise ValueError("block_causal remembers blocks on its own: take the sampler ancestral in place of cached")
    memory, t = network.memories(), torch.zeros((), device=x.device)

    def read(piece: Tensor, *, keep: bool) -> Tensor:
        for one in memory:
            one.keep = keep
        return network.logits(piece, t, memory=memory)

    def denoise(x_t: Tensor, _: Tensor) -> Tensor:
        return subs(read(x_t, keep=False), x_t, network.mask_id, sharpen)

    given = torch.zeros_like(x, dtype=torch.bool) if known is None else known
    blocks: list[Tensor] = []
    for piece, fixed in zip(x.split(size, 1), given.split(size, 1), strict=True):
        options = {"mask_id": network.mask_id, "generator": generator, "known": fixed}
        opened = bool(unmade(piece, fixed, network.mask_id).any())
        made = sampler(denoise, schedule, piece, times, **options) if opened else piece
        blocks.append(made)
        if len(blocks) * size < x.shape[1]:
            read(made, keep=True)
    return torch.cat(blocks, 1)
