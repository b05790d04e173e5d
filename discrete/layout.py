"""One sequence [text | image] over one vocabulary [text ids | image ids | mask]; an image is one or more grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """One square grid: its side, its positions within the image span, its codes within the image vocabulary."""

    side: int
    positions: slice
    codes: slice


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Lengths of the two spans and sizes of their vocabularies.

    Text token v keeps its id v in [0, text_vocab), specials inside; image code k has the id text_vocab + k; the mask is
    text_vocab + image_vocab. A picture is one or more square grids of codes, one after the other (coarse to fine, or
    level by level), each laid out row by row: sides has the side of each, image_vocabs how many codes each has for
    itself, those of a grid beginning where those of the one before end.
    """

    text_length: int
    text_vocab: int
    sides: tuple[int, ...]
    image_vocabs: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("text_length", "text_vocab", "sides", "image_vocabs"):
            value = getattr(self, name)
            if not value or (value < 1 if isinstance(value, int) else min(value) < 1):
                raise ValueError(f"layout.{name} is {value}; it must be at least 1")
        if len(self.sides) != len(self.image_vocabs):
            raise ValueError(
                f"layout.sides {self.sides} and layout.image_vocabs {self.image_vocabs} must have an entry each for "
                "every grid"
            )

    @property
    def grids(self) -> list[Grid]:
        """The grids of codes in their order."""
        places, codes = _ranges([side**2 for side in self.sides]), _ranges(self.image_vocabs)
        return [Grid(*each) for each in zip(self.sides, places, codes, strict=True)]

    @property
    def side(self) -> int:
        """Side of the finest grid."""
        return max(self.sides)

    @property
    def image_length(self) -> int:
        """Codes of a picture."""
        return sum(side**2 for side in self.sides)

    @property
    def image_vocab(self) -> int:
        """How many codes all grids have together."""
        return sum(self.image_vocabs)

    @property
    def length(self) -> int:
        """Length L of the whole sequence."""
        return self.text_length + self.image_length

    @property
    def mask_id(self) -> int:
        """Id V of the mask token, the last one."""
        return self.text_vocab + self.image_vocab

    @property
    def text(self) -> slice:
        """Positions of the text."""
        return slice(0, self.text_length)

    @property
    def image(self) -> slice:
        """Positions of the image."""
        return slice(self.text_length, self.length)

    def is_text(self) -> Tensor:
        """Which positions hold text, (L,) bool."""
        return torch.arange(self.length) < self.text_length

    def allowed(self) -> Tensor:
        """Which ids each position may take, (L, V + 1) bool; the mask is allowed nowhere."""
        allowed = torch.zeros(self.length, self.mask_id + 1, dtype=torch.bool)
        allowed[self.text, : self.text_vocab] = True
        allowed[self.image, self.text_vocab : -1] = self.allowed_codes()
        return allowed

    def allowed_codes(self) -> Tensor:
        """Which codes each position of the image may take, those of its own grid: (image_length, image_vocab) bool."""
        allowed = torch.zeros(self.image_length, self.image_vocab, dtype=torch.bool)
        for grid in self.grids:
            allowed[grid.positions, grid.codes] = True
        return allowed

    def join(self, text: Tensor | None, codes: Tensor | None) -> Tensor:
        """Write text ids (B, text_length) and image codes (B, image_length) as one sequence (B, L).

        The codes may have the shape of their grid, (B, h, w). None stands for a side that is all masked; one side must
        be given. Raises ValueError with both values where a length or an id does not fit.
        """
        given = text if text is not None else codes
        if given is None:
            raise ValueError("layout.join needs text, codes or both; for an all-masked sequence use layout.masked")
        x = self.masked(len(given), given.device)
        if text is not None:
            x[:, self.text] = _in_range("text", _of_length("text", text, self.text_length), slice(0, self.text_vocab))
        if codes is not None:
            flat = _of_length("image", codes.flatten(1), self.image_length)
            for grid in self.grids:
                _in_range("image", flat[:, grid.positions], grid.codes)
            x[:, self.image] = flat + self.text_vocab
        return x

    def masked(self, batch: int, device: torch.device | str = "cpu") -> Tensor:
        """A batch of sequences (B, L) of masks only."""
        return torch.full((batch, self.length), self.mask_id, device=device)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `join`: text ids (B, text_length) and codes (B, image_length). Raises ValueError if a mask is left."""
        if bool((x == self.mask_id).any()):
            raise ValueError(f"the sequence still holds the mask id {self.mask_id}; sample it before splitting")
        return x[:, self.text], x[:, self.image] - self.text_vocab


def _ranges(lengths: Sequence[int]) -> list[slice]:
    """Ranges of these lengths, each beginning where the one before ends."""
    edges = accumulate(lengths, initial=0)
    return [slice(start, end) for start, end in pairwise(edges)]


def _of_length(name: str, tokens: Tensor, length: int) -> Tensor:
    if tokens.shape[-1] != length:
        raise ValueError(f"the {name} span holds {length} tokens, got {tokens.shape[-1]}; cut or pad before joining")
    return tokens


def _in_range(name: str, tokens: Tensor, ids: slice) -> Tensor:
    if not len(tokens):
        return tokens
    low, high = int(tokens.min()), int(tokens.max())
    if low < ids.start or high >= ids.stop:
        raise ValueError(
            f"{name} tokens lie in [{low}, {high}], expected [{ids.start}, {ids.stop - 1}]; "
            "the tokens and the model come from different vocabularies"
        )
    return tokens
