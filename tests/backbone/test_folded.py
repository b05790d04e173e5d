import pytest
import torch

from backbone.folded import FoldedConfig, FoldedDecoder, FoldedEncoder


def small(factor: int, blocks: int) -> FoldedConfig:
    return FoldedConfig(factor=factor, channels=16, encoder_blocks=blocks, decoder_blocks=blocks)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_encoder_and_decoder_divide_and_multiply_the_size_by_the_factor(factor: int):
    x = torch.randn(2, 3, 2 * factor, 3 * factor)
    z = FoldedEncoder(small(factor, 1), 5)(x)
    assert z.shape == (2, 5, 2, 3)
    assert FoldedDecoder(small(factor, 1), 5)(z).shape == x.shape


def test_distant_pixels_do_not_meet_without_blocks():
    """Space-to-depth keeps places: through two 3x3 convolutions a pixel reaches the two cells around its own, no more.

    Normalisation mixes all places, so it is left out here.
    """
    layers = FoldedEncoder(small(2, 0), 4).layers
    stem, head = layers[:2], layers[2][2]
    x = torch.randn(1, 3, 16, 16)
    y = x.clone()
    y[..., 0, 0] += 1
    changed = (head(stem(x)) - head(stem(y))).abs().amax((0, 1)) > 0
    assert changed[0, 0]
    assert not changed[3:].any()
    assert not changed[:, 3:].any()


def test_channels_last_changes_no_value():
    torch.manual_seed(0)
    encoder, x = FoldedEncoder(small(4, 1), 4), torch.randn(2, 3, 16, 16)
    expected = encoder(x)
    got = encoder.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("height", "width", "fit"), [(30, 32, "28 x 32"), (32, 33, "32 x 32"), (2, 8, "4 x 8")])
def test_a_size_the_factor_does_not_divide_is_named_with_one_that_fits(height: int, width: int, fit: str):
    with pytest.raises(ValueError, match=f"{height} x {width} .* factor = 4.*{fit}"):
        FoldedEncoder(small(4, 0), 4)(torch.randn(1, 3, height, width))


@pytest.mark.parametrize(
    ("field", "value"), [("factor", 0), ("channels", 20), ("encoder_blocks", -1), ("decoder_blocks", -1)]
)
def test_impossible_sizes_are_refused_by_name_with_a_remedy(field: str, value: int):
    with pytest.raises(ValueError, match=rf"{field} is {value}, expected .*\. (Use|Try) "):
        FoldedConfig(**{field: value})
