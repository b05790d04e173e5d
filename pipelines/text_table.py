"""Text embeddings of a cache: once per distinct caption, in files that are mapped into memory and not read into it.

train-000003.text.safetensors         tokens (R, L, D) float16, mask (R, L) bool, pooled (R, P) float16: a row for
                                      each caption that no earlier part of the data has
caption_keys.npy, caption_rows.npy    the keys of all captions in order, and where each one's row is
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipelines.artefact import ArtefactError, write_atomically
from pipelines.data.recent import Recent

KEYS, ROWS = "caption_keys.npy", "caption_rows.npy"
KEY_BYTES = 12  # so many captions that two share a key are beyond any data set
OPEN = 256  # parts that are mapped at once


class TextRows(NamedTuple):
    """Embeddings of captions: tokens (B, L, D) float16, mask (B, L) bool, pooled (B, P) float16."""

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


def text_file(part: str) -> str:
    """Return the name of the embeddings of a part of the data."""
    return f"{part}.text.safetensors"


def keys_of(captions: Sequence[str]) -> np.ndarray:
    """Return the keys of captions, (B,) bytes."""
    coded = (caption.encode("utf-8", "surrogatepass") for caption in captions)
    keys = [hashlib.blake2b(words, digest_size=KEY_BYTES).hexdigest() for words in coded]
    return np.array(keys, dtype=f"S{2 * KEY_BYTES}")


class FirstSeen:
    """Which captions of which parts get a row: each where it comes first."""

    def __init__(self, keys: Sequence[np.ndarray]) -> None:
        """keys: of the captions of each part, in order."""
        self._starts = np.cumsum([0, *map(len, keys)])
        self._keys, first = np.unique(np.concatenate(keys), return_index=True)
        self._places = np.sort(first)  # of the caption of each row
        self._rows = np.searchsorted(self._places, first)

    def of(self, part: int) -> np.ndarray:
        """Return the places within a part of the captions that have their rows there."""
        begin, end = np.searchsorted(self._places, self._starts[part : part + 2])
        return self._places[begin:end] - self._starts[part]

    def write(self, folder: Path) -> None:
        """Write where each caption's row is."""
        for name, values in ((KEYS, self._keys), (ROWS, self._rows.astype(np.int64))):
            write_atomically(folder / name, lambda temporary, values=values: _save(temporary, values))


def _save(path: Path, values: np.ndarray) -> None:
    with path.open("wb") as handle:
        np.save(handle, values, allow_pickle=False)


class TextTable:
    """The embeddings of a cache, found by the whole caption."""

    def __init__(self, folder: Path, parts: Mapping[str, int]) -> None:
        """parts: rows of each part that has some, in order."""
        self._folder, self._names = folder, list(parts)
        self._starts = np.cumsum([0, *parts.values()])
        self._keys, self._rows = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (KEYS, ROWS))
        self._open: Recent[dict[str, Tensor]] = Recent(OPEN)
        self._one = threading.Lock()  # batches are made in a thread beside the one that validates

    def rows(self, captions: Sequence[str]) -> TextRows:
        """Return the embeddings of captions. Raises ArtefactError for one that the cache does not hold."""
        keys = keys_of(captions)
        at = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        for caption, there in zip(captions, self._keys[at] == keys, strict=True):
            if not there:
                raise ArtefactError(
                    f"The cache {self._folder} holds no embedding of {caption!r}: encode the data anew."
                )
        rows = np.asarray(self._rows[at])
        part = np.searchsorted(self._starts, rows, side="right") - 1
        with self._one:
            held = {int(number): self._open.get(int(number), self._load) for number in np.unique(part)}
        return TextRows(*(self._gathered(name, held, part, rows) for name in TextRows._fields))

    def _gathered(self, name: str, held: Mapping[int, dict[str, Tensor]], part: np.ndarray, rows: np.ndarray) -> Tensor:
        values = next(iter(held.values()))[name]
        made = values.new_empty(len(rows), *values.shape[1:])
        for number, tensors in held.items():
            mine = part == number
            made[torch.from_numpy(mine)] = tensors[name][torch.from_numpy(rows[mine] - self._starts[number])]
        return made

    def _load(self, number: int) -> dict[str, Tensor]:
        return load_file(self._folder / text_file(self._names[number]))
