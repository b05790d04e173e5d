"""Training: the weight of each time, and the error of the network there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from latent.predict import Cond, Network, Prediction, ask, corrupt, gains, per_item, target
from latent.schedule import Schedule

Weighting = Literal["none", "simple", "elbo", "min_snr", "edm", "p2"]
_USUAL = {"min_snr": 5.0, "p2": 1.0}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the network learns: its path, its target, and the weight of each time.

    weighting, as a factor of the squared error of one estimate:
        "none"     of the output itself: 1
        "simple"   of eps: 1 (arXiv:2006.11239, eq. 14)
        "elbo"     of eps: -d log_snr / dt / 2, in uniform times the bound in nats per value (arXiv:2107.00630, eq. 18)
        "min_snr"  of x: min(SNR, gamma) (arXiv:2303.09556, section 3.4)
        "edm"      of x: 1 + SNR, that is 1 of the output for prediction "edm" (arXiv:2206.00364, table 1)
        "p2"       of eps: 1 / (1 + SNR)^gamma (arXiv:2204.00227, eq. 8 with k = 1)
    gamma: None is the usual choice, 5 for min_snr and 1 for p2.
    """

    schedule: Schedule
    prediction: Prediction
    weighting: Weighting = "none"
    gamma: float | None = None

    def __post_init__(self) -> None:
        if self.gamma is not None and not 0 < self.gamma < math.inf:
            raise ValueError(
                f"gamma is {self.gamma}, expected gamma > 0; the usual choice is 5 for min_snr and 1 for p2"
            )

    def weight(self, t: Tensor) -> Tensor:
        """Return the factor of the output's squared error, shaped like t.

        An output error e means errors gain_x e of x and gain_eps e of eps, and SNR gain_x^2 = gain_eps^2. So
        min(SNR, gamma) gain_x^2 = min(gain_eps^2, gamma gain_x^2) is right for every prediction, also at SNR = 0, and
        (1 + SNR) gain_x^2 = gain_x^2 + gain_eps^2.
        """
        if self.weighting == "none":
            return torch.ones_like(t)
        x_gain, eps_gain = gains(self.prediction, self.schedule, t)
        gamma = _USUAL.get(self.weighting, 1.0) if self.gamma is None else self.gamma
        match self.weighting:
            case "simple":
                return eps_gain**2
            case "elbo":
                alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
                d_alpha, d_sigma = self.schedule.rates(t)
                return (alpha * d_sigma - sigma * d_alpha) / (alpha * sigma) * eps_gain**2
            case "min_snr":
                return torch.minimum(eps_gain**2, gamma * x_gain**2)
            case "edm":
                return x_gain**2 + eps_gain**2
            case "p2":
                return eps_gain**2 * torch.exp(-gamma * torch.nn.functional.softplus(self.schedule.log_snr(t)))
            case _:
                assert_never(self.weighting)


def diffusion_loss(
    network: Network[Cond], objective: Objective, x: Tensor, cond: Cond, t: Tensor, eps: Tensor
) -> Tensor:
    """Weighted mean squared error of the network's output, one number per item.

        w(t) mean |network(alpha x + sigma eps, t, cond) - (a x + b eps)|^2

    x, eps: (B, ...); t: () or (B,), float64 where the path ends in noise alone, so that t near 1 stays below it. eps is
    noise, or for flows from picture to picture the other picture. Returns (B,), float32 or wider. Given fixed t and eps
    this is the validation loss.
    """
    x_t = corrupt(objective.schedule, x, eps, t)
    output = ask(network, objective.prediction, objective.schedule, x_t, t, cond)
    error = output.to(x_t.dtype) - target(objective.prediction, objective.schedule, x, eps, t)
    return per_item(objective.weight(t), x_t) * error.square().flatten(1).mean(1)
