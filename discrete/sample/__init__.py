"""Samplers: one function each, from x_1 (all masked, or partly filled in) to x_0.

Most share `(denoise, schedule, x, times)`: x (B, L) int64 and a decreasing grid of times (N + 1,); the adaptive ones
take a bound or a number instead of a grid. Every sampler takes `known` (B, L) bool: those tokens are never changed,
whatever they hold, and never counted. A token that is visible but not known was filled in by someone else; it is
carried over too, except by `remask`, which may hide it again. The last step reveals all that is left, whether or not a
grid ends at 0, so no sampler returns a mask.
"""

from discrete.sample.block import block, block_causal
from discrete.sample.draw import draw, invert
from discrete.sample.order import confidence, entropy_bound
from discrete.sample.remask import Remasking, looped, remask
from discrete.sample.reveal import Remember, ancestral, cached, first_hitting

__all__ = [
    "Remasking",
    "Remember",
    "ancestral",
    "block",
    "block_causal",
    "cached",
    "confidence",
    "draw",
    "entropy_bound",
    "first_hitting",
    "invert",
    "looped",
    "remask",
]
