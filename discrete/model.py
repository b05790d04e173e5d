"""Bidirectional transformer over one sequence [text | image], or over the text alone.

Unusual: the words meet each other first, in a few blocks over the short text span with rotary positions, so that "red"
knows which object it belongs to before the image asks; the sequence may end after the text (about a fifth of the work),
which stands for "no image was given"; and the network does not see the time unless asked, because the masks tell it
(arXiv:2406.07524, sec. 3.2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from backbone.block import Block
from backbone.embed import TimeEmbedding, time_condition
from discrete.layout import Layout
from discrete.spans import SpanLogits, SpanNetwork, check_sizes


@dataclass(frozen=True, kw_only=True)
class MaskedTransformerConfig:
    """Size of the network: text_layers blocks over the text alone, then layers blocks over both spans.

    The text blocks have rotary positions; rotary gives them to the others too, beside the learned ones. time adds adaLN
    conditioning on t.
    """

    kind: Literal["masked"] = "masked"
    dim: int = 192
    text_layers: int = 2
    layers: int = 4
    heads: int = 6
    mlp_ratio: float = 4.0
    rotary: bool = False
    time: bool = False

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.text_layers < 0:
            raise ValueError(f"text_layers is {self.text_layers}; it must not be negative")


class MaskedTransformer(SpanNetwork):
    """Predicts the tokens behind the masks of [text | image] from all visible ones."""

    def __init__(self, config: MaskedTransformerConfig, layout: Layout) -> None:
        super().__init__(config, layout)
        self.config = config
        self.time = TimeEmbedding(config.dim) if config.time else None
        cond_dim = config.dim if config.time else None
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, cond_dim=cond_dim, mlp_ratio=config.mlp_ratio)
            for _ in range(config.text_layers + config.layers)
        )

    def forward(self, x_t: Tensor, t: Tensor | None = None) -> SpanLogits:
        """x_t: (B, L) [text | image] or (B, text_length) text alone; t: () or (B,), read only with config.time."""
        cut = self.layout.text_length
        length = x_t.shape[1]
        if length not in (cut, self.layout.length):
            raise ValueError(f"the sequence has {length} tokens, expected {cut} (text) or {self.layout.length} (both)")
        h = self.tokens(x_t) + self.places()[:length]  # (B, L, D)
        cond = time_condition(self.time, t, x_t)
        text, image = h[:, :cut], h[:, cut:]
        for block in self.blocks[: self.config.text_layers]:
            text = block(text, cond, rotary=self.table(0, cut))
        h, rotary = torch.cat([text, image], 1), self.table(0, length) if self.config.rotary else None
        for block in self.blocks[self.config.text_layers :]:
            h = block(h, cond, rotary=rotary)
        h = self.norm(h)
        image = self.score_image(h[:, cut:], 0) if length > cut else None
        return SpanLogits(self.score_text(h[:, :cut]), image)

    def logits(self, x_t: Tensor, t: Tensor | None = None) -> Tensor:
        """The same over the whole vocabulary: (B, L, V + 1) float32, -inf where a position may not go."""
        text, image = self(x_t, t)
        cut, v = self.layout.text_length, self.layout.text_vocab
        out = torch.full((*x_t.shape, self.layout.mask_id + 1), -torch.inf, device=x_t.device)
        out[:, :cut, :v] = text.float()
        if image is not None:
            out[:, cut:, v:-1] = image.float()
        return out
