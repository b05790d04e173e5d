"""Byte-pair encoding of captions with `tokenizers`: one JSON file says everything, from normalisation to padding.

Text is put into NFKC and lower case, runs of whitespace become one space and the ends are stripped. It is then split
before every word and punctuation run (GPT-2's rule, with a space in front of the first word too, so that a word is one
token wherever it stands) and encoded byte by byte: any text has an encoding, and `decode` gives the normalised text.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

PAD, END = "<pad>", "<end>"
SMALLEST = len(pre_tokenizers.ByteLevel.alphabet()) + 2


class Encoded(NamedTuple):
    """Captions as ids: `tokens` (B, L) int64; `lengths` (B,) int64 with the end token; `truncated` (B,) bool."""

    tokens: Tensor
    lengths: Tensor
    truncated: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, L) bool: True on the caption's tokens and on its end token."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]


class BPE:
    """Captions to `length` ids (tokens, one end token, padding) and back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary, truncation = tokenizer.get_vocab(), tokenizer.truncation
        if truncation is None or PAD not in vocabulary or END not in vocabulary:
            raise ValueError(f"the tokenizer has no {PAD}, no {END} or no length; it was not written by BPE.save")
        tokenizer.encode_special_tokens = True  # a caption that spells "<end>" is text, not the end
        self._tokenizer = tokenizer
        self.length: int = truncation["max_length"]
        self.vocab_size = len(vocabulary)
        self.pad_id = vocabulary[PAD]
        self.end_id = vocabulary[END]

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, length: int) -> "BPE":
        """Learn merges from captions; the vocabulary is smaller than asked once every word is one token.

        vocab_size: at least 258 (256 bytes, padding, end); length: ids per caption with the end token, at least 2.
        """
        if vocab_size < SMALLEST:
            raise ValueError(f"vocab_size is {vocab_size}; a byte-level vocabulary needs at least {SMALLEST}")
        if length < 2:
            raise ValueError(f"length is {length}; it must be at least 2: one token and the end token")
        tokenizer = _untrained()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=[PAD, END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer.train_from_iterator((valid_text(caption) for caption in captions), trainer)
        if tokenizer.get_vocab_size() == SMALLEST:
            raise ValueError("nothing to learn: no pair of letters occurs twice; check that the captions are there")
        end = tokenizer.token_to_id(END)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id(PAD), pad_token=PAD)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path | str) -> "BPE":
        """Read the JSON that `save` wrote."""
        try:
            tokenizer = Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} does not exist; train the text tokenizer first") from None
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{path} is not a tokenizers JSON ({error}); train the text tokenizer again") from error
        return cls(tokenizer)

    def save(self, path: Path | str) -> None:
        """Write the `tokenizers` JSON."""
        Path(path).write_text(self.json(), encoding="utf-8")

    def json(self) -> str:
        """The whole tokenizer as text."""
        return self._tokenizer.to_str()

    @property
    def hash(self) -> str:
        """sha256 of the JSON."""
        return hashlib.sha256(self.json().encode()).hexdigest()

    def normalise(self, caption: str) -> str:
        """The text that is encoded, and that `decode` gives back when nothing was truncated."""
        return self._tokenizer.normalizer.normalize_str(valid_text(caption))

    def encode(self, captions: Sequence[str]) -> Encoded:
        """Ids of captions of any length; what does not fit before the end token is cut off."""
        rows = self._tokenizer.encode_batch([valid_text(caption) for caption in captions])
        tokens = torch.tensor([row.ids for row in rows], dtype=torch.int64).view(-1, self.length)
        lengths = torch.tensor([sum(row.attention_mask) for row in rows], dtype=torch.int64)
        truncated = torch.tensor([bool(row.overflowing) for row in rows], dtype=torch.bool)
        return Encoded(tokens, lengths, truncated)

    def decode(self, tokens: Tensor) -> list[str]:
        """Normalised text of (B, L) ids, each row up to its first end token, padding left out."""
        return [self._text(row) for row in tokens.tolist()]

    def _text(self, row: list[int]) -> str:
        if self.end_id in row:
            row = row[: row.index(self.end_id)]
        return self._tokenizer.decode([token for token in row if token != self.pad_id]).removeprefix(" ")


def _untrained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def valid_text(caption: str) -> str:
    """Lone surrogates, which no encoding of text can hold, become question marks."""
    return caption.encode("utf-8", "replace").decode("utf-8")
