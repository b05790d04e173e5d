"""Gaussian probability paths x_t = alpha_t x + sigma_t eps, with eps ~ N(0, I).

Time runs from t = 0 (data) to t = 1 (noise). A schedule is an immutable value and its own configuration: alpha and
sigma (with their rates) are all it defines, and everything else in this package is derived from them. The formulas are
written so that neither end of the path loses digits: alpha and sigma reach 0 exactly where they should.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Give a coefficient of shape () or (B,) the trailing axes, the device and the precision to multiply `like`.

    like: (B, ...). Returns (1, 1, ...) or (B, 1, ...) in the dtype of `like`, but float32 at least: coefficients are
    never rounded to half precision.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    return value.to(dtype).to(like.device).reshape(-1, *(1,) * (like.ndim - 1))


class Schedule(ABC):
    """Signal scale alpha_t >= 0 and noise scale sigma_t >= 0, elementwise in t.

    Times are float32 or wider, in [0, 1], of any shape; every result has the shape and the dtype of t.
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale, non-increasing in t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale, increasing in t."""

    @abstractmethod
    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (d alpha_t / dt, d sigma_t / dt)."""

    def half_log_snr(self, t: Tensor) -> Tensor:
        """lambda_t = log(alpha_t / sigma_t), strictly decreasing in t; +inf where sigma = 0, -inf where alpha = 0."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2) = 2 lambda_t."""
        return 2 * self.half_log_snr(t)


@dataclass(frozen=True, kw_only=True)
class Flow(Schedule):
    """Straight path of rectified flow (arXiv:2209.03003): alpha = 1 - t, sigma = t.

    In that paper and in flow matching (arXiv:2210.02747) time runs the other way, from noise at 0 to data at 1.
    """

    kind: Literal["flow"] = "flow"

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """t."""
        return t.clone()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(-1, 1)."""
        return -torch.ones_like(t), torch.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class VP(Schedule):
    """Variance preserving path with linear beta, the continuous limit of DDPM (arXiv:2011.13456, appendix C).

    beta_t = beta_min + t (beta_max - beta_min),  I_t = int_0^t beta,  alpha = exp(-I_t / 2),  sigma^2 = 1 - alpha^2.
    The usual DDPM betas from 1e-4 to 0.02 in 1,000 steps are beta_min = 0.1 and beta_max = 20.
    """

    kind: Literal["vp"] = "vp"
    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _increasing("VP", beta_min=self.beta_min, beta_max=self.beta_max, usual="0.1 and 20")

    def alpha(self, t: Tensor) -> Tensor:
        """exp(-I_t / 2)."""
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - exp(-I_t))."""
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(-beta_t alpha / 2, beta_t alpha^2 / (2 sigma)); the second is infinite at t = 0."""
        half_beta = 0.5 * (self.beta_min + (self.beta_max - self.beta_min) * t)
        alpha = self.alpha(t)
        return -half_beta * alpha, half_beta * alpha**2 / self.sigma(t)

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Variance preserving path alpha = cos(u) / cos(c), where u runs from c to pi / 2 (arXiv:2102.09672, eq. 17).

    offset: the s of iDDPM (0.008 there; c = s/(1+s) pi/2) keeps the first steps from being too small. The default 0 is
    the trigonometric path alpha = cos(pi t / 2), sigma = sin(pi t / 2).
    """

    kind: Literal["cosine"] = "cosine"
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.offset < 1:
            raise ValueError(f"Cosine: offset is {self.offset}, expected 0 <= offset < 1; use 0, or 0.008 as in iDDPM")

    @property
    def _speed(self) -> float:
        return 0.5 * math.pi / (1 + self.offset)

    @property
    def _start(self) -> float:
        return self.offset * self._speed

    def alpha(self, t: Tensor) -> Tensor:
        """cos(u) / cos(c), as a sine of the time that is left, so that it is exactly 0 at t = 1."""
        return torch.sin(self._speed * (1 - t)) / math.cos(self._start)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2) = sqrt(sin(u - c) sin(u + c)) / cos(c)."""
        swept = self._speed * t  # u - c
        if self._start == 0:
            return torch.sin(swept)
        return torch.sqrt(torch.sin(swept) * torch.sin(swept + 2 * self._start)) / math.cos(self._start)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Rates by d sigma = -alpha d alpha / sigma; with an offset the second is infinite at t = 0."""
        d_alpha = -self._speed * torch.cos(self._speed * (1 - t)) / math.cos(self._start)
        if self._start == 0:
            return d_alpha, self._speed * torch.cos(self._speed * t)
        return d_alpha, -self.alpha(t) * d_alpha / self.sigma(t)


@dataclass(frozen=True, kw_only=True)
class VE(Schedule):
    """Variance exploding path with geometric sigma (arXiv:2011.13456, appendix C).

    alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t, so sigma is never 0. Steps even in t are poor for Euler
    here: use `latent.grid.karras`.
    """

    kind: Literal["ve"] = "ve"
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _increasing("VE", sigma_min=self.sigma_min, sigma_max=self.sigma_max, usual="0.002 and 80")

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_min (sigma_max / sigma_min)^t."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(0, sigma log(sigma_max / sigma_min))."""
        return torch.zeros_like(t), self.sigma(t) * math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True, kw_only=True)
class EDM(Schedule):
    """Linear noise scale of Karras et al. (arXiv:2206.00364, table 1) with its time scaled to [0, 1].

    alpha = 1, sigma = sigma_max t.
    """

    kind: Literal["edm"] = "edm"
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _increasing("EDM", sigma_max=self.sigma_max, usual="80")

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_max t."""
        return self.sigma_max * t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(0, sigma_max)."""
        return torch.zeros_like(t), torch.full_like(t, self.sigma_max)


AnySchedule = Flow | VP | Cosine | VE | EDM
"""Every schedule that a recipe can name, told apart by `kind`."""


def _increasing(owner: str, *, usual: str, **values: float) -> None:
    limits = [0.0, *values.values(), math.inf]
    if not all(low < high for low, high in pairwise(limits)):
        given = ", ".join(f"{name} = {value}" for name, value in values.items())
        order = " < ".join(["0", *values, "infinity"])
        raise ValueError(f"{owner}: {given}, expected {order}; the usual choice is {usual}")
