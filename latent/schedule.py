"""Gaussian probability paths x_t = alpha_t x + sigma_t eps, with eps ~ N(0, I).

Time runs from t = 0 (data) to t = 1 (noise). A schedule is an immutable value and its own configuration: alpha and
sigma (with their rates) are all it defines, and everything else in this package is derived from them. The formulas are
written so that neither end of the path loses digits: alpha and sigma reach 0 exactly where they should.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, assert_never

import torch
from torch import Tensor


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Give a coefficient of shape () or (B,) the trailing axes, the device and the precision to multiply `like`.

    like: (B, ...). Returns (1, 1, ...) or (B, 1, ...) in the dtype of `like`, but float32 at least: coefficients are
    never rounded to half precision.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    return value.to(like.device, dtype).reshape(-1, *(1,) * (like.ndim - 1))


class Schedule(ABC):
    """Signal scale alpha_t >= 0 and noise scale sigma_t >= 0, elementwise in t.

    Times are float32 or wider, in [0, 1], of any shape; every result has the shape and the dtype of t. A schedule is a
    hashable value that never changes, such as a frozen dataclass: samplers keep coefficients that they have once asked
    for.
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
    """Straight path of rectified flow (arXiv:2209.03003): alpha = 1 - t, sigma = t + sigma_min (1 - t).

    sigma_min: noise that is left on the data, as in the optimal-transport path of conditional flow matching
    (arXiv:2210.02747, eq. 20); 0 is rectified flow. Time runs the other way there, from noise at 0 to data at 1.
    """

    kind: Literal["flow"] = "flow"
    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < 1:
            raise ValueError(f"Flow: sigma_min is {self.sigma_min}, expected 0 <= sigma_min < 1; use 0, or 1e-4")

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """t + sigma_min (1 - t)."""
        return t + self.sigma_min * (1 - t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(-1, 1 - sigma_min)."""
        return -torch.ones_like(t), torch.full_like(t, 1 - self.sigma_min)


@dataclass(frozen=True, kw_only=True)
class VP(Schedule):
    """Variance preserving path with linear beta, the continuous limit of DDPM (arXiv:2011.13456, appendix C).

    beta_t = beta_min + t (beta_max - beta_min),  I_t = int_0^t beta,  alpha = exp(-I_t / 2),  sigma^2 = 1 - alpha^2.
    The usual DDPM betas from 1e-4 to 0.02 in 1,000 steps are beta_min = 0.1 and beta_max = 20.
    zero_terminal: moves and stretches alpha so that it ends at exactly 0 (arXiv:2305.08891, algorithm 1).
    """

    kind: Literal["vp"] = "vp"
    beta_min: float = 0.1
    beta_max: float = 20.0
    zero_terminal: bool = False

    def __post_init__(self) -> None:
        _increasing("VP", beta_min=self.beta_min, beta_max=self.beta_max, usual="0.1 and 20")

    def alpha(self, t: Tensor) -> Tensor:
        """exp(-I_t / 2); with zero_terminal (exp(-I_t / 2) - exp(-I_1 / 2)) / (1 - exp(-I_1 / 2))."""
        alpha = torch.exp(-0.5 * _beta_integral(self, t))
        if not self.zero_terminal:
            return alpha
        left = (1 - t) * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * (1 + t))  # I_1 - I_t, 0 at t = 1
        return -alpha * torch.expm1(-0.5 * left) / self._spread

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2)."""
        if not self.zero_terminal:
            return torch.sqrt(-torch.expm1(-_beta_integral(self, t)))
        return _preserving(-torch.expm1(-0.5 * _beta_integral(self, t)) / self._spread)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha', -alpha alpha' / sigma), alpha' = -beta_t exp(-I_t / 2) / 2; the second is infinite at t = 0."""
        d_alpha = -0.5 * _beta(self, t) * torch.exp(-0.5 * _beta_integral(self, t)) / self._spread
        return d_alpha, -self.alpha(t) * d_alpha / self.sigma(t)

    @property
    def _spread(self) -> float:
        return -math.expm1(-0.25 * (self.beta_min + self.beta_max)) if self.zero_terminal else 1.0


