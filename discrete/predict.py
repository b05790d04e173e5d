"""From the network's raw output to log p(x | x_t): the SUBS parameterisation and the range of each position."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Logits = Callable[[Tensor, Tensor], Tensor]
"""(x_t: (B, L) int64, t: () or (B,)) -> logits (B, L, V + 1), the mask last; condition and guidance are applied."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t: (B, L) int64, t: () or (B,)) -> log p(x | x_t) (B, L, V + 1), the mask last. All that a sampler sees."""

Sharpen = Callable[[Tensor], Tensor]
"""Logits (..., V) -> logits of a sharper law, such as `sharpened` with a temperature."""


def subs(logits: Tensor, x_t: Tensor, mask_id: int, sharpen: Sharpen | None = None) -> Tensor:
    """Normalise so that the mask is never predicted and a visible token is carried over (arXiv:2406.07524, sec. 3.2.3).

        log p(x | x_t) = log_softmax(logits without the mask)   where x_t = mask,     log [x = x_t]   elsewhere

    logits: (B, L, V + 1), the mask last, -inf where a token is not allowed; x_t: (B, L). Returns (B, L, V + 1), float32
    or wider, never NaN where one token at least is allowed. sharpen: (n, V + 1) -> (n, V + 1), of the masked rows.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    visible = x_t != mask_id
    if not bool(logits[..., mask_id].isneginf().all()):
        logits = logits.index_fill(-1, torch.tensor([mask_id], device=logits.device), -torch.inf)
    if sharpen is not None:
        logits = logits.masked_scatter(~visible[..., None], sharpen(logits[~visible]))
    log_probs = logits.log_softmax(-1)  # of all rows: cheaper than to pick some and put them back
    log_probs = log_probs.clone() if log_probs.requires_grad else log_probs  # its own gradient needs it as it is
    log_probs.view(-1, log_probs.shape[-1]).index_fill_(0, visible.flatten().nonzero()[:, 0], -torch.inf)
    carried = torch.where(visible, 0.0, -torch.inf).to(log_probs.dtype)
    return log_probs.scatter_(-1, x_t[..., None], carried[..., None])


def sharpened(logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits of a law that is sharper than the model's; each of these lowers the entropy of what is drawn.

    temperature: > 0, logits are divided by it; top_k: only so many of the likeliest tokens, 0 for all; top_p: only the
    likeliest tokens that together have this probability, the one that passes it included (arXiv:1904.09751, sec. 3.1).
    logits: (..., V), -inf allowed. Returns (..., V). Raises ValueError for values out of range.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0 (use 1e-3 for nearly greedy draws)")
    if top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(f"top_k is {top_k} and top_p {top_p}; expected 0 (all) or more, and a share above 0 up to 1")
    logits = logits if temperature == 1 else logits / temperature
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        sorted_, order = logits.sort(-1, descending=True)
        p = sorted_.double().softmax(-1)
        dropped = torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, p.cumsum(-1) - p >= top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return logits


def sharpener(*, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Sharpen | None:
    """`sharpened` with these values, or None where they leave all laws as they are. Raises ValueError at once."""
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    sharpened(torch.zeros(1), **options)  # refuse wrong values
    return None if temperature == 1 and top_k == 0 and top_p == 1 else partial(sharpened, **options)


def denoiser(logits: Logits, *, mask_id: int, allowed: Tensor | None = None, sharpen: Sharpen | None = None) -> Denoise:
    """Turn (guided) logits into a Denoise: range of each position, sharpen, then SUBS.

    allowed: (L, V + 1) bool, `Layout.allowed`; sharpen: of `sharpener`.
    """

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        raw = logits(x_t, t)
        raw = raw if allowed is None else raw.masked_fill(~allowed, -torch.inf)
        return subs(raw, x_t, mask_id, sharpen)

    return denoise
