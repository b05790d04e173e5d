"""Remasking: tokens that were revealed are hidden again now and then, so that early mistakes can be mended (ReMDM)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from backbone.noise import Randomness, uniform
from discrete.predict import Denoise
from discrete.sample.draw import invert, unmade
from discrete.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Remasking:
    """How likely a revealed token is hidden again in a step from t to s (arXiv:2503.00307, sec. 4).

    cap: sigma = min(eta, sigma_max); rescale: sigma = eta sigma_max; sigma_max = min(1, (1 - alpha_s) / alpha_t).
    confidence: a token's share of sigma is the softmax of minus the probability that it was drawn with; the shares of a
    sequence sum to 1, so take eta = 1.
    window: remask in steps that lie wholly between these times; elsewhere the step is the ancestral one.
    """

    rule: Literal["cap", "rescale"] = "cap"
    eta: float = 0.05
    confidence: bool = False
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(
                f"remasking with eta {self.eta}, expected a probability; 0 never remasks and 0.05 is usual"
            )
        low, high = self.window
        if not 0 <= low <= high <= 1:
            raise ValueError(f"remasking in the window {self.window}, expected 0 <= low <= high <= 1; (0, 1) is always")

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """The probability that all tokens share."""
        most = ((1 - alpha_s) / alpha_t.clamp_min(1e-12)).clamp_max(1)
        return most.clamp_max(self.eta) if self.rule == "cap" else self.eta * most

    def acts(self, t: Tensor, s: Tensor) -> bool:
        """Whether the step from t to s remasks."""
        low, high = self.window
        return bool(low <= s) and bool(t <= high)


def looped(times: Tensor, at: float, steps: int) -> Tensor:
    """A grid that stays at one time for some steps on its way: the loop of ReMDM, with the window (at, at).

    times: (N + 1,) decreasing. Returns (N + steps + 2,) or, where `at` is in the grid, (N + steps + 1,).
    """
    times = times.double()
    before, after = times[times > at], times[times < at]
    return torch.cat([before, times.new_full((steps + 1,), at), after])


@torch.no_grad()
def remask(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    mask_id: int,
    generator: Randomness,
    known: Tensor | None = None,
    remasking: Remasking = Remasking(),
) -> Tensor:
    """Reveal as `ancestral` does, and hide revealed tokens again, so that as many are visible at each time as before.

        P(hidden again) = sigma,     P(revealed) = (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)

    With an exact model the law tends to the model's as steps grow finer and sigma smaller. With confidence it does not:
    tokens are revealed as by `ancestral`, and some are hidden on top of that.
    Known tokens are never hidden; others that are visible in x may be. x: (B, L) int64; times: (N + 1,), never rising;
    equal ones are steps that only remask and reveal. Calls the denoiser N times. Returns (B, L).
    """
    times = times.to(x.device, torch.float64)
    certainty = torch.zeros(x.shape, dtype=torch.float64, device=x.device)  # of what is visible
    for number, (t, s) in enumerate(pairwise(times), start=1):
        coin, u = (uniform(x.shape, generator, device=x.device) for _ in range(2))
        hidden, last = unmade(x, known, mask_id), number == len(times) - 1
        alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
        sigma = remasking.sigma(alpha_t, alpha_s) if remasking.acts(t, s) and not last else torch.zeros_like(alpha_t)
        free = ~hidden if known is None else ~hidden & ~known
        again = sigma * _shares(certainty, free) if remasking.confidence else sigma
        appear = sigma if not remasking.confidence else torch.zeros_like(sigma)
        chance = torch.ones_like(sigma) if last else (alpha_s - (1 - appear) * alpha_t) / (1 - alpha_t)
        reveal, hide = hidden & (coin < chance), free & (coin < again)
        rows = denoise(x, t)[reveal]
        drawn = invert(rows, u[reveal])
        certainty = certainty.masked_scatter(reveal, rows.gather(-1, drawn[:, None])[:, 0].double().exp())
        x = x.masked_scatter(reveal, drawn).masked_fill(hide, mask_id)
    return x


def _shares(certainty: Tensor, free: Tensor) -> Tensor:
    """softmax(-certainty) over what may be hidden, 0 elsewhere: (B, L)."""
    return (-certainty).masked_fill(~free, -torch.inf).softmax(-1).nan_to_num(0)
