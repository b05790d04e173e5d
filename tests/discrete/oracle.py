"""Joints small enough to enumerate: exact denoiser, entropy, and the chi-square test of a sampler."""

from __future__ import annotations

import itertools
import math

import torch
from scipy import stats
from torch import Tensor


class Joint:
    """p(x) over x in {0 .. vocab-1}^length as a table, the mask being id `vocab`."""

    def __init__(self, vocab: int, length: int, seed: int = 0, sharpness: float = 1.5) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.mask_id = vocab
        self.states = torch.tensor(list(itertools.product(range(vocab), repeat=length)))  # (S, L)
        noise = torch.randn(len(self.states), generator=generator, dtype=torch.float64)
        self.p = (sharpness * noise).softmax(0)  # (S,)
        self.calls = 0

    def entropy(self) -> float:
        return -(self.p * self.p.log()).sum().item()

    def sample(self, count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return self.states[torch.multinomial(self.p, count, True, generator=generator)]

    def posterior(self, x_t: Tensor) -> Tensor:
        """p(state | visible tokens of x_t), (B, S)."""
        fits = ((x_t[:, None] == self.mask_id) | (x_t[:, None] == self.states)).all(-1)  # (B, S)
        weight = fits * self.p
        return weight / weight.sum(-1, keepdim=True)

    def __call__(self, x_t: Tensor, t: Tensor | None = None) -> Tensor:
        """log p(x_i | x_t) by summing the table, (B, L, V + 1)."""
        self.calls += 1
        one_hot = torch.nn.functional.one_hot(self.states, self.mask_id + 1).double()  # (S, L, V + 1)
        return torch.einsum("bs,slv->blv", self.posterior(x_t), one_hot).log()

    def chi_square(self, x: Tensor, given: Tensor | None = None) -> float:
        """p-value of the samples x (B, L) against p, or against p(. | given (L,))."""
        expected = self.p if given is None else self.posterior(given[None])[0]
        base = self.mask_id ** torch.arange(x.shape[1] - 1, -1, -1)
        seen = torch.bincount((x * base).sum(-1), minlength=len(self.p)).double()
        assert seen[expected == 0].sum() == 0
        kept = expected > 0
        return float(stats.chisquare(seen[kept], expected[kept] * len(x)).pvalue)


def within(values: Tensor, expected: float, errors: float = 4.0) -> bool:
    """Is the mean of values within so many standard errors of what was expected?"""
    error = values.std().item() / math.sqrt(len(values))
    return abs(values.mean().item() - expected) < errors * error + 1e-9
