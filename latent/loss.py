"""Training: at which times, with what weight, and the error of the network there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from backbone.noise import Randomness, uniform
from latent.predict import Cond, Network, Prediction, corrupt, gains, per_item, target
from latent.schedule import Schedule

TimeKind = Literal["uniform", "logit_normal"]
Weighting = Literal["none", "simple", "min_snr"]

_NEAREST = 2.0**-53
"""Training times keep this distance from 0 and 1, where rates and logits may be infinite."""


def sample_times(
    kind: TimeKind,
    shape: Sequence[int],
    generator: Randomness,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    low_discrepancy: bool = False,
) -> Tensor:
    """Draw training times in (0, 1), float64, on the generator's device.

        uniform: t = u;   logit_normal: t = sigmoid(mean + std n), n ~ N(0, 1) (arXiv:2403.03206, section 3.1)

    low_discrepancy: one u in each of B equal strata, in random order, which spreads the batch evenly (the aim of the
    sampler of arXiv:2107.00630) while each time keeps its distribution; it needs a single generator. A resolution shift
    is applied after, by `latent.grid.shift`. Raises ValueError for std <= 0 and for low_discrepancy with one generator
    per item.
    """
    u = _spread(shape, generator) if low_discrepancy else uniform(shape, generator)
    u = u.clamp(_NEAREST, 1 - _NEAREST)
    match kind:
        case "uniform":
            return u
        case "logit_normal":
            if not 0 < std < math.inf:
                raise ValueError(f"logit_normal times with std = {std}, expected std > 0; the usual choice is 1")
            return torch.sigmoid(mean + std * torch.special.ndtri(u))
        case _:
            assert_never(kind)


def _spread(shape: Sequence[int], generator: Randomness) -> Tensor:
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            "low-discrepancy times tie the batch together, but one generator per item was given; "
            "pass a single generator or low_discrepancy=False"
        )
    count = math.prod(shape)
    strata = torch.randperm(count, generator=generator, device=generator.device).reshape(tuple(shape))
    return (strata + uniform(shape, generator)) / count


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the network learns: its path, its target, and the weight of each time.

    weighting: "none", the squared error of the output itself; "simple", that of eps (arXiv:2006.11239, eq. 14);
    "min_snr", that of x times min(SNR, gamma) (arXiv:2303.09556).
    """

    schedule: Schedule
    prediction: Prediction
    weighting: Weighting = "none"
    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"min-SNR gamma is {self.gamma}, expected gamma > 0; the usual choice is 5")

    def weight(self, t: Tensor) -> Tensor:
        """Return the factor of the output's squared error, shaped like t.

        An output error e means errors gain_x e of x and gain_eps e of eps, and SNR gain_x^2 = gain_eps^2. So
        min(SNR, gamma) gain_x^2 = min(gain_eps^2, gamma gain_x^2) is right for every prediction, also at SNR = 0.
        """
        if self.weighting == "none":
            return torch.ones_like(t)
        x_gain, eps_gain = gains(self.prediction, self.schedule, t)
        match self.weighting:
            case "simple":
                return eps_gain**2
            case "min_snr":
                return torch.minimum(eps_gain**2, self.gamma * x_gain**2)
            case _:
                assert_never(self.weighting)


def diffusion_loss(
    network: Network[Cond], objective: Objective, x: Tensor, cond: Cond, t: Tensor, eps: Tensor
) -> Tensor:
    """Weighted mean squared error of the network's output, one number per item.

        w(t) mean |network(alpha x + sigma eps, t, cond) - (a x + b eps)|^2

    x, eps: (B, ...); t: () or (B,). Returns (B,), float32 or wider. Given fixed t and eps this is the validation loss.
    """
    x_t = corrupt(objective.schedule, x, eps, t)
    output = network(x_t, per_item(t, x_t), cond)
    error = output.to(x_t.dtype) - target(objective.prediction, objective.schedule, x, eps, t)
    return per_item(objective.weight(t), x_t) * error.square().flatten(1).mean(1)
