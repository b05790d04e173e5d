"""Invertible steps over latents, z -> u with log |det du / dz|: couplings and masked autoregression.

Unusual: no normalisation between convolutions. Statistics over positions would tell a value of the ones behind it in an
autoregressive order, and would take from a coupling the size of what it is conditioned on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.conv import zero_

LIMIT = 2.0  # of a step's log-scales: factors from 1/7 to 7
REACH = 5.0  # of the values that a conditioner sees: what lies beyond counts as that far out


class Step(nn.Module):
    """An affine map of every value, u = z exp(log_scale) + shift, in an order that keeps it invertible."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z: (B, c, h, w). Returns u (B, c, h, w) and log |det du / dz| in nats (B,)."""
        raise NotImplementedError

    def inverse(self, u: Tensor) -> Tensor:
        """Return the z (B, c, h, w) that `forward` takes to u."""
        raise NotImplementedError


class ChannelAffine(Step):
    """A scale and a shift for each channel (the actnorm of arXiv:1807.03039, sec. 3.1, but it starts as the identity).

    u = z exp(log_scale) + shift;   log |det| = h w sum(log_scale)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, c, h, w) -> the same, and (B,)."""
        return z * self.log_scale.exp() + self.shift, self.log_scale.expand_as(z).flatten(1).sum(1)

    def inverse(self, u: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, c, h, w)."""
        return (u - self.shift) * torch.exp(-self.log_scale)


class Conditioner(nn.Module):
    """Residual convolutions that say log-scales and shifts, all zero at the start.

    It sees REACH tanh(x / REACH), so that log-scales and shifts are bounded wherever a sample goes: fed with its own
    results over hundreds of values, an autoregression would else run away now and then.

    inner: two convolutions for each block, h + b(silu(a(silu(h)))); last: to twice the channels of the latents.
    """

    def __init__(self, first: nn.Conv2d, inner: Sequence[nn.Conv2d], last: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.inner, self.last = first, nn.ModuleList(inner), last
        zero_(self.last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, inputs, h, w) -> log-scales within LIMIT and shifts, (B, c, h, w) each."""
        h = self.first(REACH * torch.tanh(x / REACH))
        for i in range(0, len(self.inner), 2):
            h = h + self.inner[i + 1](F.silu(self.inner[i](F.silu(h))))
        log_scale, shift = self.last(F.silu(h)).chunk(2, 1)
        return LIMIT * torch.tanh(log_scale / LIMIT), shift


class Coupling(Step):
    """Affine coupling (arXiv:1605.08803, eq. 9, with the masks of sec. 3.4).

        u = b z + (1 - b) (z exp(s(b z)) + t(b z));   log |det| = sum((1 - b) s)

    b: a checkerboard of positions, or half of the channels; `odd` takes the other half. Where a checkerboard of one
    position keeps nothing, the step is an affine map of constants.
    """

    def __init__(self, latents: int, channels: int, blocks: int, *, checkered: bool, odd: bool) -> None:
        super().__init__()
        self.checkered, self.odd = checkered, odd
        first = nn.Conv2d(2 * latents, channels, 3, padding=1)  # of what is kept, and of the mask itself
        inner = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2 * blocks)]
        self.conditioner = Conditioner(first, inner, nn.Conv2d(channels, 2 * latents, 3, padding=1))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, c, h, w) -> the same, and (B,)."""
        log_scale, shift = self._terms(z)
        return z * log_scale.exp() + shift, log_scale.flatten(1).sum(1)

    def inverse(self, u: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, c, h, w), in one pass: what is kept is the same in u and z."""
        log_scale, shift = self._terms(u)
        return (u - shift) * torch.exp(-log_scale)

    def _terms(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log-scales and shifts, zero where a value is kept."""
        kept = self._kept(z)
        log_scale, shift = self.conditioner(torch.cat([kept * z, kept.expand_as(z)], 1))
        return (1 - kept) * log_scale, (1 - kept) * shift

    def _kept(self, z: Tensor) -> Tensor:
        """The mask b: (1, 1, h, w) or (1, c, 1, 1), ones and zeros."""
        channels, height, width = z.shape[1:]
        if self.checkered:
            rows, columns = torch.arange(height, device=z.device), torch.arange(width, device=z.device)
            half = (rows[:, None] + columns).view(1, 1, height, width) % 2
        else:
            half = (torch.arange(channels, device=z.device) >= channels / 2).view(1, channels, 1, 1)
        return (half.bool() ^ self.odd).to(z.dtype)


class MaskedConv2d(nn.Conv2d):
    """A convolution that looks back only (arXiv:1601.06759, sec. 3.4): rows above, columns to the left and, at its own
    position, features of lower rank, or of the same rank too where `strict` is false.

    ranks_in, ranks_out: (features,) integers, the channel of the latents that each feature stands for.
    """

    mask: Tensor

    def __init__(self, ranks_in: Tensor, ranks_out: Tensor, *, strict: bool) -> None:
        super().__init__(len(ranks_in), len(ranks_out), 3, padding=1)
        mask = torch.zeros(3, 3, dtype=torch.bool)
        mask[0], mask[1, 0] = True, True
        mask = mask.repeat(len(ranks_out), len(ranks_in), 1, 1)
        behind = ranks_out[:, None] - ranks_in
        mask[:, :, 1, 1] = behind > 0 if strict else behind >= 0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        return F.conv2d(input, self.weight * self.mask, self.bias, padding=1)


class Autoregression(Step):
    """Masked autoregressive flow (arXiv:1705.07057, sec. 3), over all values of the latents one after the other.

        u_i = z_i exp(s_i) + t_i,   s_i and t_i of z_1 ... z_{i-1};   log |det| = sum(s)

    The order is that of the rows, of the columns in a row and of the channels at a position; `turned` is the reverse,
    so that a pair of steps sees both ways, also what one order's masked convolutions miss to the upper right. Density
    takes one pass, the inverse at most c h w passes of the same cost.
    """

    def __init__(self, latents: int, channels: int, blocks: int, *, turned: bool) -> None:
        super().__init__()
        self.turned = turned
        ranks = torch.arange(latents)
        hidden = torch.arange(channels) * latents // channels
        first = MaskedConv2d(ranks, hidden, strict=True)
        inner = [MaskedConv2d(hidden, hidden, strict=False) for _ in range(2 * blocks)]
        self.conditioner = Conditioner(first, inner, MaskedConv2d(hidden, ranks.repeat(2), strict=False))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, c, h, w) -> the same, and (B,)."""
        z = self._ordered(z)
        log_scale, shift = self.conditioner(z)
        return self._ordered(z * log_scale.exp() + shift), log_scale.flatten(1).sum(1)

    def inverse(self, u: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, c, h, w), by repeated passes over all values at once (Jacobi's, arXiv:2002.03629).

        After k passes the first k values are right for good, and once a pass changes nothing all are.
        """
        u = self._ordered(u)
        z = torch.zeros_like(u)
        for _ in range(u[0].numel()):
            log_scale, shift = self.conditioner(z)
            found = (u - shift) * torch.exp(-log_scale)
            found = torch.where(found.isfinite(), found, 0)  # a wild guess of a later value, which has its turn yet
            if torch.equal(found, z):
                break
            z = found
        return self._ordered(z)

    def _ordered(self, z: Tensor) -> Tensor:
        """Into the order of this step, or back."""
        return z.flip((1, 2, 3)) if self.turned else z
