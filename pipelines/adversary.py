"""The second player of an autoencoder: its settings, and the weight of what the autoencoder loses against it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from backbone.noise import Randomness
from pipelines.task import check_betas
from tokenizer.adversarial import CriticLoss, adaptive_weight, gradients_at
from tokenizer.discriminator import Critic, CriticConfig
from tokenizer.ranks import summed


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """A critic of patches that trains against the autoencoder.

    weight: of the adversarial term; adaptive: times what makes it pull at the decoder's last layer as hard as the
    distance to the picture does (arXiv:2012.09841, eq. 7), of the step before. start: share of the steps after which
    the critic begins. learning_rate: of the critic; None is the autoencoder's.
    """

    critic: CriticConfig = field(default_factory=CriticConfig)
    weight: float = 0.5
    adaptive: bool = True
    start: float = 0.3
    learning_rate: float | None = None
    betas: tuple[float, float] = (0.5, 0.9)

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight is {self.weight}, expected a number above 0. Use 0.5, or 0.1 without `adaptive`.")
        if not 0 <= self.start < 1:
            raise ValueError(
                f"start is {self.start}, expected a share of the steps below 1: with more the critic would begin after "
                "the last step. Use 0.3."
            )
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}, expected a number above 0. Leave it out.")
        check_betas(self.betas, "adversarial.betas")


class Opponent(nn.Module):
    """The critic with its loss, and the weight of the adversarial term.

    Gradients at the decoder's last layer add up over the micro-batches and ranks of a step; `settle` makes the weight
    of them that the next step uses. Before the first of them it is 0.
    """

    adaptive: Tensor
    pulls: Tensor

    def __init__(self, config: AdversarialConfig, last: Tensor) -> None:
        """last: the decoder's last weight."""
        super().__init__()
        self.config = config
        self.critic = Critic(config.critic)
        self.register_buffer("adaptive", torch.tensor(0.0 if config.adaptive else 1.0))
        self.register_buffer("pulls", last.new_zeros(2, *last.shape), persistent=False)

    def forward(self, real: Tensor, fake: Tensor, generator: Randomness) -> CriticLoss:
        """The critic's loss of pictures (B, 3, H, W), both detached."""
        return self.critic(real, fake, generator)

    def term(self, fake: Tensor, closeness: Tensor, last: Tensor) -> Tensor:
        """The weighted adversarial term () of pictures (B, 3, H, W) whose distance to the true ones is closeness ()."""
        adversarial = self.critic.judge(fake)
        if self.config.adaptive:
            self.pulls += torch.stack(gradients_at([closeness, adversarial], last)).detach()
        return self.config.weight * self.adaptive * adversarial

    @torch.no_grad()
    def settle(self) -> None:
        """End a step that was taken."""
        self.critic.settle()
        if self.config.adaptive:
            found = adaptive_weight(*summed(self.pulls))
            self.adaptive.copy_(torch.where(found.isfinite(), found, self.adaptive))
            self.pulls.zero_()
