"""The encoder and the decoder of an autoencoder, of either build."""

from __future__ import annotations

from typing import assert_never

from backbone.folded import FoldedConfig, FoldedDecoder, FoldedEncoder
from backbone.pyramid import PyramidConfig, PyramidDecoder, PyramidEncoder

CodecConfig = FoldedConfig | PyramidConfig


def encoder_of(config: CodecConfig, outputs: int) -> FoldedEncoder | PyramidEncoder:
    """Return a new encoder: (B, 3, H, W) -> (B, outputs, H/factor, W/factor)."""
    match config:
        case FoldedConfig():
            return FoldedEncoder(config, outputs)
        case PyramidConfig():
            return PyramidEncoder(config, outputs)
        case _:
            assert_never(config)


def decoder_of(config: CodecConfig, inputs: int) -> FoldedDecoder | PyramidDecoder:
    """Return a new decoder: (B, inputs, h, w) -> (B, 3, h factor, w factor); `last` holds its last layer."""
    match config:
        case FoldedConfig():
            return FoldedDecoder(config, inputs)
        case PyramidConfig():
            return PyramidDecoder(config, inputs)
        case _:
            assert_never(config)