@dataclass(frozen=True, kw_only=True)
class SubVP(Schedule):
    """Sub-variance-preserving path (arXiv:2011.13456, eq. 29): VP's alpha with less noise, sigma = 1 - alpha^2."""

    kind: Literal["sub_vp"] = "sub_vp"
    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _increasing("SubVP", beta_min=self.beta_min, beta_max=self.beta_max, usual="0.1 and 20")

    def alpha(self, t: Tensor) -> Tensor:
        """exp(-I_t / 2)."""
        return torch.exp(-0.5 * _beta_integral(self, t))

    def sigma(self, t: Tensor) -> Tensor:
        """1 - exp(-I_t)."""
        return -torch.expm1(-_beta_integral(self, t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(-beta_t alpha / 2, beta_t alpha^2)."""
        alpha, beta = self.alpha(t), _beta(self, t)
        return -0.5 * beta * alpha, beta * alpha**2


@dataclass(frozen=True, kw_only=True)
class DDPM(Schedule):
    """The betas of DDPM in `levels` discrete steps; alpha is linear between the levels, which stand at t = k / levels.

        alpha_k = prod_{i <= k} sqrt(1 - beta_i),   sigma^2 = 1 - alpha^2

    betas: "linear", evenly spaced from beta_min to beta_max (arXiv:2006.11239); "scaled_linear", their roots are
    (arXiv:2112.10752); "cosine", from the cosine path with betas of at most 0.999 (arXiv:2102.09672, eq. 17).
    zero_terminal: moves and stretches alpha so that it ends at exactly 0 (arXiv:2305.08891, algorithm 1).
    Use `latent.grid.discrete` to stay on the levels that a discrete model was trained on.
    """

    kind: Literal["ddpm"] = "ddpm"
    betas: Literal["linear", "scaled_linear", "cosine"] = "linear"
    levels: int = 1000
    beta_min: float = 1e-4
    beta_max: float = 0.02
    zero_terminal: bool = False

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"DDPM: levels is {self.levels}, expected at least 2; the usual choice is 1000")
        _increasing("DDPM", beta_min=self.beta_min, beta_max=self.beta_max, usual="1e-4 and 0.02", limit=1.0)

    def alpha(self, t: Tensor) -> Tensor:
        """alpha_k at t = k / levels, linear in between."""
        return (1 - self._lost(t)[0]).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2)."""
        return _preserving(self._lost(t)[0]).to(t.dtype)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha', -alpha alpha' / sigma): constant between two levels; the second is infinite at t = 0."""
        lost, rate = self._lost(t)
        return -rate.to(t.dtype), ((1 - lost) * rate / _preserving(lost)).to(t.dtype)

    def _lost(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 - alpha and its rate, in float64."""
        place = self.levels * t.double()
        below = place.detach().long().clamp(0, self.levels - 1)
        start, step = _lost_signal(self, t.device)[below].unbind(-1)
        return start + (place - below) * step, self.levels * step


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


AnySchedule = Flow | VP | SubVP | Cosine | DDPM | VE | EDM
"""Every schedule that a recipe can name, told apart by `kind`."""


def _beta(path: VP | SubVP, t: Tensor) -> Tensor:
    return path.beta_min + (path.beta_max - path.beta_min) * t


def _beta_integral(path: VP | SubVP, t: Tensor) -> Tensor:
    """int_0^t beta."""
    return path.beta_min * t + 0.5 * (path.beta_max - path.beta_min) * t**2


def _preserving(lost: Tensor) -> Tensor:
    """sqrt(1 - alpha^2) from 1 - alpha, which keeps its digits where alpha is near 1."""
    return torch.sqrt(lost * (2 - lost))


@lru_cache
def _lost_signal(path: DDPM, device: torch.device) -> Tensor:
    """1 - alpha at the levels 0 to `path.levels` - 1, and its step to the next: (levels, 2), float64."""
    count = path.levels
    match path.betas:
        case "linear":
            beta = torch.linspace(path.beta_min, path.beta_max, count, dtype=torch.float64)
        case "scaled_linear":
            beta = torch.linspace(path.beta_min**0.5, path.beta_max**0.5, count, dtype=torch.float64) ** 2
        case "cosine":
            kept = Cosine(offset=0.008).alpha(torch.arange(count + 1, dtype=torch.float64) / count) ** 2
            beta = (1 - kept[1:] / kept[:-1]).clamp(max=0.999)
        case _:
            assert_never(path.betas)
    lost = -torch.expm1(0.5 * torch.log1p(-beta).cumsum(0))
    if path.zero_terminal:
        first, last = 1 - lost[0], 1 - lost[-1]
        lost = 1 - (1 - lost - last) * first / (first - last)
    before = torch.cat([lost.new_zeros(1), lost[:-1]])
    return torch.stack([before, lost - before], -1).to(device)


def _increasing(owner: str, *, usual: str, limit: float = math.inf, **values: float) -> None:
    limits = [0.0, *values.values(), limit]
    if not all(low < high for low, high in pairwise(limits)):
        given = ", ".join(f"{name} = {value}" for name, value in values.items())
        order = " < ".join(["0", *values, "infinity" if limit == math.inf else f"{limit:g}"])
        raise ValueError(f"{owner}: {given}, expected {order}; the usual choice is {usual}")
