"""What a text model is trained for, and what it says a text costs: one frozen configuration per objective.

An estimate of `nats` is a mean over draws in as many strata of the masked share, which is far more exact than a mean of
draws at random, and as unbiased.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from discrete.attend import check_blocks, documents, noisy_and_clean
from discrete.autoregressive import next_token_nll
from discrete.corrupt import draw_count, mask_both_ways, mask_exact_count, mask_tokens, mean_over_strata, random_places
from discrete.loss import asked_cross_entropy, exact_count_weight, sample_times
from discrete.predict import Logits
from discrete.schedule import AnySchedule, Linear
from discrete.text_model import TextNetwork, TextTransformer

Weighting = Literal["bound", "simple"]


class Objective(ABC):
    """How a network learns text."""

    reads_time: ClassVar[bool] = True  # whether a network with time conditioning is told anything by it

    @property
    def readings(self) -> int:
        """How often a training step reads each token of its texts, in one masking or another."""
        return 1

    @abstractmethod
    def loss(self, network: TextNetwork, x: Tensor, generator: torch.Generator) -> Tensor:
        """Mean nats per token of x (B, L), to descend: ()."""

    @abstractmethod
    def nats(self, network: TextNetwork, x: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Unbiased estimate (B,) float64 of -log p(x), or of an upper bound on it, from `draws` passes."""

    def check(self, length: int, *, timed: bool = False) -> None:
        """Raise ValueError where texts of a length cannot be learned, or a network with time would be told none."""
        del length
        if timed and not self.reads_time:
            raise ValueError(
                "model.time is true, but this objective has no time to tell the network: write time = false, which "
                "saves a third of the parameters"
            )

    def readable(self, length: int) -> int:
        """How many tokens of a text of that length can be read."""
        return length


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Objective):
    """Each token from those before it: no bound, the cost itself."""

    kind: Literal["autoregressive"] = "autoregressive"
    reads_time: ClassVar[bool] = False

    def loss(self, network: TextNetwork, x: Tensor, generator: torch.Generator) -> Tensor:
        """Mean of -log p(x_i | x_<i)."""
        del generator
        return next_token_nll(network, x).mean()

    def nats(self, network: TextNetwork, x: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """-log p(x), from one pass."""
        del draws, generator
        return next_token_nll(network, x).double().sum(-1)


@dataclass(frozen=True, kw_only=True)
class Masked(Objective):
    """Masked diffusion: the bound of arXiv:2406.07524, eq. 11, or a masked cross-entropy of another weight.

    exact_count masks l ~ U{1 .. L} tokens, one l from each stratum of a batch; stratified and independent let a time
    decide on each token (docs/discrete.md has their variances). weighting: `relative_weight`.
    """

    kind: Literal["masked"] = "masked"
    copies: int = 1  # maskings of each text in a step: two learn as many tokens as an autoregressive step does
    estimator: Literal["exact_count", "stratified", "independent"] = "exact_count"
    schedule: AnySchedule = field(default_factory=Linear)
    weighting: Weighting = "bound"

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise ValueError(f"copies is {self.copies}, expected at least 1 masking of each text")

    @property
    def readings(self) -> int:
        """Every copy."""
        return self.copies

    def loss(self, network: TextNetwork, x: Tensor, generator: torch.Generator) -> Tensor:
        """`copies` maskings of each text, read as one batch; of exact counts, every two ask for each token."""
        if self.estimator == "exact_count":
            pairs = x.repeat((self.copies + 1) // 2, 1)
            count = draw_count(torch.full((len(pairs),), x.shape[1], device=x.device), generator, even=True)
            both = mask_both_ways(pairs, count, mask_id=network.mask_id, generator=generator)
            x, x_t = x.repeat(self.copies, 1), torch.cat(both)[: self.copies * len(x)]
            return self._cost(network, x, x_t, self.weighting).mean() / x.shape[1]
        x = x.repeat(self.copies, 1)
        t = sample_times(self.estimator, len(x), generator).to(x.device)
        x_t = mask_tokens(self.schedule, x, t, mask_id=network.mask_id, generator=generator)
        weight = self.schedule.weight(t) * relative_weight(self.schedule.log_snr(t), self.weighting)
        weight = torch.where(x_t == network.mask_id, weight[:, None], 0)
        rows = network(x_t, t.float(), asked=weight > 0)
        return asked_cross_entropy(rows, x, weight).mean() / x.shape[1]

    def nats(self, network: TextNetwork, x: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """The bound by exact counts, whatever the training."""

        def cost(u: Tensor) -> Tensor:
            count = (u * x.shape[1]).long() + 1
            return self._cost(network, x, mask_exact_count(x, count, mask_id=network.mask_id, generator=generator))

        return mean_over_strata(cost, len(x), draws, generator, x.device)

    def logits(self, network: TextTransformer, end_id: int | None = None) -> Logits:
        """Return logits of x_t at the time at which as much is masked as is of x_t, which is what training shows.

        end_id: ends each document of x_t, none of which is masked; they are read each on its own.
        """

        def logits(x_t: Tensor, _: Tensor) -> Tensor:
            share = (x_t == network.mask_id).double().mean(-1)
            mask = None if end_id is None else documents(x_t, end_id)
            return network.logits(x_t, self.schedule.time(share).float(), mask=mask)

        return logits

    def _cost(self, network: TextNetwork, x: Tensor, x_t: Tensor, weighting: Weighting = "bound") -> Tensor:
        """Cost (B,) of texts that an exact count masks; a network with time reads the t of the masked share."""
        masked = x_t == network.mask_id
        share = masked.double().mean(-1)
        weight = exact_count_weight(masked) * relative_weight(torch.log(1 - share) - torch.log(share), weighting)
        weight = masked * weight[:, None]
        rows = network(x_t, self.schedule.time(share).float(), asked=weight > 0)
        return asked_cross_entropy(rows, x, weight)


def relative_weight(log_snr: Tensor, weighting: Weighting) -> Tensor:
    """What a weighting makes of the bound's weight at log_snr = log(alpha / (1 - alpha)), elementwise.

    On the linear schedule the bound weighs a masked token by 1 / t, where t = sigmoid(-log_snr) is the masked share.
    simple: times 2 t, whose mean over t is 1, so that every masked token weighs alike (MaskGIT, arXiv:2202.04200).
    """
    return torch.ones_like(log_snr) if weighting == "bound" else 2 * torch.sigmoid(-log_snr)


@dataclass(frozen=True, kw_only=True)
class Blocks(Objective):
    """Blocks one after the other, each by masked diffusion given those before (BD3-LM, arXiv:2503.09573).

    size 1 costs what an autoregressive model does, size L what a masked one does.
    """

    kind: Literal["blocks"] = "blocks"
    reads_time: ClassVar[bool] = False
    size: int = 8

    @property
    def readings(self) -> int:
        """Noisy, and as what the blocks behind it see."""
        return 2

    def check(self, length: int, *, timed: bool = False) -> None:
        """Refuse blocks that do not divide the text."""
        super().check(length, timed=timed)
        check_blocks(length, self.size)

    def readable(self, length: int) -> int:
        """Whole blocks."""
        return length - length % self.size

    def loss(self, network: TextNetwork, x: Tensor, generator: torch.Generator) -> Tensor:
        """One count of masks for each block of each text."""
        blocks = x.reshape(-1, self.size)  # (B L / size, size)
        count = draw_count(torch.full((len(blocks),), self.size, device=x.device), generator, even=True)
        return self._cost(network, x, count, generator).mean() / x.shape[1]

    def nats(self, network: TextNetwork, x: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """The sum of the bounds of all blocks."""

        def cost(u: Tensor) -> Tensor:
            return self._cost(network, x, (u * self.size).long() + 1, generator)

        return mean_over_strata(cost, x.numel() // self.size, draws, generator, x.device)

    def _cost(self, network: TextNetwork, x: Tensor, count: Tensor, generator: torch.Generator) -> Tensor:
        """Cost (B,) of texts whose blocks have `count` (B L / size,) masks each."""
        length = x.shape[1]
        hidden = random_places((len(count), self.size), generator, x.device) < count[:, None]  # (B L / size, size)
        x_t = torch.where(hidden.view_as(x), network.mask_id, x)
        mask = noisy_and_clean(length, self.size, x.device)
        positions = torch.arange(length, device=x.device).repeat(2)
        t = torch.zeros((), device=x.device)
        weight = (hidden * (self.size / count)[:, None]).view_as(x)
        asked = torch.cat([weight > 0, torch.zeros_like(x, dtype=torch.bool)], 1)
        rows = network(torch.cat([x_t, x], 1), t, mask=mask, positions=positions, asked=asked)
        return asked_cross_entropy(rows, x, weight)
