"""From the network's raw output to log p(x | x_t): the SUBS parameterisation and the range of each position."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Logits = Callable[[Tensor, Tensor], Tensor]
"""(x_t: (B, L) int64, t: ()) -> logits (B, L, V + 1), the mask last. Condition and guidance are already applied."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t: (B, L) int64, t: ()) -> log p(x | x_t) (B, L, V + 1), the mask last. All that a sampler sees."""


def subs(logits: Tensor, x_t: Tensor, mask_id: int) -> Tensor:
    """Normalise so that the mask is never predicted and a visible token is carried over (arXiv:2406.07524, sec. 3.2.3).

        log p(x | x_t) = log_softmax(logits without the mask)   where x_t = mask,     log [x = x_t]   elsewhere

    logits: (B, L, V + 1), the mask last, -inf where a token is not allowed; x_t: (B, L). Returns (B, L, V + 1), float32
    or wider, never NaN where one token at least is allowed.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    ids = torch.arange(logits.shape[-1], device=logits.device)
    log_probs = logits.masked_fill(ids == mask_id, -torch.inf).log_softmax(-1)
    token = x_t[..., None]  # (B, L, 1)
    visible = token != mask_id
    carried = torch.where(visible, 0, log_probs.gather(-1, token))
    return log_probs.masked_fill(visible, -torch.inf).scatter(-1, token, carried)


def denoiser(logits: Logits, *, mask_id: int, allowed: Tensor | None = None, temperature: float = 1.0) -> Denoise:
    """Turn (guided) logits into a Denoise: temperature, range of each position, then SUBS.

    allowed: (L, V + 1) bool, `Layout.allowed`; temperature: > 0, below 1 sharper than the model.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0 (use 1e-3 for nearly greedy draws)")

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        raw = logits(x_t, t).float()
        raw = raw if temperature == 1 else raw / temperature
        if allowed is not None:
            raw = raw.masked_fill(~allowed, -torch.inf)
        return subs(raw, x_t, mask_id)

    return denoise
