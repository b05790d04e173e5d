"""The training objective: which side of [text | image] is given, which is hidden and which is asked for.

One shared time for both spans never shows "text visible, image all masked", which is where generation starts. So each
example of a batch gets a task, the shares being kept batch by batch; text alone is trained on the text span alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from backbone.noise import Randomness, uniform
from discrete.corrupt import draw_count, mask_exact_count, spread
from discrete.layout import Layout
from discrete.loss import exact_count_weight, masked_cross_entropy


class Spans(Protocol):
    """What a network returns: logits over each span's own tokens, `discrete.spans.SpanLogits`."""

    @property
    def text(self) -> Tensor: ...  # noqa: D102
    @property
    def image(self) -> Tensor | None: ...  # noqa: D102


Network = Callable[[Tensor, Tensor], Spans]
"""(x_t: (B, L), t: (B,)) -> logits of both spans."""


@dataclass(frozen=True, kw_only=True)
class TaskMix:
    """Shares of the tasks (they are normalised) and weights of the losses beside the image's, which is 1."""

    text_to_image: float = 0.45
    image_to_text: float = 0.30
    joint: float = 0.15  # both sides masked, each by its own count
    hidden_text: float = 0.10  # the image alone: the null branch of guidance
    text_weight: float = 0.3
    text_alone_weight: float = 0.3
    text_alone: float = 1.0  # captions on the text span alone, per example of the batch; 0 leaves them out
    image_weighting: Literal["maskgit", "bound"] = "maskgit"  # bound: the image's loss is its likelihood bound, too

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if name != "image_weighting" and getattr(self, name) < 0:
                raise ValueError(f"tasks.{name} is {getattr(self, name)}; it must not be negative")
        if not sum(self.shares()):
            raise ValueError(
                "all task shares are 0; give one of text_to_image, image_to_text, joint, hidden_text a share"
            )

    def shares(self) -> tuple[float, float, float, float]:
        """Text to image, image to text, joint, hidden text; not normalised."""
        return self.text_to_image, self.image_to_text, self.joint, self.hidden_text


class Corrupted(NamedTuple):
    """x_t (B, L); weight (B, L) of each token's -log p, 0 where it is not asked for; t (B,), the share masked."""

    x_t: Tensor
    weight: Tensor
    t: Tensor


class Losses(NamedTuple):
    """total is minimised; the others are nats per token of their span, weighted as they were asked for. All ()."""

    total: Tensor
    image: Tensor
    text: Tensor
    text_alone: Tensor


def corrupt_evenly(x: Tensor, *, mask_id: int, generator: Randomness) -> Corrupted:
    """Mask an exact, uniformly drawn count l of each span: weights 1 / l make the loss the bound over the length.

    x: (B, L) int64, of one modality.
    """
    length = x.shape[1]
    count = draw_count(torch.full((len(x),), length, device=x.device), generator, even=True)
    x_t = mask_exact_count(x, count, mask_id=mask_id, generator=generator)
    masked = x_t == mask_id
    return Corrupted(x_t, masked * exact_count_weight(masked)[:, None] / length, count / length)


def corrupt_image(image: Tensor, *, mask_id: int, generator: Randomness) -> Corrupted:
    """Mask a share cos(pi/2 u), u uniform, of each image: most of it mostly (MaskGIT, arXiv:2202.04200, sec. 3.1).

    Every masked token weighs 1 / Li, unlike in the bound, which spends as much on the last few tokens as on the first.
    image: (B, Li) int64.
    """
    length = image.shape[1]
    u = spread(len(image), generator, image.device)
    count = (torch.cos(0.5 * math.pi * u) * length).ceil().clamp(1, length).long()
    x_t = mask_exact_count(image, count, mask_id=mask_id, generator=generator)
    return Corrupted(x_t, (x_t == mask_id).double() / length, count / length)


def draw_tasks(mix: TaskMix, batch: int, generator: Randomness) -> Tensor:
    """A task 0 .. 3 for each example, in the order of `TaskMix.shares`, each within one example of its share: (B,)."""
    edges = torch.tensor(mix.shares(), dtype=torch.float64).cumsum(0)
    start = uniform((batch,), generator)[0].cpu()
    u = (torch.arange(batch) + start) / batch * edges[-1]
    return torch.searchsorted(edges, u, right=True).clamp_max(3)


def corrupt(x: Tensor, layout: Layout, mix: TaskMix, generator: Randomness) -> Corrupted:
    """Give each pair a task, hide what it hides and mask what it asks for. x: (B, L) [text | image]."""
    task = draw_tasks(mix, len(x), generator).to(x.device)[:, None]  # (B, 1)
    text = corrupt_evenly(x[:, layout.text], mask_id=layout.mask_id, generator=generator)
    mask_image = corrupt_image if mix.image_weighting == "maskgit" else corrupt_evenly
    image = mask_image(x[:, layout.image], mask_id=layout.mask_id, generator=generator)
    asks_text, asks_image = (task == 1) | (task == 2), task != 1
    hidden = torch.full_like(text.x_t, layout.mask_id)
    shown = torch.where(asks_text, text.x_t, torch.where(task == 3, hidden, x[:, layout.text]))
    x_t = torch.cat([shown, torch.where(asks_image, image.x_t, x[:, layout.image])], 1)
    weight = torch.cat([asks_text * text.weight, asks_image * image.weight], 1)
    return Corrupted(x_t, weight, (x_t == layout.mask_id).double().mean(1))


def losses(
    network: Network, x: Tensor, layout: Layout, mix: TaskMix, generator: Randomness, texts: Tensor | None = None
) -> Losses:
    """One step's losses of pairs x (B, L): the task mix, and texts on the text span alone.

    Those are the first captions of the pairs, and texts (T, text_length) that belong to no picture.
    """
    pair = corrupt(x, layout, mix, generator)
    logits = network(pair.x_t, pair.t.float())
    assert logits.image is not None
    text = masked_cross_entropy(logits.text, x[:, layout.text], pair.weight[:, layout.text]).mean()
    codes = x[:, layout.image] - layout.text_vocab
    image = masked_cross_entropy(logits.image, codes, pair.weight[:, layout.image]).mean()
    total, alone = image + mix.text_weight * text, torch.zeros_like(text)
    captions = x[torch.arange(round(mix.text_alone * len(x))) % len(x), layout.text]
    single = captions if texts is None else torch.cat([captions, texts])
    if len(single):
        masked = corrupt_evenly(single, mask_id=layout.mask_id, generator=generator)
        alone = masked_cross_entropy(network(masked.x_t, masked.t.float()).text, single, masked.weight).mean()
        total = total + mix.text_alone_weight * alone
    return Losses(total, image, text, alone)
