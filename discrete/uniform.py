"""Uniform-state diffusion in continuous time: tokens are replaced by random tokens, and may change again and again.

    q(x_t | x) = alpha_t [x_t = x] + (1 - alpha_t) / K     (UDLM, arXiv:2412.10193; Duo, arXiv:2506.10892)

There is no mask, so a token says nothing about whether it was replaced, and each is evidence about itself. Everything
below takes log p(x | x_t), which counts that evidence; `observe` adds it to a network that does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from backbone.noise import Randomness, uniform
from discrete.corrupt import over_tokens
from discrete.d3pm import over_likelihood
from discrete.predict import Denoise
from discrete.sample import invert
from discrete.schedule import Schedule


def uniform_start(
    shape: Sequence[int], vocab: int, generator: Randomness, device: torch.device | str | None = None
) -> Tensor:
    """Draw x_1: every token in [0, vocab) alike. shape: (B, L). Returns int64."""
    return (uniform(shape, generator, device=device) * vocab).long()


def replace_tokens(
    schedule: Schedule, x: Tensor, t: Tensor, *, vocab: int, generator: Randomness, known: Tensor | None = None
) -> Tensor:
    """Keep each token with probability alpha_t, else draw it anew from all K = vocab tokens, itself among them.

    x: (B, L) int64; t: (), (B,) or (B, L) in [0, 1]; known: (B, L) bool, never replaced. Returns x_t (B, L).
    """
    replaced = uniform(x.shape, generator, device=x.device) >= schedule.alpha(over_tokens(t.double()))
    if known is not None:
        replaced &= ~known
    return torch.where(replaced, uniform_start(x.shape, vocab, generator, x.device), x)


def likelihood(x_t: Tensor, alpha: Tensor, vocab: int) -> Tensor:
    """q(x_t | x = k) for every k, (..., vocab); x_t: (...); alpha broadcasts against (..., 1)."""
    return alpha * _holds(x_t, vocab) + (1 - alpha) / vocab


def _holds(x_t: Tensor, vocab: int) -> Tensor:
    """[x_t = k], (..., vocab) bool; all false where x_t lies outside the vocabulary, as a hidden condition does."""
    return x_t[..., None] == torch.arange(vocab, device=x_t.device)


def observe(schedule: Schedule, logits: Tensor, x_t: Tensor, t: Tensor, *, vocab: int) -> Tensor:
    """Add the evidence of each token about itself to what the network infers from the others.

        log p(x = k | x_t) = logits_k + log q(x_t | x = k) + constant

    With it the bound and the steps below are those of UDLM and Duo, whose networks give softmax(logits) alone. Near
    t = 0 a token is carried over, which keeps the bound finite for an untrained network.
    logits: (B, L, vocab or more); x_t: (B, L); t: (), (B,) or (B, L). Returns (B, L, vocab) float64.
    """
    alpha = schedule.alpha(over_tokens(t.double()))[..., None]
    return (logits[..., :vocab].double() + likelihood(x_t, alpha, vocab).log()).log_softmax(-1)


def uniform_nelbo(
    schedule: Schedule,
    log_probs: Tensor,
    x: Tensor,
    x_t: Tensor,
    t: Tensor,
    *,
    vocab: int,
    known: Tensor | None = None,
) -> Tensor:
    """Estimate the continuous-time bound from one (t, x_t) per sequence, in nats.

        -alpha'_t / (K alpha_t)  sum_i sum_{a != x_t,i} rho_a log(rho_a / r_a) - rho_a + r_a,     t ~ U(0, 1]
        rho_a = q_t(a | x_i) / q_t(x_t,i | x_i),     r_a = sum_k p(x_i = k | x_t) q_t(a | k) / q_t(x_t,i | k)

    The limit of `discrete.d3pm.bound` for many steps: -alpha'_t / (K alpha_t) is the rate of each jump, which rho and r
    turn round in time, truly and by the model. It costs 0 at t = 1 (the limit) and, as in `nelbo`, at t = 0.
    log_probs: (B, L, vocab or more), log p(x | x_t); x, x_t: (B, L) in [0, vocab); t: (), (B,) or (B, L); known: (B, L)
    bool, tokens that are not counted. Returns (B,) float64.
    """
    time = over_tokens(t.double())[..., None]  # (B, 1, 1) or (B, L, 1)
    alpha = schedule.alpha(time)
    inside = (time > 0) & (alpha < 1)
    alpha = torch.where(inside, alpha, 0.5)
    here = _holds(x_t, vocab)
    rho, rho_slope = _reversal(one_hot(x, vocab).double(), here, alpha)
    r, r_slope = _reversal(log_probs[..., :vocab].double().softmax(-1), here, alpha)
    rate = torch.where(inside, -schedule.rate(time) / vocab, 0)
    jumps = _scaled_divergence(rho, r, r_slope - rho_slope, alpha).masked_fill(here, 0)
    loss = (rate * jumps).sum(-1)  # (B, L)
    return loss.sum(-1) if known is None else loss.masked_fill(known, 0).sum(-1)


def _reversal(p: Tensor, here: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """r_a for a != x_t, as a sum of positive terms, and (r_a - 1) / alpha; p (..., K), here marks x_t."""
    vocab = p.shape[-1]
    same, other = vocab / (1 + (vocab - 1) * alpha), vocab / (1 - alpha)  # 1 / q_t(x_t | k) for k = x_t, k != x_t
    stay = (p * here).sum(-1, keepdim=True)
    r = same / other * stay + (p * ~here).sum(-1, keepdim=True) + alpha * other * p
    return r, other * p - same * stay


def _scaled_divergence(rho: Tensor, r: Tensor, slope: Tensor, alpha: Tensor) -> Tensor:
    """(rho log(rho / r) - rho + r) / alpha, by its series where alpha or slope = (r - rho) / alpha is small."""
    delta = alpha * slope / rho
    close = delta.abs() < 1e-3
    small = torch.where(close, delta, 0)
    series = 1 / 2 - small / 3 + small**2 / 4 - small**3 / 5  # (small - log(1 + small)) / small^2
    far = (rho * (rho / r).log() - rho + r) / alpha.clamp_min(1e-300)
    return torch.where(close, alpha * slope**2 / rho * series, far)


def uniform_posterior(
    schedule: Schedule, log_probs: Tensor, x_t: Tensor, t: Tensor, s: Tensor, *, vocab: int
) -> Tensor:
    """Law of the step from t to s < t, the posterior given x averaged over the predicted x.

        p(x_s = a | x_t = b) = q(x_t = b | x_s = a) sum_k w_k q_s(a | k),     w_k = p(x = k | x_t) / q_t(b | k)
        q(x_t = b | x_s = a) = r [a = b] + (1 - r) / K,     r = alpha_t / alpha_s

    At s = 0 it is p(x | x_t). log_probs: (..., vocab or more); x_t: (...); t, s: (), or (B,), (B, L) for x_t (B, L).
    Returns probabilities (..., vocab), float64.
    """
    alpha_t, alpha_s = (schedule.alpha(over_tokens(time.double()))[..., None] for time in (t, s))
    w = over_likelihood(log_probs[..., :vocab], likelihood(x_t, alpha_t, vocab))
    return likelihood(x_t, alpha_t / alpha_s, vocab) * (alpha_s * w + (1 - alpha_s) / vocab * w.sum(-1, keepdim=True))


@torch.no_grad()
def uniform_ancestral(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    vocab: int,
    generator: Randomness,
    known: Tensor | None = None,
) -> Tensor:
    """Follow the reverse process, x_s ~ p(x_s | x_t); the last step goes to 0 whether or not the grid ends there.

    x: (B, L) int64 at times[0], from `uniform_start` at 1, known tokens put in; times: (N + 1,) decreasing. Calls the
    denoiser N times. Returns (B, L), the known tokens as they were, the others in [0, vocab).
    """
    times = times.to(x.device, torch.float64)
    unknown = torch.ones_like(x, dtype=torch.bool) if known is None else ~known
    for t, s in pairwise(times):
        u = uniform(x.shape, generator, device=x.device)
        s = torch.zeros_like(s) if s == times[-1] else s
        p = uniform_posterior(schedule, denoise(x, t)[unknown], x[unknown], t, s, vocab=vocab)
        x = x.masked_scatter(unknown, invert(p.log(), u[unknown]))
    return x
