"""The second player of stage one: a network that judges patches of pictures, and its losses in one module.

Unusual: nothing moves while a step is made of micro-batches. What a step changes beside the parameters (LeCam's
averages, the vectors of spectral normalisation) moves in `settle`, once, so that the mean over k micro-batches is one
batch. Normalisation is by groups of one picture, since statistics of a batch would mix the items and the players.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from backbone.conv import WideGroupNorm
from backbone.noise import Randomness, uniform
from tokenizer.adversarial import (
    Adversarial,
    CriticLoss,
    between_penalty,
    critic_terms,
    generator_term,
    lecam_term,
    r1_penalty,
)
from tokenizer.ranks import summed

SLOPE = 0.2  # of the leaky ReLU (arXiv:1611.07004, app. 6.1.2)
KERNEL = 4
WIDEST = 8  # times `channels`


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """Network and losses of the second player.

    layers: convolutions that halve the sides; one logit sees 16, 34, 70, 142 pixels of a side with 1, 2, 3, 4 of them
    (in a smaller picture, all of it).
    penalty: of the wasserstein kind the weight of the gradient penalty (10 where none is given), of the others that of
    R1 (none). lecam: weight of LeCam regularisation; its averages start at 0, so a short run needs a lower lecam_decay.
    """

    kind: Adversarial = "hinge"
    channels: int = 64
    layers: int = 2
    spectral: bool = False  # spectral norm of every convolution (arXiv:1802.05957), and no other norm
    penalty: float | None = None
    lecam: float = 0.0
    lecam_decay: float = 0.999  # per step

    def __post_init__(self) -> None:
        if self.channels < 8 or self.channels % 8:
            raise ValueError(f"channels is {self.channels}, expected a multiple of 8 (groups) from 8 up. Try 64.")
        if self.layers < 1:
            raise ValueError(f"layers is {self.layers}, expected at least 1. Use 2 for small images, 3 for large.")
        if self.penalty is not None and not 0 <= self.penalty < float("inf"):
            raise ValueError(f"penalty is {self.penalty}, expected 0 or a positive number. Leave it out for the usual.")
        if not 0 <= self.lecam < float("inf"):
            raise ValueError(f"lecam is {self.lecam}, expected 0 (none) or a positive number. Try 0.001.")
        if not self.lecam and self.lecam_decay != type(self).lecam_decay:
            raise ValueError(f"lecam_decay is {self.lecam_decay}, but lecam is 0. Give lecam, or leave it out.")
        if not 0 <= self.lecam_decay < 1:
            raise ValueError(f"lecam_decay is {self.lecam_decay}, expected 0 <= lecam_decay < 1. Use 0.999.")

    @property
    def penalty_weight(self) -> float:
        """The weight that `penalty` stands for."""
        if self.penalty is None:
            return 10.0 if self.kind == "wasserstein" else 0.0
        return self.penalty

    @property
    def smallest(self) -> int:
        """Shortest side that leaves a logit: after the halvings two convolutions take one position each."""
        return 3 * 2**self.layers


class SpectralConv(nn.Conv2d):
    """Convolution whose weight, as a matrix (outputs, inputs k k), has spectral norm 1 (arXiv:1802.05957, alg. 1).

        W / sigma,   sigma = u^T W v

    u and v move in `iterate` only, and are constants for the gradient.
    """

    left: Tensor
    right: Tensor

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, KERNEL, stride, padding=1)
        self.register_buffer("left", F.normalize(torch.randn(outputs), dim=0))
        self.register_buffer("right", torch.zeros(inputs * KERNEL**2))
        self.iterate(16)  # near enough to start from; one round for each step keeps up

    @torch.no_grad()
    def iterate(self, rounds: int = 1) -> None:
        """Rounds of the power method."""
        matrix = self.weight.flatten(1)  # (outputs, inputs k k)
        for _ in range(rounds):
            self.right.copy_(F.normalize(matrix.T @ self.left, dim=0))
            self.left.copy_(F.normalize(matrix @ self.right, dim=0))

    def normalised(self) -> Tensor:
        """The weight that acts."""
        outer = torch.outer(self.left, self.right)  # no matrix product: autocast would round sigma
        return self.weight / (outer * self.weight.flatten(1)).sum()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """(B, inputs, h, w) -> (B, outputs, h', w')."""
        return F.conv2d(input, self.normalised(), self.bias, self.stride, self.padding)


class PatchCritic(nn.Module):
    """Logits of overlapping patches: PatchGAN (arXiv:1611.07004, sec. 3.2 and app. 6.1.2) with norms by groups.

    (B, 3, H, W) in [-1, 1] -> (B, H / 2^layers - 2, W / 2^layers - 2), rounded down. Weights start at N(0, 0.02), so
    that logits start near 0; under spectral norm they start as torch has them, of norm 1.
    """

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * min(2**depth, WIDEST) for depth in range(config.layers + 1)]
        parts: list[nn.Module] = [self._conv(3, widths[0], 2), nn.LeakyReLU(SLOPE)]
        for depth in range(1, config.layers + 1):
            parts.append(self._conv(widths[depth - 1], widths[depth], 2 if depth < config.layers else 1))
            parts += [] if config.spectral else [WideGroupNorm(8, widths[depth])]
            parts.append(nn.LeakyReLU(SLOPE))
        self.net = nn.Sequential(*parts, self._conv(widths[-1], 1, 1))

    def _conv(self, inputs: int, outputs: int, stride: int) -> nn.Conv2d:
        if self.config.spectral:  # its scale is its own
            return SpectralConv(inputs, outputs, stride)
        conv = nn.Conv2d(inputs, outputs, KERNEL, stride, padding=1)
        nn.init.normal_(conv.weight, std=0.02)
        return conv

    def forward(self, x: Tensor) -> Tensor:
        """Logits in float32 or wider. Raise ValueError where the picture is too small for one logit."""
        if min(x.shape[-2:]) < self.config.smallest:
            raise ValueError(
                f"pictures of {x.shape[-2]} x {x.shape[-1]} are too small for a critic of layers = "
                f"{self.config.layers}, expected sides of {self.config.smallest} pixels or more. Lower layers."
            )
        logits = self.net(x).squeeze(1)  # (B, h, w)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Critic(nn.Module):
    """The critic with its loss: all that trains on pictures without a gradient."""

    averages: Tensor
    pending: Tensor

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        self.config = config
        self.net = PatchCritic(config)
        self.register_buffer("averages", torch.zeros(2))  # of logits on real and on made pictures
        self.register_buffer("pending", torch.zeros(3), persistent=False)  # their sums in this step, and the count

    def forward(self, real: Tensor, fake: Tensor, generator: Randomness) -> CriticLoss:
        """The critic's loss; pictures (B, 3, H, W) in [-1, 1], both detached here; B is the same for both.

            total = real + fake + penalty_weight penalty + lecam_weight lecam

        The generator gives one number for each item where the penalty is that of wasserstein, and is left alone else.
        """
        real, fake = real.detach(), fake.detach()
        logits_real, logits_fake = self.net(torch.cat([real, fake])).chunk(2)  # one pass: no item sees another
        terms = critic_terms(logits_real, logits_fake, self.config.kind)
        penalty = lecam = logits_real.new_zeros(())
        if self.config.penalty_weight:
            penalty = self._penalty(real, fake, generator)
        if self.config.lecam:
            lecam = lecam_term(logits_real, logits_fake, self.averages)
            self._remember(logits_real, logits_fake)
        total = sum(terms) + self.config.penalty_weight * penalty + self.config.lecam * lecam
        return CriticLoss(total, *terms, penalty, lecam)

    def _penalty(self, real: Tensor, fake: Tensor, generator: Randomness) -> Tensor:
        if self.config.kind != "wasserstein":
            return r1_penalty(self.net, real)
        wide = torch.promote_types(real.dtype, torch.float32)
        share = uniform(real.shape[:1], generator, wide, real.device)
        return between_penalty(self.net, real.to(wide), fake.to(wide), share)

    @torch.no_grad()
    def _remember(self, logits_real: Tensor, logits_fake: Tensor) -> None:
        if self.training:
            sums = [logits.flatten(1).mean(1).sum() for logits in (logits_real, logits_fake)]
            self.pending += torch.stack([*sums, sums[0].new_tensor(len(logits_real))])

    @torch.no_grad()
    def settle(self) -> None:
        """End a step: spectral vectors move by a round, LeCam's averages by the items of all micro-batches and ranks.

            a <- g a + (1 - g) mean D

        All ranks call it together. Logits that are no numbers move nothing, and neither does a step without items.
        """
        for layer in self.net.net:
            if isinstance(layer, SpectralConv):
                layer.iterate()
        if not self.config.lecam:
            return
        total = summed(self.pending)
        means = total[:2] / total[2]
        moved = self.averages.lerp(means, 1 - self.config.lecam_decay)
        self.averages.copy_(torch.where(means.isfinite(), moved, self.averages))
        self.pending.zero_()

    def judge(self, fake: Tensor) -> Tensor:
        """The generator's loss of pictures (B, 3, H, W), (), with a gradient to them and none to the critic."""
        frozen = {name: parameter.detach() for name, parameter in self.net.named_parameters()}
        return generator_term(functional_call(self.net, frozen, (fake,)), self.config.kind)
