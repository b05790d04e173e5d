import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbone.folded import FoldedConfig
from tokenizer.loss import vqvae_loss
from tokenizer.quantize import FSQConfig, LFQConfig, QuantizerConfig, ResidualConfig, SimVQConfig, VQConfig
from tokenizer.vqvae import VQVAE, VQVAEConfig

QUANTIZER = VQConfig(codes=16, dim=4)
TINY = VQVAEConfig(network=FoldedConfig(channels=16, encoder_blocks=1, decoder_blocks=1), quantizer=QUANTIZER)


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2, 4, 8]))
def test_codes_are_a_grid_smaller_by_the_factor_and_decode_to_the_same_size(h: int, w: int, factor: int):
    network = FoldedConfig(factor=factor, channels=16, encoder_blocks=0, decoder_blocks=0)
    config = VQVAEConfig(network=network, quantizer=QUANTIZER)
    model, x = VQVAE(config), torch.zeros(2, 3, h * factor, w * factor)
    codes = model.codes(x)
    assert codes.shape == (2, h * w) and codes.dtype == torch.int64
    assert model.grids(h * factor, w * factor) == [(h, w)] and model.config.vocabularies == (16,)
    assert model.encode(x).shape == (2, 4, h, w)
    assert model.decode_codes(codes, h * factor, w * factor).shape == x.shape


def test_a_pass_decodes_its_own_codes():
    model, x = VQVAE(TINY).eval(), images()
    x_hat, quantized = model(x)
    assert quantized is not None
    assert torch.equal(quantized.codes, model.codes(x))
    torch.testing.assert_close(x_hat, model.decode_codes(quantized.codes, 16, 16))


def test_an_unquantised_pass_leaves_the_codebook_alone_and_decodes_the_vectors():
    model, x = VQVAE(TINY).train(), images()
    before = {name: value.clone() for name, value in model.quantizer.state_dict().items()}
    x_hat, quantized = model(x, quantise=False)
    assert quantized is None
    torch.testing.assert_close(x_hat, model.decode(model.encode(x)))
    assert all(torch.equal(value, before[name]) for name, value in model.quantizer.state_dict().items())


def test_a_decoder_of_directions_reads_unit_vectors_before_the_codes_too():
    config = VQVAEConfig(network=TINY.network, quantizer=VQConfig(codes=16, dim=4, distance="cosine"))
    model, x = VQVAE(config), images()
    unit = torch.nn.functional.normalize(model.encoder(x), dim=1)
    torch.testing.assert_close(model.encode(x), unit)
    torch.testing.assert_close(model(x, quantise=False).x_hat, model.decode(unit))


def test_a_size_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="30 x 32"):
        VQVAE(TINY).codes(torch.zeros(1, 3, 30, 32))


def test_training_on_one_batch_lowers_its_loss():
    torch.manual_seed(0)
    model, x = VQVAE(TINY), images()
    model.quantizer.initialise(model.vectors(x), torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        x_hat, quantized = model(x)
        loss = vqvae_loss(x_hat, x, quantized.own, quantized.commitment, kind="mixed", beta=0.25)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        losses.append(loss.reconstruction.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_checkpoint_holds_the_moving_averages():
    names = set(VQVAE(TINY).state_dict())
    assert {"quantizer.codebook", "quantizer.cluster_size", "quantizer.sums"} <= names


def test_the_encoder_learns_through_the_quantiser():
    model = VQVAE(TINY)
    model(images()).x_hat.square().mean().backward()
    gradients = [p.grad for p in model.encoder.parameters()]
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize(
    ("field", "value"), [("beta", -1.0), ("unquantised", 1.0), ("initial_vectors", 10), ("revive_every", 0)]
)
def test_a_value_out_of_range_is_named_with_a_remedy(field: str, value: float):
    with pytest.raises(ValueError, match=rf"{field} is {value}, expected .*\. Use "):
        VQVAEConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("quantizer", [SimVQConfig(), FSQConfig(), LFQConfig(), VQConfig(), ResidualConfig()])
@pytest.mark.parametrize(
    ("field", "value"), [("unquantised", 0.2), ("initial_vectors", 20_000), ("revive_every", 7), ("beta", 1.0)]
)
def test_a_setting_that_a_quantiser_makes_no_use_of_is_refused(quantizer: QuantizerConfig, field: str, value: float):
    starts = quantizer.kind in ("vq", "residual")
    if quantizer.kind != "fsq" if field == "beta" else starts:
        assert getattr(VQVAEConfig(quantizer=quantizer, **{field: value}), field) == value  # type: ignore[arg-type]
    else:
        with pytest.raises(
            ValueError, match=rf"{field} is {value}, but a .* of kind '{quantizer.kind}'.*Leave {field} "
        ):
            VQVAEConfig(quantizer=quantizer, **{field: value})  # type: ignore[arg-type]
