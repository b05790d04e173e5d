"""At which times to train: each law is its quantile function, so that even draws of u stay even draws of times."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from backbone.noise import Randomness, uniform
from latent.grid import at_log_snr, shift
from latent.schedule import Schedule

_NEAREST = 2.0**-53
"""Training times keep this distance from 0 and 1, where rates and logits may be infinite."""


class TimeLaw(ABC):
    """A distribution of training times on (0, 1)."""

    @abstractmethod
    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return the time below which a share u of the draws lies; u: float64 in (0, 1), any shape."""


@dataclass(frozen=True, kw_only=True)
class UniformTimes(TimeLaw):
    """t = u."""

    kind: Literal["uniform"] = "uniform"

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return u."""
        del schedule
        return u


@dataclass(frozen=True, kw_only=True)
class LogitNormalTimes(TimeLaw):
    """t = sigmoid(mean + std n), n ~ N(0, 1): the middle of a straight path (arXiv:2403.03206, eq. 19)."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _positive("logit_normal times with std", self.std, "1")

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return sigmoid(mean + std ndtri(u))."""
        del schedule
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True, kw_only=True)
class LogNormalTimes(TimeLaw):
    """log(sigma_t / alpha_t) = mean + std n, n ~ N(0, 1) (arXiv:2206.00364, table 1), cut at the ends of the path.

    The default mean is that of EDM, -1.2 for pixels of standard deviation 0.5, for data of unit variance: -1.2 + log 2.
    """

    kind: Literal["log_normal"] = "log_normal"
    mean: float = -0.5
    std: float = 1.2

    def __post_init__(self) -> None:
        _positive("log_normal times with std", self.std, "1.2")

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return the time at which log(sigma / alpha) = mean + std ndtri(u)."""
        return at_log_snr(schedule, -2 * (self.mean + self.std * torch.special.ndtri(u)))


@dataclass(frozen=True, kw_only=True)
class ModeTimes(TimeLaw):
    """t = 1 - u - scale (cos^2(pi u / 2) - 1 + u): heavy in the middle, light at the ends (arXiv:2403.03206, eq. 20).

    scale: from -1 to 2 / (pi - 2) = 1.75, where the map stops being monotone; 0 is uniform, 1.29 the paper's best.
    """

    kind: Literal["mode"] = "mode"
    scale: float = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise ValueError(
                f"mode times with scale = {self.scale}, expected -1 <= scale <= 1.75; the usual choice is 1.29"
            )

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return the increasing form of the map: that of 1 - u."""
        del schedule
        return u - self.scale * (torch.sin(math.pi / 2 * u) ** 2 - u)


AnyTimes = UniformTimes | LogitNormalTimes | LogNormalTimes | ModeTimes
"""Every law of training times that a recipe can name, told apart by `kind`."""


def sample_times(
    law: TimeLaw,
    schedule: Schedule,
    shape: Sequence[int],
    generator: Randomness,
    *,
    factor: float = 1.0,
    low_discrepancy: bool = False,
) -> Tensor:
    """Draw training times in (0, 1), float64, on the generator's device.

    factor: the resolution shift of `latent.grid.shift`, applied to the drawn times. low_discrepancy: one u in each of B
    equal strata, in random order, which spreads the batch evenly (the aim of the sampler of arXiv:2107.00630) while
    each time keeps its distribution; it needs a single generator. Raises ValueError with one generator per item.
    """
    u = _spread(shape, generator) if low_discrepancy else uniform(shape, generator)
    t = law.quantile(u.clamp(_NEAREST, 1 - _NEAREST), schedule)
    return shift(t, factor).clamp(_NEAREST, 1 - _NEAREST)


def _spread(shape: Sequence[int], generator: Randomness) -> Tensor:
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            "low-discrepancy times tie the batch together, but one generator per item was given; "
            "pass a single generator or low_discrepancy=False"
        )
    count = math.prod(shape)
    strata = torch.randperm(count, generator=generator, device=generator.device).reshape(tuple(shape))
    return (strata + uniform(shape, generator)) / count


def _positive(what: str, value: float, usual: str) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{what} = {value}, expected std > 0; the usual choice is {usual}")
