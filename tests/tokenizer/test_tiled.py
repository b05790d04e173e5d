from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from backbone.folded import FoldedConfig
from tokenizer.tiled import Axis, farthest, ramps, tiled, tiled_codes, tiled_decode, tiled_encode
from tokenizer.vqvae import VQVAE, VQVAEConfig

FACTOR = 4
SIZES = [(64, 64), (40, 72), (100, 36), (24, 88), (4, 88)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2).double().requires_grad_(False)


def encoder(*kernels: int) -> nn.Sequential:
    """Fold, then convolutions with zero padding; the latents see sum(k // 2) positions to each side."""
    widths = [3 * FACTOR**2, *[6] * len(kernels)]
    convolutions = [layer(widths[i], widths[i + 1], kernel) for i, kernel in enumerate(kernels)]
    return nn.Sequential(nn.PixelUnshuffle(FACTOR), *(nn.Sequential(conv, nn.Tanh()) for conv in convolutions))


def decoder(*kernels: int) -> nn.Sequential:
    widths = [6] * len(kernels) + [3 * FACTOR**2]
    convolutions = [layer(widths[i], widths[i + 1], kernel) for i, kernel in enumerate(kernels)]
    return nn.Sequential(*(nn.Sequential(conv, nn.Tanh()) for conv in convolutions), nn.PixelShuffle(FACTOR))


def equal(found: Tensor, expected: Tensor) -> bool:
    assert found.shape == expected.shape
    return bool((found - expected).abs().max() < 1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(2, 20), st.data(), st.sampled_from([Fraction(1, 4), Fraction(1), Fraction(4)]))
def test_tiles_have_full_size_and_share_every_position_out(size: int, tile: int, data: st.DataObject, scale: Fraction):
    unit = scale.denominator
    overlap = data.draw(st.integers(0, tile - 1))
    axis = Axis.of(size * unit, tile * unit, overlap * unit)
    assert all(0 <= start and start + min(tile, size) * unit <= size * unit for start in axis.starts)
    for shares in (ramps, farthest):
        table = shares(axis, scale)
        assert (table >= 0).all()
        torch.testing.assert_close(table.sum(0).double(), torch.ones(int(size * unit * scale), dtype=torch.float64))
        for row, start in zip(table, axis.starts, strict=True):
            assert not row[: int(start * scale)].any() and not row[int((start + axis.tile) * scale) :].any()


def test_a_ramp_falls_by_even_steps_between_the_outer_quarters_of_the_overlap():
    table = ramps(Axis.of(24, 16, 8), Fraction(1))  # tiles at 0 and 8, overlap 8 to 16
    expected = torch.tensor([1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(table[0, 8:16], expected)
    torch.testing.assert_close(table[1, 8:16], expected.flip(0))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 4, 12, 20])
def test_functions_of_one_position_are_exact_whatever_the_overlap(size: tuple[int, int], overlap: int):
    x, z = normal(2, 3, *size), normal(2, 6, size[0] // FACTOR, size[1] // FACTOR)
    assert equal(tiled_encode(encoder(1), x, FACTOR, 32, overlap), encoder(1)(x))
    assert equal(tiled_decode(decoder(1), z, FACTOR, 32, overlap), decoder(1)(z))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("overlap", "kernels"), [(16, (3,)), (20, (3,)), (32, (3, 3)), (32, (5,))])
