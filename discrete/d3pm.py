"""D3PM, diffusion over tokens in T discrete steps with any transition matrices (arXiv:2107.03006).

Step i stands at time t = i / T, so step 0 is data. With absorbing or uniform matrices the bound tends to
`discrete.loss.nelbo` or `discrete.uniform.uniform_nelbo` as T grows. The tables hold T N^2 numbers: for characters,
pixels and small codebooks, not for a text vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from backbone.noise import Randomness
from discrete.predict import Denoise
from discrete.sample import draw
from discrete.schedule import Schedule


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """A Markov chain over N states, of which the first `vocab` are those that data takes.

        steps[i - 1][a, b] = q(x_i = b | x_{i-1} = a),     cumulative[i] = Q_1 ... Q_i = q(x_i | x_0)

    steps: (T, N, N) float64; stationary: (N,), the law that x_T is taken to have. Raises ValueError where a row of a
    matrix is not a distribution.
    """

    steps: Tensor
    stationary: Tensor
    vocab: int

    def __post_init__(self) -> None:
        off = (self.steps.sum(-1) - 1).abs().max().item()
        if not (off <= 1e-9 and self.steps.min() >= 0):  # NaN fits nowhere
            raise ValueError(
                f"rows of the transition matrices sum to 1 within {off:.2g} and have a smallest entry of "
                f"{self.steps.min():.2g}: expected float64 rows that sum to 1, none of them negative"
            )

    @property
    def length(self) -> int:
        """T, the number of steps."""
        return len(self.steps)

    @cached_property
    def cumulative(self) -> Tensor:
        """q(x_i | x_0) for i = 0 .. T, (T + 1, N, N)."""
        products = [torch.eye(len(self.stationary), dtype=torch.float64, device=self.steps.device)]
        for step in self.steps:
            products.append(products[-1] @ step)
        return torch.stack(products)

    def to(self, device: torch.device | str) -> Chain:
        """The chain with its tables on a device: itself where they are there."""
        if self.steps.device == torch.device(device):
            return self
        return replace(self, steps=self.steps.to(device), stationary=self.stationary.to(device))

    def corrupt(self, x: Tensor, i: Tensor, *, generator: Randomness, known: Tensor | None = None) -> Tensor:
        """Draw x_i ~ q(x_i | x_0): x (B, L) int64, i (B,) in 0 .. T, known (B, L) bool. Returns (B, L)."""
        x_t = draw(self.cumulative[i[:, None], x].log(), generator)
        return x_t if known is None else torch.where(known, x, x_t)

    def posterior(self, log_probs: Tensor, x_t: Tensor, i: Tensor) -> Tensor:
        """Law of one step back, the posterior given x_0 averaged over the predicted x_0.

            p(x_{i-1} | x_i) = sum_k p(x_0 = k | x_i) q(x_{i-1} | x_i, x_0 = k)
            q(x_{i-1} = a | x_i = b, x_0 = k) = Q_i[a, b] cumulative[i-1][k, a] / cumulative[i][k, b]

        The paper's parameterisation (sec. 3.3) leaves the denominator out and normalises afterwards, which is the same
        for absorbing chains only; with the exact p(x_0 | x_i) this average is the exact reverse step of each token.
        log_probs: (B, L, vocab or more), what exceeds vocab being ignored; x_t: (B, L) in [0, N); i: (B,) in 1 .. T.
        Returns probabilities (B, L, N), float64. A token that no x_0 can have become by step i stays as it is: one
        that someone filled in, visible where an absorbing chain has hidden all.
        """
        likelihood = self.cumulative[:, : self.vocab].mT[i[:, None], x_t]  # (B, L, vocab): q(x_i | x_0 = k)
        weight = over_likelihood(log_probs[..., : self.vocab], likelihood)
        onwards = self.steps.mT[i[:, None] - 1, x_t]  # (B, L, N): q(x_i | x_{i-1} = a)
        p = onwards * (weight @ self.cumulative[i - 1, : self.vocab])
        return torch.where((likelihood == 0).all(-1, keepdim=True), one_hot(x_t, p.shape[-1]).double(), p)


def over_likelihood(log_probs: Tensor, likelihood: Tensor) -> Tensor:
    """p(x_0 = k | x_t) / q(x_t | x_0 = k), p being restricted to the k that can have become x_t.

    log_probs, likelihood: (..., K). Returns (..., K) float64, never NaN: where log_probs excludes all that is possible,
    the possible ones count alike, and where nothing is possible, p is returned.
    """
    possible = (likelihood > 0) | (likelihood == 0).all(-1, keepdim=True)
    log_probs = log_probs.double().clamp_min(torch.finfo(torch.float64).min)
    p = log_probs.masked_fill(~possible, -torch.inf).softmax(-1)
    return p / torch.where(likelihood > 0, likelihood, 1)


def absorbing(schedule: Schedule, T: int, vocab: int) -> Chain:
    """Tokens turn into a mask, state `vocab`, and stay there: the discrete-time form of `discrete.corrupt`."""
    return mixing(schedule, T, one_hot(torch.tensor(vocab), vocab + 1).double(), vocab)


def uniform(schedule: Schedule, T: int, vocab: int) -> Chain:
    """Tokens are replaced by tokens drawn evenly: the discrete-time form of `discrete.uniform`."""
    return mixing(schedule, T, torch.full((vocab,), 1 / vocab, dtype=torch.float64), vocab)


def mixing(schedule: Schedule, T: int, stationary: Tensor, vocab: int) -> Chain:
    """A token is kept with probability alpha_t, and otherwise drawn from the stationary law pi (N,).

    Q_i = r I + (1 - r) 1 pi^T,     r = alpha(i / T) / alpha((i - 1) / T)
    """
    alpha = schedule.alpha(torch.arange(T + 1, dtype=torch.float64) / T)
    kept = (alpha[1:] / alpha[:-1])[:, None, None]
    steps = kept * torch.eye(len(stationary), dtype=torch.float64) + (1 - kept) * stationary
    return Chain(steps=steps, stationary=stationary, vocab=vocab)


def gaussian(beta: Tensor, vocab: int) -> Chain:
    """Ordinal tokens move to their neighbours: discretised Gaussian matrices (app. A.2).

        Q_i[a, b] ~ exp(-4 (a - b)^2 / ((vocab - 1)^2 beta_i)) for a != b, over the sum of the kernel at all distances
        -(vocab - 1) .. vocab - 1; the rest of each row is on the diagonal

    Doubly stochastic, so the stationary law is uniform, but x_T has it only where beta is large enough.
    beta: (T,) positive; vocab: at least 2.
    """
    if vocab < 2:
        raise ValueError(f"vocab is {vocab}, expected at least 2 ordinal tokens, between which the chain moves")
    ids = torch.arange(vocab, dtype=torch.float64, device=beta.device)
    width = (vocab - 1) ** 2 * beta.double()[:, None, None]
    kernel = torch.exp(-4 * (ids[:, None] - ids) ** 2 / width)  # (T, N, N)
    total = 2 * kernel[:, :1].sum(-1, keepdim=True) - 1
    off_diagonal = (kernel / total) * (ids[:, None] != ids)
    steps = off_diagonal + torch.diag_embed(1 - off_diagonal.sum(-1))
    return Chain(steps=steps, stationary=torch.full_like(ids, 1 / vocab), vocab=vocab)


def bound(chain: Chain, log_probs: Tensor, x: Tensor, x_t: Tensor, i: Tensor, *, known: Tensor | None = None) -> Tensor:
    """Estimate the variational bound on -log p(x) from one step per sequence (arXiv:2107.03006, eq. 1), unbiased.

        T KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_i)) + KL(q(x_T | x_0) || stationary),     i ~ U{1, ..., T}

    At i = 1 the first term is -log p(x_0 | x_1), times T. `discrete.corrupt.draw_count` draws i.
    log_probs: (B, L, vocab or more), log p(x_0 | x_i); x: (B, L) in [0, vocab); x_t: (B, L) from `Chain.corrupt`;
    i: (B,); known: (B, L) bool, tokens that are not counted. Returns (B,) nats, float64.
    """
    true = chain.posterior(one_hot(x, chain.vocab).double().log(), x_t, i)
    step = divergence(true, chain.posterior(log_probs, x_t, i))
    prior = divergence(chain.cumulative[-1][x], chain.stationary)
    loss = chain.length * step + prior  # (B, L)
    return loss.sum(-1) if known is None else loss.masked_fill(known, 0).sum(-1)


def divergence(q: Tensor, p: Tensor) -> Tensor:
    """KL(q || p) over the last axis, with 0 log 0 = 0 and no NaN in its gradient; infinite where p misses part of q."""
    return (torch.xlogy(q, q) - torch.xlogy(q, torch.where(q > 0, p, 1))).sum(-1)


@torch.no_grad()
def sample_chain(
    denoise: Denoise, chain: Chain, x: Tensor, *, generator: Randomness, known: Tensor | None = None
) -> Tensor:
    """Follow the reverse chain through all T steps.

        x_{i-1} ~ p(x_{i-1} | x_i)     for i = T, ..., 1

    x: (B, L) int64, x_T: drawn from the stationary law, or known, where known (B, L) is true; those stay. Calls the
    denoiser T times, at t = i / T. Returns (B, L); what was not known is in [0, vocab), so never a mask. An
    absorbing chain carries visible tokens over.
    """
    kept = torch.zeros_like(x, dtype=torch.bool) if known is None else known
    for i in range(chain.length, 0, -1):
        step = torch.full_like(x[:, 0], i)
        log_probs = denoise(x, torch.tensor(i / chain.length, dtype=torch.float64, device=x.device))
        # a known token may lie outside the chain, as a hidden condition does
        p = chain.posterior(log_probs, x.masked_fill(kept, 0), step)
        x = torch.where(kept, x, draw(p.log(), generator))
    return x
