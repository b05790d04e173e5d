"""Masking paths: at time t each token is still visible with probability alpha_t.

Time runs from t = 0 (data, alpha = 1) to t = 1 (all masked, alpha = 0), as in latent.schedule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


class Schedule(ABC):
    """Probability alpha_t that a token is visible, elementwise in t, and what follows from it."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is still visible at t, decreasing from 1 to 0."""

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """d alpha_t / dt in closed form, never positive."""

    @abstractmethod
    def weight(self, t: Tensor) -> Tensor:
        """-alpha'_t / (1 - alpha_t), the weight of a masked token in the bound; infinite at t = 0."""

    @abstractmethod
    def time(self, masked: Tensor) -> Tensor:
        """The t at which a share `masked` = 1 - alpha_t of the tokens is masked, in [0, 1]."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t / (1 - alpha_t)), by which weights are compared over schedules (arXiv:2406.04329, sec. 4)."""
        alpha = self.alpha(t)
        return torch.log(alpha) - torch.log(1 - alpha)


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """alpha_t = 1 - t, the log-linear schedule of MDLM (arXiv:2406.07524, app. E.1)."""

    kind: Literal["linear"] = "linear"

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def rate(self, t: Tensor) -> Tensor:
        """-1."""
        return -torch.ones_like(t)

    def weight(self, t: Tensor) -> Tensor:
        """1 / t, without the cancellation of 1 - (1 - t)."""
        return 1 / t

    def time(self, masked: Tensor) -> Tensor:
        """The share itself."""
        return masked


@dataclass(frozen=True, kw_only=True)
class Polynomial(Schedule):
    """alpha_t = 1 - t^power (MD4, arXiv:2406.04329, table 1); power 1 is linear, above 1 tokens are masked later."""

    kind: Literal["polynomial"] = "polynomial"
    power: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.power < math.inf:
            raise ValueError(f"polynomial schedule with power {self.power}, expected a number above 0, such as 2")

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t^power."""
        return 1 - t**self.power

    def rate(self, t: Tensor) -> Tensor:
        """-power t^(power - 1)."""
        return -self.power * t ** (self.power - 1)

    def weight(self, t: Tensor) -> Tensor:
        """power / t: every power spends its bound alike over log t."""
        return self.power / t

    def time(self, masked: Tensor) -> Tensor:
        """masked^(1 / power)."""
        return masked ** (1 / self.power)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """alpha_t = 1 - cos(pi/2 (1 - t)), as in MaskGIT (arXiv:2202.04200) and MD4 (arXiv:2406.04329)."""

    kind: Literal["cosine"] = "cosine"

    def alpha(self, t: Tensor) -> Tensor:
        """1 - cos(pi/2 (1 - t))."""
        return 1 - torch.cos(0.5 * math.pi * (1 - t))

    def rate(self, t: Tensor) -> Tensor:
        """-pi/2 sin(pi/2 (1 - t))."""
        return -0.5 * math.pi * torch.sin(0.5 * math.pi * (1 - t))

    def weight(self, t: Tensor) -> Tensor:
        """pi/2 tan(pi/2 (1 - t)), written as 1 / tan(pi/2 t) so that t near 0 keeps its digits."""
        return 0.5 * math.pi / torch.tan(0.5 * math.pi * t)

    def time(self, masked: Tensor) -> Tensor:
        """1 - 2/pi acos(masked), written as 2/pi asin(masked)."""
        return 2 / math.pi * torch.asin(masked)


AnySchedule = Linear | Cosine | Polynomial
"""Every schedule that a recipe can name, told apart by `kind`."""


@dataclass(frozen=True, kw_only=True)
class Spans(Schedule):
    """Schedules of spans that stand one behind the other in a sequence and share one clock.

    Times are (..., 1) or (), or already (..., L); every result is (..., L). Serves `ancestral`, `cached` and `remask`,
    which ask for chances token by token, and the bound.
    """

    parts: tuple[AnySchedule, ...]
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.parts) != len(self.lengths) or not self.parts:
            raise ValueError(f"{len(self.parts)} schedules for {len(self.lengths)} spans: expected one for each")

    def alpha(self, t: Tensor) -> Tensor:
        """Each token's own."""
        return self._each(t, "alpha")

    def rate(self, t: Tensor) -> Tensor:
        """Each token's own."""
        return self._each(t, "rate")

    def weight(self, t: Tensor) -> Tensor:
        """Each token's own."""
        return self._each(t, "weight")

    def time(self, masked: Tensor) -> Tensor:
        """Refuse: one share does not tell the time of all spans."""
        raise ValueError("spans with schedules of their own have no time for a share of all tokens: take ancestral")

    def _each(self, t: Tensor, what: Literal["alpha", "rate", "weight"]) -> Tensor:
        wide = t.expand(*t.shape[:-1], sum(self.lengths)) if t.ndim else t.expand(sum(self.lengths))
        found = [getattr(part, what)(one) for part, one in zip(self.parts, wide.split(self.lengths, -1), strict=True)]
        return torch.cat(found, -1)
