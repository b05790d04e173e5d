"""What a text costs under a model: exactly where the model is autoregressive, else a bound with its own error.

The protocol: the text is cut into windows that do not overlap, the last one being as short as what is left; nothing is
read before a window, and every token of it is counted once. Nats per token are those of all windows together; bits per
character divide by the characters of the text, whatever the tokens.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from discrete.likelihood import any_order
from discrete.objective import Masked, Objective
from discrete.predict import denoiser
from discrete.text_model import PerDocument, TextTransformer
from pipelines.errors import DataError
from pipelines.hardware import device_of, step_generator
from pipelines.progress import meter
from pipelines.text.corpus import TokenText

BATCH = 64


@dataclass(frozen=True)
class TextCost:
    """Cost of each window: nats (W, repeats), and its tokens, characters and bytes (W,)."""

    nats: Tensor
    tokens: Tensor
    characters: Tensor
    bytes: Tensor

    @property
    def nats_per_token(self) -> float:
        """All nats over all tokens."""
        return float(self.nats.mean(1).sum() / self.tokens.sum())

    @property
    def bits_per_character(self) -> float:
        """All bits over all characters."""
        return float(self.nats.mean(1).sum() / math.log(2) / self.characters.sum())


def cost(
    network: TextTransformer,
    objective: Objective,
    text: TokenText,
    length: int,
    *,
    draws: int,
    repeats: int = 1,
    seed: int = 0,
    name: str = "",
    end_id: int | None = None,
) -> TextCost:
    """Return the cost of a text by windows of `length` tokens; each repeat is an estimate from `draws` passes.

    end_id: ends each document of the text, which are then read each on its own.

    A last window that is no whole number of the objective's blocks is cut, and its rest not counted. name: of the
    progress bar, none without.
    """
    windows = [window.cut(objective.readable(len(window.ids))) for window in text.windows(length)]
    windows = [window for window in windows if len(window.ids)]
    if not windows:
        raise DataError(f"The text has {len(text.ids)} tokens, of which none can be counted: give a longer one.")
    whole = sum(len(window.ids) == length for window in windows)  # all but, perhaps, the last
    batches = [windows[i : min(i + BATCH, whole)] for i in range(0, whole, BATCH)] + [[w] for w in windows[whole:]]
    rows: list[Tensor] = []
    with meter(name, len(windows)) if name else nullcontext() as shown:
        for number, batch in enumerate(batches):
            x = torch.stack([window.ids.long() for window in batch])
            seeds = [(seed + r, number) for r in range(repeats)]
            rows.append(_estimates(network, objective, x, draws, seeds, end_id))
            if shown is not None:
                shown.advance(len(batch), "windows")
    totals = ([int(getattr(window, column).sum()) for window in windows] for column in ("characters", "bytes"))
    return TextCost(torch.cat(rows), torch.tensor([len(w.ids) for w in windows]), *map(torch.tensor, totals))


@torch.no_grad()
def exact_cost(
    network: TextTransformer, objective: Masked, text: TokenText, length: int, count: int
) -> tuple[Tensor, Tensor]:
    """Return the exact cost and the exact bound (count,) of a masked model for short pieces spread over a text.

    In nats; the model reveals one token at a time in any order (`discrete.likelihood.any_order`).
    """
    x = pieces(text, length, count).to(device_of(network))
    return any_order(denoiser(objective.logits(network), mask_id=network.mask_id), x, mask_id=network.mask_id)


def pieces(text: TokenText, length: int, count: int) -> Tensor:
    """Return so many pieces of a text, evenly spread over it: (count, length)."""
    last = len(text.ids) - length
    if last < 0:
        raise DataError(f"The text has {len(text.ids)} tokens, but `short` is {length}: give a smaller one.")
    starts = torch.linspace(0, last, count).long()
    return torch.stack([text.ids[start : start + length].long() for start in starts.tolist()])


@torch.no_grad()
def _estimates(
    network: TextTransformer,
    objective: Objective,
    x: Tensor,
    draws: int,
    seeds: list[tuple[int, int]],
    end_id: int | None,
) -> Tensor:
    """One estimate of each window x (B, L) for each seed: (B, len(seeds))."""
    x = x.to(device_of(network))
    asked = network if end_id is None else PerDocument.of(network, x, end_id)
    found = [objective.nats(asked, x, draws, step_generator(seed, number, 0)) for seed, number in seeds]
    return torch.stack(found, 1).cpu()
