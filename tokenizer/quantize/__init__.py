"""Quantisers: a grid of vectors to a grid of codes and back, each behind the same calls (`Quantizer`).

A configuration says which: swapping one for another is one table of a recipe.
"""

from __future__ import annotations

from typing import assert_never

from tokenizer.quantize.base import Moved, Quantized, Quantizer, channels_last
from tokenizer.quantize.codebook import SimVQ, SimVQConfig, VectorQuantizer, VQConfig
from tokenizer.quantize.residual import ResidualConfig, ResidualVQ
from tokenizer.quantize.scalar import FSQ, LFQ, FSQConfig, LFQConfig

QuantizerConfig = VQConfig | ResidualConfig | SimVQConfig | FSQConfig | LFQConfig

__all__ = [
    "FSQ",
    "LFQ",
    "FSQConfig",
    "LFQConfig",
    "Moved",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "ResidualConfig",
    "ResidualVQ",
    "SimVQ",
    "SimVQConfig",
    "VQConfig",
    "VectorQuantizer",
    "channels_last",
    "quantizer_of",
]


def quantizer_of(config: QuantizerConfig) -> Quantizer:
    """Make the quantiser that a configuration asks for."""
    match config:
        case VQConfig():
            return VectorQuantizer(config)
        case ResidualConfig():
            return ResidualVQ(config)
        case SimVQConfig():
            return SimVQ(config)
        case FSQConfig():
            return FSQ(config)
        case LFQConfig():
            return LFQ(config)
        case _:
            assert_never(config)
