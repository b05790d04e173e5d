"""What a network is asked while a text is written: how often, about how much, and when each token came to stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from discrete.predict import Logits
from tokenizer.plain import PlainTokenizer


class Watched:
    """A network that notes after how many calls each token was there for good; it is asked about whole texts."""

    def __init__(self, logits: Logits, x: Tensor, mask_id: int) -> None:
        self.logits, self.mask_id, self.calls, self.whole = logits, mask_id, 0, True
        self.last = torch.zeros_like(x)  # the last call that found it masked

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Ask the network."""
        self.calls += 1
        self.whole = self.whole and x.shape == self.last.shape
        if self.whole:
            self.last = torch.where(x == self.mask_id, self.calls, self.last)
        return self.logits(x, t)

    @property
    def revealed(self) -> Tensor | None:
        """The share of all calls after which a token was there for good, (B, L); 0 of what was known.

        None where the network was asked about parts of the texts.
        """
        return self.last / max(1, self.calls) if self.whole else None


def pieces(tokenizer: PlainTokenizer, ids: Sequence[int], times: Sequence[float]) -> list[tuple[str, float]]:
    """A text in pieces, what each token adds to it, with the token's time; one that ends inside a letter adds later."""
    found, before = list[tuple[str, float]](), ""
    for count, time in zip(range(1, len(ids) + 1), times, strict=False):
        text = tokenizer.decode(list(ids[:count]))
        if text.startswith(before) and not text.endswith("\ufffd"):
            found.append((text[len(before) :], round(time, 3)))
            before = text
    return found


@dataclass
class Count:
    """Sequences and tokens that a network was asked about."""

    rows: int = 0
    tokens: int = 0


@contextmanager
def counted(network: nn.Module) -> Iterator[Count]:
    """Count what a network is asked about."""
    count = Count()

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        count.rows += len(inputs[0])
        count.tokens += inputs[0].numel()

    hook = network.register_forward_pre_hook(note)
    try:
        yield count
    finally:
        hook.remove()
