"""What pairs cost under an autoregressive model of pictures, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from discrete.picture_prior import PicturePrior, next_token_nll
from pipelines.hardware import device_of

BATCH = 256


@dataclass(frozen=True)
class PairCost:
    """-log p of each text, padding included, and of its codes given it: (N,) float64 each; `tokens` of each text."""

    text: Tensor
    image: Tensor
    tokens: Tensor  # (N,), without the padding
    image_length: int

    @property
    def image_per_token(self) -> float:
        """Nats for each code."""
        return float(self.image.mean()) / self.image_length

    @property
    def text_per_token(self) -> float:
        """All nats over caption and end tokens. Padding follows from the end: its nats count, its tokens do not."""
        return float(self.text.sum() / self.tokens.sum())


@torch.no_grad()
def pair_cost(network: PicturePrior, x: Tensor, pad_id: int, *, hidden: bool = False) -> PairCost:
    """Price sequences x (N, L), in batches; hidden: without their texts, whose costs then say nothing."""
    layout, text, image = network.layout, list[Tensor](), list[Tensor]()
    for part in x.split(BATCH):
        part = part.to(device_of(network))
        without = torch.full((len(part),), hidden, device=part.device)
        nats = next_token_nll(network, part, layout, without)
        text.append(nats.text.double().sum(1).cpu())
        image.append(nats.image.double().sum(1).cpu())
    tokens = (x[:, layout.text] != pad_id).sum(1).cpu()
    return PairCost(torch.cat(text), torch.cat(image), tokens, layout.image_length)
