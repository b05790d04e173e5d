"""The autoregressive baseline: the exact cost of a text, token by token, and sampling with remembered keys and values.

The network is that of the masked models under a causal mask (discrete.text_model), so that every bound of theirs has a
reference of the same size on the same data.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from backbone.noise import Randomness
from discrete.attend import causal
from discrete.predict import Sharpen
from discrete.sample import draw
from discrete.text_model import PerDocument, TextNetwork, TextTransformer


def shifted(network: TextNetwork, x: Tensor) -> Tensor:
    """What the network reads to predict x (B, L): a start symbol and all tokens but the last, (B, L).

    Where documents are packed, the start symbol stands in the place of an end, in front of the next document.
    """
    read = F.pad(x[:, :-1], (1, 0), value=network.mask_id)
    return read.masked_fill(read == network.end_id, network.mask_id) if isinstance(network, PerDocument) else read


def next_token_nll(network: TextNetwork, x: Tensor) -> Tensor:
    """-log p(x_i | x_<i) of every token, the first one included: (B, L) float32, in nats."""
    t, mask = torch.zeros((), device=x.device), causal(x.shape[1], x.device)
    logits = network(shifted(network, x), t, mask=mask)
    return F.cross_entropy(logits.float().flatten(0, 1), x.flatten(), reduction="none").view_as(x)


@torch.no_grad()
def continue_text(
    network: TextTransformer,
    prompt: Tensor,
    length: int,
    *,
    generator: Randomness,
    sharpen: Sharpen | None = None,
) -> Tensor:
    """Draw tokens one after the other behind a prompt (B, P), P = 0 for none, until there are `length`: (B, length).

    sharpen: logits (B, V) -> logits, such as temperature or top-p (`discrete.predict.sharpened`). Keys and values are
    remembered, so that each token costs one column of attention.
    """
    if prompt.shape[1] > length:
        raise ValueError(
            f"the prompt has {prompt.shape[1]} tokens, but the text is to have {length}: shorten the prompt or ask for "
            "more"
        )
    memory, x = network.memories(), prompt
    piece = F.pad(prompt, (1, 0), value=network.mask_id)  # (B, 1 + P)
    while x.shape[1] < length:
        mask = causal(piece.shape[1], x.device) if piece.shape[1] > 1 else None  # a single token sees all before it
        logits = network(piece, torch.zeros((), device=x.device), mask=mask, memory=memory)[:, -1]
        logits = logits if sharpen is None else sharpen(logits)
        piece = draw(logits[:, None], generator)  # (B, 1)
        x = torch.cat([x, piece], 1)
    return x
