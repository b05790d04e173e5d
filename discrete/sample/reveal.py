"""Samplers that follow the reverse process: which token is revealed when is chance, what it becomes is the model's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from backbone.noise import Randomness, uniform
from discrete.corrupt import random_places
from discrete.predict import Denoise
from discrete.sample.draw import invert, unmade
from discrete.schedule import Schedule


@torch.no_grad()
def ancestral(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    mask_id: int,
    generator: Randomness,
    known: Tensor | None = None,
) -> Tensor:
    """Follow the reverse process: between t and s each masked token is revealed on its own (arXiv:2406.07524, eq. 7).

        P(revealed) = (alpha_s - alpha_t) / (1 - alpha_t),     its value ~ p(x | x_t)

    x: (B, L) int64; times: (N + 1,) decreasing. Calls the denoiser N times. Returns (B, L).
    """
    times = times.to(x.device, torch.float64)
    for number, (t, s) in enumerate(pairwise(times), start=2):
        chance = 1.0 if number == len(times) else (schedule.alpha(s) - schedule.alpha(t)) / (1 - schedule.alpha(t))
        coin = uniform(x.shape, generator, device=x.device)
        u = uniform(x.shape, generator, device=x.device)
        reveal = unmade(x, known, mask_id) & (coin < chance)
        log_probs = denoise(x, t)
        x = x.masked_scatter(reveal, invert(log_probs[reveal], u[reveal]))
    return x


def cached(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    mask_id: int,
    generator: Randomness,
    known: Tensor | None = None,
) -> Tensor:
    """Return what `ancestral` returns, without calling the denoiser for a sequence that has not changed since.

    For a model without time conditioning (arXiv:2406.07524, sec. 4.1). denoise treats every sequence on its own and is
    given those that changed: where a condition is bound to it, put `Remember` around the network inside instead.
    """
    return ancestral(Remember(denoise), schedule, x, times, mask_id=mask_id, generator=generator, known=known)


class Remember:
    """A network, or a Denoise, that is asked about sequences only when they have changed since it was last asked.

    Row i of every call is taken for the same sequence. What a call returns is overwritten by the next one.
    """

    def __init__(self, network: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.network = network
        self.rows = 0  # sequences that the network was asked about
        self._asked: Tensor | None = None
        self._answer = torch.empty(0)

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t: (B, L); t: () or (B,), which must not matter. Returns what the network does, (B, ...)."""
        if self._asked is None or self._asked.shape != x_t.shape:
            self._asked, self._answer = x_t.clone(), self.network(x_t, t)
            self.rows += len(x_t)
            return self._answer
        changed = (x_t != self._asked).any(-1)  # (B,)
        if bool(changed.any()):
            self._answer[changed] = self.network(x_t[changed], t[changed] if t.ndim else t)
            self._asked = x_t.clone()
            self.rows += int(changed.sum())
        return self._answer


@torch.no_grad()
def first_hitting(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    *,
    mask_id: int,
    generator: Randomness,
    known: Tensor | None = None,
    start: float = 1.0,
    at_once: int | Tensor = 1,
) -> Tensor:
    """Jump from one revealed token to the next: the law of `ancestral` on an infinitely fine grid (arXiv:2409.02908).

        1 - alpha_s = (1 - alpha_t) u^(1 / n),     u ~ U(0, 1), n masked tokens, each as likely to be the next

    x: (B, L) int64 at time start. Calls the denoiser once per masked token of the longest sequence, at the times (B,)
    at which they are revealed, or once for `at_once` of them, a number or one for each sequence, which are then drawn
    as if they were independent, at the time of the first. Returns (B, L). Raises ValueError where at_once is below 1.
    """
    together = torch.as_tensor(at_once, device=x.device).expand(len(x))
    if bool((together < 1).any()):
        raise ValueError(f"at_once is {at_once}, expected at least 1 token for each call")
    hidden = unmade(x, known, mask_id)
    share = (1 - schedule.alpha(torch.tensor(start, dtype=torch.float64, device=x.device))).expand(len(x))
    while bool(hidden.any()):
        left = hidden.sum(-1)  # (B,)
        place = random_places(x.shape, generator, x.device, last=~hidden)
        u, values = (uniform(x.shape, generator, device=x.device) for _ in range(2))
        reveal = hidden & (place < together[:, None])
        share = share * torch.where(left > 0, u[:, 0] ** (1 / left.clamp_min(1)), 1)
        log_probs = denoise(x, schedule.time(share))
        x = x.masked_scatter(reveal, invert(log_probs[reveal], values[reveal]))
        for k in range(1, min(int(together.max()), x.shape[1])):
            passed = (left > k) & (together > k)
            share = share * torch.where(passed, u[:, k] ** (1 / (left - k).clamp_min(1)), 1)
        hidden = unmade(x, known, mask_id)
    return x
