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


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """alpha_t = 1 - t, the log-linear schedule of MDLM (arXiv:2406.07524, sec. 5)."""

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
