import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder

from backbone.codec import decoder_of, encoder_of
from backbone.pyramid import PyramidConfig, PyramidDecoder, PyramidEncoder

SIZES = {"channels": (8, 16), "groups": 4, "blocks": 1, "projected": False}


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Nothing at zero, so that every layer counts."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return module.double()


@pytest.mark.parametrize("attention", [True, False])
def test_the_encoder_is_that_of_diffusers_under_the_same_names(attention: bool):
    ours = shaken(PyramidEncoder(PyramidConfig(attention=attention, **SIZES), 6))
    theirs = Encoder(
        3, 3, ("DownEncoderBlock2D",) * 2, (8, 16), layers_per_block=1, norm_num_groups=4,
        mid_block_add_attention=attention,
    ).double()  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("attention", [True, False])
def test_the_decoder_is_that_of_diffusers_under_the_same_names(attention: bool):
    ours = shaken(PyramidDecoder(PyramidConfig(attention=attention, **SIZES), 5))
    theirs = Decoder(
        5, 3, ("UpDecoderBlock2D",) * 2, (8, 16), layers_per_block=1, norm_num_groups=4,
        mid_block_add_attention=attention,
    ).double()  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    z = torch.randn(2, 5, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(ours(z), theirs(z), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("levels", [1, 3, 4, 5])
def test_each_level_below_the_first_halves_the_size(levels: int):
    config = PyramidConfig(channels=(8,) * levels, groups=4, blocks=1)
    assert config.factor == 2 ** (levels - 1)
    x = torch.randn(1, 3, 2 * config.factor, config.factor)
    z = encoder_of(config, 5)(x)
    assert z.shape == (1, 5, 2, 1)
    assert decoder_of(config, 5)(z).shape == x.shape


def test_projections_stand_between_the_pyramid_and_latents_of_another_width():
    config = PyramidConfig(channels=(8, 8), groups=4, blocks=1, inner=7)
    encoder, decoder = PyramidEncoder(config, 5), PyramidDecoder(config, 5)
    assert encoder.conv_out.out_channels == decoder.conv_in.in_channels == 7
    assert decoder(encoder(torch.randn(1, 3, 4, 4))).shape == (1, 3, 4, 4)


def test_a_size_that_the_factor_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"10 x 12 .* factor = 4.*8 x 12"):
        PyramidEncoder(PyramidConfig(channels=(8, 8, 8), groups=4), 4)(torch.zeros(1, 3, 10, 12))


@pytest.mark.parametrize("change", [{"channels": ()}, {"channels": (32, 48)}, {"blocks": 0}, {"inner": 0},
                                    {"inner": 4, "projected": False}])  # fmt: skip
def test_sizes_that_no_pyramid_has_are_refused_with_a_remedy(change: dict):
    name = next(iter(change))
    with pytest.raises(ValueError, match=rf"{name} is .* expected .*\. (Use|Leave)"):
        PyramidConfig(**change)


def test_the_last_layer_is_named_and_listed_once():
    decoder = PyramidDecoder(PyramidConfig(channels=(8,), groups=4, blocks=1), 3)
    assert decoder.last[0] is decoder.conv_out
    assert len([p for p in decoder.parameters() if p is decoder.conv_out.weight]) == 1
