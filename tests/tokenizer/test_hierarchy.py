"""Two levels of codes: what each reads, how their codes are numbered, and that both learn."""

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from backbone.folded import FoldedConfig
from backbone.pyramid import PyramidConfig
from tokenizer.hierarchy import TopConfig
from tokenizer.loss import vqvae_loss
from tokenizer.quantize import FSQConfig, LFQConfig, QuantizerConfig, ResidualConfig, VQConfig
from tokenizer.vqvae import VQVAE, VQVAEConfig

NETWORK = FoldedConfig(channels=16, encoder_blocks=1, decoder_blocks=1)
VQ = VQConfig(codes=16, dim=4)
PAIRS: dict[str, tuple[QuantizerConfig, QuantizerConfig]] = {
    "vq": (VQConfig(codes=8, dim=3, learn="gradient"), VQ),
    "residual": (ResidualConfig(depth=2, level=VQConfig(codes=8, dim=3)), ResidualConfig(depth=3, level=VQ)),
    "mixed": (FSQConfig(levels=(3, 4)), LFQConfig(bits=5)),
}
each = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def config(pair: tuple[QuantizerConfig, QuantizerConfig] = PAIRS["vq"], **options) -> VQVAEConfig:
    top = TopConfig(quantizer=pair[0], channels=16, blocks=1)
    return VQVAEConfig(**{"network": NETWORK, "quantizer": pair[1], "top": top, **options})


def built(pair: tuple[QuantizerConfig, QuantizerConfig] = PAIRS["vq"]) -> VQVAE:
    """A model whose blocks are not the identity, as they are at first."""
    torch.manual_seed(0)
    model = VQVAE(config(pair))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def images(count: int = 4, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@each
def test_a_pass_decodes_its_own_codes_which_count_grid_after_grid(pair):
    model, x = built(pair), images()
    x_hat, quantized = model(x)
    codes, shapes = model.codes(x), model.grids(16, 24)
    assert shapes == [(2, 3)] * model.levels[0].grids + [(4, 6)] * model.levels[1].grids
    assert quantized is not None and torch.equal(quantized.codes, codes) and codes.dtype == torch.int64
    torch.testing.assert_close(model.decode_codes(codes, 16, 24), x_hat)
    first = 0
    for part, size in zip(codes.split([h * w for h, w in shapes], 1), model.config.vocabularies, strict=True):
        assert first <= part.min() and part.max() < first + size
        first += size
    assert first == model.config.codes == sum(one.codes for one in pair)


@each
def test_the_decoder_reads_the_sum_of_the_codewords_that_cover_a_place(pair):
    model, x = built(pair), images(2)
    quantized, book = model(x).quantized, model.codewords()
    shapes = model.grids(16, 24)
    parts = quantized.codes.split([h * w for h, w in shapes], 1)
    grids = [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
    for i, j in itertools.product(range(4), range(6)):
        found = sum(book[grid[:, i * h // 4, j * w // 6]] for grid, (h, w) in zip(grids, shapes, strict=True))
        torch.testing.assert_close(quantized.z[:, :, i, j], found)


@each
def test_losses_are_sums_over_the_levels(pair):
    model, x = built(pair).train(), images()
    passes = []
    for level in model.levels:
        level.register_forward_hook(lambda _, __, made: passes.append(made))
    quantized = model(x).quantized
    top, bottom = passes
    torch.testing.assert_close(quantized.own, top.own + bottom.own)
    torch.testing.assert_close(quantized.commitment, top.commitment + bottom.commitment)
    assert top.z.shape[2:] == (2, 3) and bottom.z.shape[2:] == (4, 6)


def test_vectors_of_the_lower_level_depend_on_the_codes_of_the_upper_one_and_not_the_other_way():
    model, x = built(), images()
    before = [model.vectors(x, level) for level in range(2)]
    assert [len(one) for one in before] == [4 * 6, 4 * 24]
    with torch.no_grad():
        model.quantizer.codebook.add_(1.0)
    assert all(torch.equal(model.vectors(x, level), before[level]) for level in range(2))
    with torch.no_grad():
        model.levels[0].codebook.add_(1.0)
    assert torch.equal(model.vectors(x, 0), before[0]) and not torch.allclose(model.vectors(x, 1), before[1])


@pytest.mark.parametrize("cut", ["top", "bottom"])
def test_the_image_reaches_both_encoders_through_either_level_alone(cut: str):
    model, x = built().train(), images()
    z = model(x).quantized.z
    z = torch.cat([z[:, :3].detach(), z[:, 3:]], 1) if cut == "top" else torch.cat([z[:, :3], z[:, 3:].detach()], 1)
    model.decode(z).square().mean().backward()
    for part in (model.encoder, model.top.encoder):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_an_unquantised_pass_leaves_the_codebooks_alone_and_decodes_the_vectors():
    model, x = built().train(), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x_hat, quantized = model(x, quantise=False)
    assert quantized is None
    torch.testing.assert_close(x_hat, model.decode(model.encode(x)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    top = model.encode(x)[:, :3]
    assert torch.equal(top[:, :, ::2, ::2], top[:, :, 1::2, 1::2])  # repeated over its squares


def test_training_on_one_batch_lowers_its_loss_with_both_levels_in_use():
    torch.manual_seed(0)
    model, x, g = VQVAE(config((VQ, VQ))), images(8, 16, 16), torch.Generator().manual_seed(0)
    for level, quantizer in enumerate(model.levels):
        quantizer.initialise(model.vectors(x, level), g)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        x_hat, quantized = model(x)
        loss = vqvae_loss(x_hat, x, quantized.own, quantized.commitment, kind="mixed", beta=0.25)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        losses.append(loss.reconstruction.item())
    assert losses[-1] < 0.7 * losses[0]
    codes = model.eval().codes(x)
    assert len(codes[:, :4].unique()) > 8 and len(codes[:, 4:].unique()) > 8
    whole = (model.decode_codes(codes, 16, 16) - x).square().mean()
    for part in (slice(4), slice(4, 20)):  # codes of another picture, on one level: the decoder reads both
        mixed = codes.clone()
        mixed[:, part] = codes.roll(1, 0)[:, part]
        assert (model.decode_codes(mixed, 16, 16) - x).square().mean() > whole


@pytest.mark.parametrize("network", [NETWORK, PyramidConfig(channels=(16, 16), blocks=1, groups=4)])
def test_sides_are_multiples_of_twice_the_factor(network):
    made, factor = config(network=network), network.factor
    model = VQVAE(made)
    assert made.multiple == 2 * factor and dataclasses.replace(made, top=None).multiple == factor
    assert model.codes(torch.zeros(1, 3, 2 * factor, 4 * factor)).shape == (1, 2 + 8)
    with pytest.raises(ValueError, match=rf"multiples of factor = {2 * factor}\. Resize or crop"):
        model.codes(torch.zeros(1, 3, 3 * factor, 4 * factor))


def test_values_out_of_range_are_named_with_a_remedy():
    for options in ({"channels": 12}, {"channels": 20}, {"blocks": -1}):
        ((name, value),) = options.items()
        with pytest.raises(ValueError, match=rf"top.{name} is {value}, expected .*\. Try "):
            TopConfig(**options)
    with pytest.raises(ValueError, match=r"initial_vectors is 100, expected at least one for each of 512 codes"):
        config((VQConfig(codes=512), VQ), initial_vectors=100)
