"""Running text as ids, without any normalisation: characters that the training text has, or byte pairs.

Both are one `tokenizers` JSON. `encode` also says where in the text each token ends, so that costs per token become
costs per character exactly, whatever the tokens.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tokenizer.text import valid_text

Unit = Literal["characters", "bpe"]
UNKNOWN = "<unk>"
SMALLEST = len(pre_tokenizers.ByteLevel.alphabet())
PIECE = 1 << 18  # characters encoded at once
CUT = re.compile(r"(?<=\w)(?= \w)|(?<=\S\n)(?=\S)")  # in front of a word, where no token reaches across


class Encoding(NamedTuple):
    """A text as `ids` (N,) int32; `ends` (N,) int64, how many characters of the text stand behind token i's end."""

    ids: NDArray[np.int32]
    ends: NDArray[np.int64]


class PlainTokenizer:
    """Text to ids and back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size()
        self.unknown_id: int | None = (
            tokenizer.token_to_id(UNKNOWN) if isinstance(tokenizer.model, models.WordLevel) else None
        )
        added = tokenizer.get_added_tokens_decoder()  # none, or what stands between two documents
        self.end_id: int | None = next(iter(added), None)
        self.separator: str = added[self.end_id].content if self.end_id is not None else ""

    @classmethod
    def train(cls, text: str, unit: Unit, vocab_size: int | None = None, separator: str = "") -> PlainTokenizer:
        """Learn from a text: its characters, or merges up to vocab_size tokens, the separator's among them.

        A character that the text does not have is read as one token <unk>; byte pairs read everything. separator: what
        stands between two documents and is one token, `end_id`. Raises ValueError where vocab_size does not fit the
        unit.
        """
        documents = valid_text(text).split(separator) if separator else [valid_text(text)]
        least = SMALLEST + bool(separator)
        if unit == "characters":
            if vocab_size is not None:
                raise ValueError(f"vocab_size is {vocab_size}, but characters count themselves: leave it out")
            tokenizer = _characters("".join(documents))
        elif vocab_size is None or vocab_size < least:
            raise ValueError(f"vocab_size is {vocab_size}; byte pairs need at least {least}, such as 4096")
        else:
            tokenizer = _byte_pairs(documents, vocab_size - bool(separator))
        if separator:
            tokenizer.add_tokens([AddedToken(separator, normalized=False)])
        made = cls(tokenizer)
        if separator and (made.end_id is None or made.decode([made.end_id]) != separator):
            raise ValueError(f"{separator!r} can not be one token: take a separator of two or more ASCII characters")
        return made

    @classmethod
    def load(cls, path: Path) -> PlainTokenizer:
        """Read the JSON that `save` wrote."""
        return cls(Tokenizer.from_str(path.read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        """Write the `tokenizers` JSON."""
        path.write_text(self._tokenizer.to_str(), encoding="utf-8")

    @property
    def hash(self) -> str:
        """sha256 of the JSON."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def encode(self, text: str) -> Encoding:
        """Read a text of any length; long ones go piece by piece, cut where no token reaches across."""
        ids, ends, start = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], 0
        for piece in _pieces(valid_text(text), self.separator):
            found = self._tokenizer.encode(piece)
            ids.append(np.array(found.ids, np.int32))
            ends.append(np.array([end for _, end in found.offsets], np.int64) + start)
            start += len(piece)
        return Encoding(np.concatenate(ids), np.concatenate(ends))

    def decode(self, ids: NDArray[np.integer] | list[int]) -> str:
        """Return the text of ids (N,)."""
        return self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=False)


def _characters(text: str) -> Tokenizer:
    letters = sorted(set(text))
    vocabulary = {UNKNOWN: 0} | {letter: i for i, letter in enumerate(letters, start=1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _byte_pairs(documents: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator((piece for document in documents for piece in _pieces(document)), trainer)
    return tokenizer


def _pieces(text: str, separator: str = "") -> list[str]:
    """Cut a text into pieces of about PIECE characters, behind a separator where there is one."""
    pieces, start, pattern = [], 0, re.compile(re.escape(separator))
    while start < len(text):
        if separator:
            ends = (found.end() for found in pattern.finditer(text, start))
            stop = next((end for end in ends if end >= start + PIECE), len(text))
        else:
            cut = CUT.search(text, start + PIECE)
            stop = cut.start() if cut else len(text)
        pieces.append(text[start:stop])
        start = stop
    return pieces
