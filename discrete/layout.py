"""One sequence [text | image] over one vocabulary [text ids | image ids | mask]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Lengths of the two spans and sizes of their vocabularies.

    Text token v keeps its id v in [0, text_vocab), specials inside; image code k has the id text_vocab + k; the mask is
    text_vocab + image_vocab. Codes are laid out row by row; grids: how many square grids of them a picture has, each
    below the one before it.
    """

    text_length: int
    image_length: int
    text_vocab: int
    image_vocab: int
    grids: int = 1

    def __post_init__(self) -> None:
        for name in ("text_length", "image_length", "text_vocab", "image_vocab", "grids"):
            if getattr(self, name) < 1:
                raise ValueError(f"layout.{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def side(self) -> int:
        """Side of each grid of codes. Raises ValueError where they are not square."""
        side = math.isqrt(self.image_length // self.grids)
        if self.grids * side * side != self.image_length:
            what = "a square grid" if self.grids == 1 else f"{self.grids} square grids"
            raise ValueError(f"layout.image_length is {self.image_length}; the codes must form {what}")
        return side

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
        ids = torch.arange(self.mask_id + 1)
        is_text = self.is_text()[:, None]
        return (is_text & (ids < self.text_vocab)) | (~is_text & (ids >= self.text_vocab) & (ids < self.mask_id))

    def join(self, text: Tensor | None, codes: Tensor | None) -> Tensor:
        """Write text ids (B, text_length) and image codes (B, h, w) or (B, image_length) as one sequence (B, L).

        None stands for a side that is all masked; one side must be given. Raises ValueError with both values where a
        length or an id does not fit.
        """
        given = text if text is not None else codes
        if given is None:
            raise ValueError("layout.join needs text, codes or both; for an all-masked sequence use layout.masked")
        x = self.masked(len(given), given.device)
        if text is not None:
            x[:, self.text] = _checked("text", text, self.text_length, self.text_vocab)
        if codes is not None:
            x[:, self.image] = (
                _checked("image", codes.flatten(1), self.image_length, self.image_vocab) + self.text_vocab
            )
        return x

    def masked(self, batch: int, device: torch.device | str = "cpu") -> Tensor:
        """A batch of sequences (B, L) of masks only."""
        return torch.full((batch, self.length), self.mask_id, device=device)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `join`: text ids (B, text_length) and codes (B, image_length). Raises ValueError if a mask is left."""
        if bool((x == self.mask_id).any()):
            raise ValueError(f"the sequence still holds the mask id {self.mask_id}; sample it before splitting")
        return x[:, self.text], x[:, self.image] - self.text_vocab


def _checked(name: str, tokens: Tensor, length: int, vocab: int) -> Tensor:
    if tokens.shape[-1] != length:
        raise ValueError(f"the {name} span holds {length} tokens, got {tokens.shape[-1]}; cut or pad before joining")
    if not len(tokens):
        return tokens
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab:
        raise ValueError(
            f"{name} tokens lie in [{low}, {high}], expected [0, {vocab - 1}]; "
            "the tokens and the model come from different vocabularies"
        )
    return tokens
