"""One attention function over three backends.

Unusual: on a CPU short sequences go through plain matrix products, because the backward pass of torch's fused kernel is
several times slower there in bfloat16; and a query that may attend to nothing gets zeros, never NaN.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Literal, assert_never, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Backend = Literal["auto", "sdpa", "xformers", "matmul"]
WISHED: Backend = cast(Backend, os.environ.get("PALIMPSEST_ATTENTION", "auto"))  # what "auto" means on this machine
if WISHED not in get_args(Backend):
    raise ValueError(f"PALIMPSEST_ATTENTION is {WISHED!r}, expected one of {', '.join(get_args(Backend))}")
SHORT = 256  # keys; above it the (L, S) score matrix costs more than the fused kernel saves
BIAS_ALIGNMENT = 8  # xformers wants the rows of a bias to start at multiples of so many elements


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, backend: Backend = "auto") -> Tensor:
    """Scaled dot-product attention (arXiv:1706.03762, eq. 1).

        softmax(q k^T / sqrt(d)) v

    q: (B, h, L, d); k, v: (B, h, S, d); mask: bool, broadcastable to (B, h, L, S), True = attend. "auto" is what
    PALIMPSEST_ATTENTION says, else "matmul" for at most 256 keys on a CPU and "sdpa" otherwise. Returns (B, h, L, d),
    zeros in rows whose mask is all False. Raises TypeError when the mask is not bool and ImportError when xformers is
    asked for and not installed.
    """
    if mask is None:
        return _attend(q, k, v, None, backend)
    if mask.dtype != torch.bool:
        raise TypeError(f"the attention mask is {mask.dtype}, expected torch.bool with True = attend")
    mask = mask[None] if mask.ndim == 1 else mask
    some = mask.any(-1, keepdim=True)  # (..., L or 1, 1)
    out = _attend(q, k, v, mask | ~some, backend)  # an empty row attends to all, and is cleared afterwards
    return out.masked_fill(~some, 0)


def available() -> tuple[Backend, ...]:
    """Backends that can run on this machine."""
    xformers = importlib.util.find_spec("xformers") is not None and torch.cuda.is_available()
    return ("sdpa", "matmul", "xformers") if xformers else ("sdpa", "matmul")


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, backend: Backend) -> Tensor:
    if backend == "auto" and WISHED != "auto":
        backend = WISHED
    if backend == "auto":
        backend = "matmul" if q.device.type == "cpu" and k.shape[-2] <= SHORT else "sdpa"
    match backend:
        case "sdpa":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        case "matmul":
            return _matmul(q, k, v, mask)
        case "xformers":
            return _xformers(q, k, v, mask)
        case _:
            assert_never(backend)


def _matmul(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, h, L, S)
    scores = scores.float()  # the sum of exponentials needs more than eight bits
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if importlib.util.find_spec("xformers") is None:
        raise ImportError("attention backend 'xformers' is not installed; run: pip install 'palimpsest[gpu]'")
    operators = importlib.import_module("xformers.ops")
    bias = None if mask is None else _bias(mask.expand(*q.shape[:3], k.shape[2]), q.dtype)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, L, h, d)
    return operators.memory_efficient_attention(q, k, v, attn_bias=bias).transpose(1, 2)


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where the mask is True and -inf elsewhere, a view of rows padded to the alignment: (B, h, L, S)."""
    keys = mask.shape[-1]
    width = -(-keys // BIAS_ALIGNMENT) * BIAS_ALIGNMENT
    bias = torch.full((*mask.shape[:-1], width), -torch.inf, dtype=dtype, device=mask.device)
    bias[..., :keys].masked_fill_(mask, 0)
    return bias[..., :keys]