def test_convolutions_within_a_quarter_of_the_overlap_are_exact_up_to_the_borders(size, overlap: int, kernels):
    """Not only away from cuts: at the picture's border a tile has the padding that the picture has."""
    x, z = normal(2, 3, *size), normal(2, 6, size[0] // FACTOR, size[1] // FACTOR)
    assert equal(tiled_encode(encoder(*kernels), x, FACTOR, 48, overlap), encoder(*kernels)(x))
    assert equal(tiled_decode(decoder(*kernels), z, FACTOR, 48, overlap), decoder(*kernels)(z))


def test_convolutions_that_reach_further_are_not_exact_and_a_wider_overlap_brings_them_nearer():
    x, network = normal(2, 3, 96, 96), encoder(7, 7)
    errors = [
        (tiled_encode(network, x, FACTOR, 64, overlap) - network(x)).abs().mean().item() for overlap in (0, 16, 32)
    ]
    assert errors[0] > errors[1] > errors[2] > 1e-9


@pytest.mark.parametrize("size", [(32, 32), (16, 32), (8, 12)])
def test_a_picture_no_larger_than_a_tile_is_one_plain_call(size: tuple[int, int]):
    calls = []

    def network(x: Tensor) -> Tensor:
        calls.append(x.shape)
        return encoder(7)(x)

    x = normal(2, 3, *size)
    assert torch.equal(tiled_encode(network, x, FACTOR, 32, 8), encoder(7)(x))
    assert calls == [x.shape]


def test_no_call_sees_more_than_a_tile_and_all_tiles_have_its_size():
    calls = []

    def network(x: Tensor) -> Tensor:
        calls.append(tuple(x.shape[-2:]))
        return encoder(1)(x)

    tiled_encode(network, normal(1, 3, 100, 20), FACTOR, 32, 8)
    assert calls == [(32, 20)] * 4


def test_gradients_pass_through_tiles():
    x = normal(1, 3, 64, 64).requires_grad_(True)
    found = torch.autograd.grad(tiled_encode(encoder(3), x, FACTOR, 48, 16).square().sum(), x)[0]
    torch.testing.assert_close(found, torch.autograd.grad(encoder(3)(x).square().sum(), x)[0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grids", [1, 3])
def test_codes_within_half_the_overlap_are_those_of_the_whole_picture(size: tuple[int, int], grids: int):
    """Codes take a tile's middle, so they reach twice as far as blending does; 3 grids stand one below the other."""
    features = encoder(5)

    def codes(x: Tensor) -> Tensor:
        z = features(x)
        return torch.cat([(z * (i + 1) * 100).long().sum(1) for i in range(grids)], 1)  # (B, grids h, w)

    x = normal(2, 3, *size)
    found = tiled_codes(codes, x, FACTOR, 32, 16)
    assert found.dtype == torch.int64 and torch.equal(found, codes(x))


def test_codes_of_a_model_have_the_shape_of_a_plain_call():
    torch.manual_seed(0)
    network = FoldedConfig(factor=FACTOR, channels=16, encoder_blocks=0, decoder_blocks=0)
    model = VQVAE(VQVAEConfig(network=network)).eval()
    x = normal(2, 3, 48, 80).float().clamp(-1, 1)
    (whole,) = model.level_codes(x)
    found = tiled_codes(lambda part: model.level_codes(part)[0], x, FACTOR, 32, 16)
    assert found.shape == whole.shape and found.dtype == whole.dtype
    picture = tiled_decode(lambda z: model.decode(z), model.quantizer.lookup(found), FACTOR, 32, 16)
    assert picture.shape == x.shape


def test_a_blend_of_constants_has_no_seam():
    one = tiled(lambda x: F.avg_pool2d(x, 4) * 0 + 1, normal(1, 1, 72, 72), tile=32, overlap=12, scale=Fraction(1, 4))
    assert equal(one, torch.ones_like(one))


@pytest.mark.parametrize(
    ("tile", "overlap", "match"),
    [
        (30, 8, "tile is 30.*factor = 4.*Use 32"), (32, 6, "overlap is 6.*factor = 4.*Use 8"),
        (32, 32, "overlap is 32.*tile = 32.*Use 8"), (32, -4, "overlap is -4"),
    ],
)  # fmt: skip
def test_tiles_that_do_not_fit_are_refused_with_the_next_that_does(tile: int, overlap: int, match: str):
    for function in (tiled_encode, tiled_decode, tiled_codes):
        with pytest.raises(ValueError, match=match):
            function(encoder(1), normal(1, 3, 64, 64), FACTOR, tile, overlap)


def test_pictures_and_factors_that_do_not_fit_are_refused():
    for function in (tiled_encode, tiled_codes):
        with pytest.raises(ValueError, match=r"66 x 64.*multiples of factor = 4"):
            function(encoder(1), normal(1, 3, 66, 64), FACTOR, 32, 8)
    with pytest.raises(ValueError, match=r"32 x 32 came back as 8 x 8, expected 16 x 16\. Give the factor"):
        tiled_encode(encoder(1), normal(1, 3, 64, 64), 2, 32, 8)
