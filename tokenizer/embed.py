"""Frozen text encoders: captions in, embeddings out, from a folder that we trained or one of open_clip's hub."""

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from backbone.clip import contrastive_hash, import_open_clip, load_contrastive, read_document, text_states
from tokenizer.text import BPE, Encoded, valid_text

TOKENIZER = "bpe.json"
READ = 2000  # characters; open_clip's tokenizer is quadratic in the length of a word
BATCH = 256


class TextEmbedding(NamedTuple):
    """Captions as vectors: `tokens` (B, L, D), `mask` (B, L) bool (True: caption or end token), `pooled` (B, P)."""

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


class CaptionTokenizer(Protocol):
    """What turns captions into ids: our `BPE` or `OpenClipTokenizer`."""

    length: int
    vocab_size: int

    def encode(self, captions: Sequence[str]) -> Encoded:
        """Ids of captions of any length."""
        ...


class OpenClipTokenizer:
    """The tokenizer of a downloaded open_clip model; its vocabulary lies in the open_clip package.

    Only the first 2,000 characters of a caption are read (the library is quadratic in the length of a word); a caption
    that is longer counts as truncated.
    """

    def __init__(self, folder: Path) -> None:
        text_cfg = read_document(folder)["model_cfg"]["text_cfg"]
        if name := text_cfg.get("hf_tokenizer_name"):
            raise ValueError(
                f"{folder} needs the Hugging Face tokenizer {name!r}, which is not supported: use an open_clip model "
                "with open_clip's own tokenizer, e.g. one of ViT-B-32, ViT-B-16, ViT-L-14"
            )
        import_open_clip()
        self._tokenizer: Any = importlib.import_module("open_clip.factory").get_tokenizer(f"local-dir:{folder}")
        self.length: int = self._tokenizer.context_length
        self.vocab_size: int = self._tokenizer.vocab_size

    def encode(self, captions: Sequence[str]) -> Encoded:
        """Start token, tokens, end token, zeros."""
        read = [valid_text(caption)[:READ] for caption in captions]
        tokens = self._tokenizer(read) if read else torch.empty(0, self.length, dtype=torch.int64)
        lengths = tokens.argmax(1) + 1  # the end token has the largest id
        full = (lengths == self.length).tolist()
        truncated = [
            len(caption) > READ or (is_full and len(self._tokenizer.encode(text)) + 2 > self.length)
            for caption, text, is_full in zip(captions, read, full, strict=True)
        ]
        return Encoded(tokens, lengths, torch.tensor(truncated, dtype=torch.bool))


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A frozen text tower with its tokenizer.

    width: D of the token sequence; pooled_width: P; length: L; identity: kind and sha256 of weights, configuration and
    tokenizer, for manifests. An embedding is a function of the caption alone, not of the batch that it is in.
    """

    model: nn.Module
    tokenizer: CaptionTokenizer
    width: int
    pooled_width: int
    length: int
    identity: str

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> TextEmbedding:
        """Embeddings of captions, float32 on the model's device; 0 at the positions behind the end token."""
        return self.embed_tokens(self.tokenizer.encode(captions))

    @torch.no_grad()
    def embed_tokens(self, encoded: Encoded) -> TextEmbedding:
        """`embed` of captions that the tokenizer has already encoded."""
        device = next(self.model.parameters()).device
        tokens, mask = encoded.tokens.to(device), encoded.mask.to(device)
        if not len(tokens):
            empty = torch.empty(0, self.length, self.width, device=device)
            return TextEmbedding(empty, mask, torch.empty(0, self.pooled_width, device=device))
        states = [text_states(self.model, part) for part in tokens.split(BATCH)]
        sequence = torch.cat([state.sequence for state in states])  # (B, L, D)
        pooled = torch.cat([state.pooled for state in states])  # (B, P)
        return TextEmbedding(sequence * mask[..., None], mask, pooled)

    def to(self, device: torch.device | str) -> "TextEncoder":
        """The same encoder with its model moved to a device."""
        self.model.to(device)
        return self


def load_text_encoder(folder: Path | str) -> TextEncoder:
    """Text encoder of a local folder: a trained clip stage (with `bpe.json`) or a downloaded open_clip model.

    Raises FileNotFoundError and ValueError as `load_contrastive` does, and ValueError where the tokenizer does not fit.
    """
    folder = Path(folder)
    cfg = read_document(folder)["model_cfg"]
    text_cfg = cfg["text_cfg"]
    ours = (folder / TOKENIZER).is_file()
    tokenizer = BPE.load(folder / TOKENIZER) if ours else OpenClipTokenizer(folder)
    for name, found, wanted in (
        ("vocabulary", tokenizer.vocab_size, text_cfg.get("vocab_size", 49408)),
        ("length", tokenizer.length, text_cfg.get("context_length", 77)),
    ):
        if found != wanted:
            raise ValueError(
                f"{folder}: the tokenizer's {name} is {found}, the model's {wanted}; "
                f"put the {TOKENIZER} that the model was trained with beside it"
            )
    model = load_contrastive(folder).requires_grad_(False)
    parts = contrastive_hash(folder) + (tokenizer.hash if isinstance(tokenizer, BPE) else "")
    return TextEncoder(
        model=model,
        tokenizer=tokenizer,
        width=text_cfg.get("width", 512),
        pooled_width=cfg["embed_dim"],
        length=tokenizer.length,
        identity=f"open_clip:{hashlib.sha256(parts.encode()).hexdigest()}",
    )
