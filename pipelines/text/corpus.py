"""Text as tokens: read once, kept in one file, cut into windows whose order is a function of (seed, cursor)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipelines.artefact import ArtefactError, save_weights, write_atomically
from pipelines.data.order import Shuffle
from pipelines.errors import DataError
from pipelines.progress import ticking
from pipelines.runs import Run
from pipelines.text.config import TextData, TextTokensStage
from pipelines.text.detokenise import detokenise
from tokenizer.plain import PlainTokenizer

TOKENIZER, TOKENS = "tokenizer.json", "tokens.safetensors"
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class TokenText:
    """A text as tokens (N,): their ids, and how many characters and UTF-8 bytes of the text end in each of them."""

    ids: Tensor
    characters: Tensor
    bytes: Tensor

    def cut(self, length: int) -> TokenText:
        """Return the first tokens."""
        return TokenText(self.ids[:length], self.characters[:length], self.bytes[:length])

    def windows(self, length: int) -> Iterator[TokenText]:
        """Cut the text into windows that do not overlap; the last one is as long as what is left."""
        parts = zip(*(column.split(length) for column in (self.ids, self.characters, self.bytes)), strict=True)
        return (TokenText(*part) for part in parts)


@dataclass(frozen=True)
class Corpus:
    """What a text_tokens stage made."""

    tokenizer: PlainTokenizer
    splits: dict[str, TokenText]

    @classmethod
    def load(cls, run: Run, name: str) -> Corpus:
        """Load the corpus that stage `name` stands on."""
        found, manifest = run.need(name, "text_tokens")
        folder = run.stage_folder(found)
        tokenizer = PlainTokenizer.load(folder / TOKENIZER)
        if tokenizer.vocab_size != manifest["vocab_size"]:
            raise ArtefactError(
                f"{folder / TOKENIZER} has {tokenizer.vocab_size} tokens, but its manifest says "
                f"{manifest['vocab_size']}: delete {folder} and run the stage again."
            )
        tensors = load_file(folder / TOKENS)
        columns = TokenText.__dataclass_fields__
        splits = {split: TokenText(*(tensors[f"{split}.{column}"] for column in columns)) for split in SPLITS}
        return cls(tokenizer, splits)


def read_texts(run: Run) -> dict[str, str]:
    """Return the texts of all splits, detokenised. Raises DataError where a file is missing or empty."""
    data = run.recipe.data
    assert isinstance(data, TextData)
    files = {"train": data.train, "test": data.test, **({"valid": data.valid} if data.valid else {})}
    texts = {split: detokenise(read_text(run.data / file), data.detokenise) for split, file in files.items()}
    if data.separator and data.separator not in texts["train"]:
        raise DataError(
            f"The training text holds no separator {data.separator!r} (after detokenising by {data.detokenise!r}): "
            "write what stands between its documents, or leave data.separator out."
        )
    if data.valid is None:
        cut = round(len(texts["train"]) * (1 - data.valid_share))
        end = data.separator or "\n"
        near = texts["train"].rfind(end, 0, cut) + len(end)
        cut = near if near > 0.9 * cut else cut  # at the end of a document, or of a line, where one is near
        texts["valid"], texts["train"] = texts["train"][cut:], texts["train"][:cut]
    if empty := [split for split, text in texts.items() if not text.strip()]:
        raise DataError(f"There is no text left for {', '.join(empty)}: give more text, or a larger data.valid_share.")
    return texts


def read_text(path: Path) -> str:
    """Read a text file. Raises DataError where it is missing, empty or no UTF-8."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(
            f"There is no text at {path}: check the path; a recipe's files are looked for in --data DIR."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}): convert it first.") from error
    if not text.strip():
        raise DataError(f"{path} is empty: give a file with text.")
    return text


def tokenise(tokenizer: PlainTokenizer, text: str) -> TokenText:
    """Encode a text and count what ends in each token."""
    ids, ends = tokenizer.encode(text)
    widths = np.array([len(letter.encode("utf-8", "replace")) for letter in text], np.int64)
    sizes = np.concatenate([[0], widths.cumsum()])[np.concatenate([[0], ends])]
    columns = (ids, np.diff(ends, prepend=0), np.diff(sizes))
    return TokenText(*(torch.from_numpy(column.astype(np.int32)) for column in columns))


def make_tokens(run: Run, name: str, stage: TextTokensStage) -> dict[str, Any]:
    """Learn a tokenizer from the training text and write all splits as tokens; returns facts for the manifest."""
    folder, texts = run.stage_folder(name), read_texts(run)
    with ticking(name) as tick:
        assert isinstance(run.recipe.data, TextData)
        tokenizer = PlainTokenizer.train(texts["train"], stage.unit, stage.vocab_size, run.recipe.data.separator)
        tensors: dict[str, Tensor] = {}
        for number, (split, text) in enumerate(texts.items()):
            made = tokenise(tokenizer, text)
            tensors |= {f"{split}.{column}": value for column, value in vars(made).items()}
            tick(number + 1, len(texts))
    write_atomically(folder / TOKENIZER, tokenizer.save)
    save_weights(folder / TOKENS, tensors)
    return {
        "tokenizer": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "tokens": {split: len(tensors[f"{split}.ids"]) for split in SPLITS},
        "characters": {split: len(text) for split, text in texts.items()},
    }


@dataclass(frozen=True)
class Windows:
    """Training windows without end: each epoch cuts the text at another offset and has another order."""

    ids: Tensor  # (N,)
    length: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse a text that is shorter than two windows."""
        if len(self) < 1:
            raise DataError(
                f"The training text has {len(self.ids)} tokens, which is less than two windows of {self.length}: give "
                "more text or a smaller length."
            )

    def __len__(self) -> int:
        return max(0, len(self.ids) // self.length - 1)

    @cached_property
    def _order(self) -> Shuffle:
        return Shuffle([len(self)], self.seed)

    def __getitem__(self, position: int) -> Tensor:
        """The window at a position of the endless stream, (length,) int64."""
        epoch = position // len(self)
        spare = len(self.ids) - self.length * len(self)
        offset = int(np.random.default_rng((self.seed, epoch, 1)).integers(spare + 1))
        start = offset + self.length * self._order.number(position)
        return self.ids[start : start + self.length].long()

    def batches(self, cursor: int, batch: int, rank: int, world: int) -> Iterator[tuple[dict[str, Tensor], int]]:
        """Yield this rank's windows of each batch (B, length) and the cursor behind it."""
        if batch % world:
            raise DataError(f"A batch of {batch} does not divide over {world} processes: take a multiple.")
        own = batch // world
        while True:
            first = cursor + rank * own
            cursor += batch
            yield {"x": torch.stack([self[position] for position in range(first, first + own)])}, cursor
