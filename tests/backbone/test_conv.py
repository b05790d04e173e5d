import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D

from backbone.conv import AdaptiveResBlock, ResBlock, WideGroupNorm, double, halve


def test_residual_block_is_the_identity_at_initialisation():
    x = torch.randn(2, 16, 5, 7)
    assert torch.equal(ResBlock(16)(x), x)


def test_second_convolution_learns_from_the_first_step():
    block = ResBlock(16)
    block(torch.randn(2, 16, 4, 4)).square().sum().backward()
    assert block.conv_out.weight.grad is not None
    assert block.conv_out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("outputs", [16, 24])
def test_the_adaptive_block_is_that_of_diffusers_with_scale_and_shift(outputs: int):
    torch.manual_seed(0)
    ours = AdaptiveResBlock(16, outputs, 12)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = ResnetBlock2D(
        in_channels=16, out_channels=outputs, temb_channels=12, groups=8, eps=1e-5, time_embedding_norm="scale_shift"
    )
    names = {"norm1": ours.norm_in, "conv1": ours.conv_in, "norm2": ours.norm_out, "conv2": ours.conv_out}
    if outputs != 16:
        names["conv_shortcut"] = ours.skip
    for name, module in names.items():
        theirs.get_submodule(name).load_state_dict(module.state_dict())
    for name in ("weight", "bias"):  # theirs puts the scale first
        shift, scale = getattr(ours.modulation, name).chunk(2)
        getattr(theirs.time_emb_proj, name).data.copy_(torch.cat([scale, shift]))
    x, c = torch.randn(2, 16, 5, 6), torch.randn(2, 12)
    torch.testing.assert_close(ours(x, c), theirs(x, c), atol=1e-5, rtol=1e-4)


def test_an_adaptive_block_is_its_skip_at_initialisation():
    x, c = torch.randn(2, 16, 5, 7), torch.randn(2, 4)
    assert torch.equal(AdaptiveResBlock(16, 16, 4)(x, c), x)
    wider = AdaptiveResBlock(16, 24, 4)
    assert torch.equal(wider(x, c), wider.skip(x))


def test_group_normalisation_and_its_gradient_are_exact_in_bfloat16():
    """Beside a large mean bfloat16 has no digits left for the deviation; torch keeps the mean in the input's dtype."""
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 16, 8, 8, generator=g) * 2 + 50.1).bfloat16().requires_grad_()
    norm, slope = WideGroupNorm(8, 16).bfloat16(), torch.randn(2, 16, 8, 8, generator=g).bfloat16()
    found = norm(x)
    found.backward(slope)
    wide = x.detach().double().requires_grad_()
    groups = wide.view(2, 8, -1)
    normed = (groups - groups.mean(-1, keepdim=True)) / groups.std(-1, correction=0, keepdim=True)
    normed.view_as(wide).backward(slope.double())
    assert found.dtype == torch.bfloat16
    assert (found.double().view(2, 8, -1) - normed).abs().max() < 0.02
    assert (x.grad.double() - wide.grad).abs().max() < 0.01
    weight_grad = (slope.double() * normed.view_as(wide)).sum((0, 2, 3))
    assert (norm.weight.grad.double() - weight_grad).abs().max() < 0.01 * weight_grad.abs().max()


def test_group_normalisation_keeps_float64():
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    norm = WideGroupNorm(8, 16).double()
    torch.testing.assert_close(norm(x), torch.nn.functional.group_norm(x, 8), atol=1e-12, rtol=0)


def test_half_the_size_and_twice_the_size_undo_each_other():
    x = torch.randn(2, 8, 6, 4)
    assert halve(8)(x).shape == (2, 8, 3, 2)
    assert double(8)(halve(8)(x)).shape == x.shape


def test_a_norm_above_frozen_layers_learns_in_channels_last():
    """torch's own kernel ends the process here."""
    x = torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    norm = WideGroupNorm(8, 16)
    norm(x).square().sum().backward()
    assert norm.weight.grad.any()
