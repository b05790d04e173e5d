"""What a short sequence costs under a masked model exactly, by asking about all 2^L ways to mask it.

A masked model that reveals one token at a time, in an order drawn evenly, is a distribution over sequences: its
likelihood is a mean over all L! orders, and its bound the mean of the logarithms. Both are sums over subsets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from discrete.predict import Denoise

LONGEST = 16  # tokens: 65,536 maskings
ASKED = 4096  # maskings in one call


@torch.no_grad()
def any_order(denoise: Denoise, x: Tensor, *, mask_id: int) -> tuple[Tensor, Tensor]:
    """-log p(x) and its any-order bound, both exact, in nats: (B,) float64 each, on the CPU.

        p(x) = g(all),   g(S + i) = sum over i of g(S) p(x_i | x_S) / (L - |S|),   g(none) = 1
        bound = sum over S, i of P(S comes up) / (L - |S|) * -log p(x_i | x_S),    P(S comes up) = 1 / C(L, |S|)

    denoise reads no time: it is asked at t = the masked share, as `Linear` has it. x: (B, L) int64 without masks.
    Raises ValueError where L is above 16.
    """
    length = x.shape[1]
    if length > LONGEST:
        raise ValueError(
            f"the sequences have {length} tokens, which can be masked in 2^{length} ways: give at most {LONGEST}"
        )
    seen = _subsets(length)  # (2^L, L) bool, row n holding the bits of n
    nll = _costs(denoise, x, seen, mask_id)  # (B, 2^L, L)
    size = seen.sum(-1)  # (2^L,)
    chance = 1 / (length - size).clamp_min(1).double()  # of each token that is not seen
    ways = torch.tensor([math.comb(length, k) for k in range(length + 1)], dtype=torch.float64)
    bound = torch.where(seen, 0, nll * (chance / ways[size])[:, None]).sum((1, 2))
    mass = torch.zeros(len(x), len(seen), dtype=torch.float64)
    mass[:, 0] = 1
    for k in range(length):
        for i in range(length):
            before = ((size == k) & ~seen[:, i]).nonzero()[:, 0]  # their unions with i are all different
            mass[:, before | 1 << i] += mass[:, before] * chance[before] * (-nll[:, before, i]).exp()
    return -mass[:, -1].log(), bound


def _subsets(length: int) -> Tensor:
    """Row n holds the bits of n, (2^L, L) bool."""
    return (torch.arange(1 << length)[:, None] >> torch.arange(length) & 1).bool()


def _costs(denoise: Denoise, x: Tensor, seen: Tensor, mask_id: int) -> Tensor:
    """-log p(x_i | x_S) of every token and every subset S: (B, 2^L, L) float64, on the CPU."""
    number, rows = len(seen), [torch.zeros(0, x.shape[1], dtype=torch.float64)]
    for part in torch.arange(len(x) * number).split(ASKED):
        shown, truth = seen[part % number].to(x.device), x[part // number]
        x_t = torch.where(shown, truth, mask_id)
        log_probs = denoise(x_t, (~shown).double().mean(-1))  # (n, L, V + 1)
        rows.append(-log_probs.gather(-1, truth[..., None])[..., 0].double().cpu())
    return torch.cat(rows).view(len(x), number, x.shape[1])
