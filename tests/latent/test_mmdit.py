import pytest
import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0

from backbone.block import Block, BlockStyle
from backbone.embed import Rotary, rotary_1d, rotary_2d
from latent.mmdit import JointBlock, LastBlock
from tests.latent.networks import config, farthest, inputs, network

DIM, HEADS, WORDS, PLACES = 32, 2, 6, 4


def joint(make=JointBlock, **changes):
    torch.manual_seed(0)
    block = make(config("mmdit", **changes))
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


def streams():
    g = torch.Generator().manual_seed(1)
    text, image, c = (torch.randn(size, generator=g) for size in [(3, WORDS, DIM), (3, PLACES, DIM), (3, 16)])
    words = torch.arange(WORDS) < torch.tensor([4, 6, 2])[:, None]
    mask = torch.cat([words, torch.ones(3, PLACES, dtype=torch.bool)], 1)[:, None, None]
    tables = rotary_1d(WORDS, DIM // HEADS), rotary_2d(2, 2, DIM // HEADS)
    return text, image, c, mask, Rotary(*(torch.cat(pair) for pair in zip(*tables, strict=True)))


@pytest.mark.parametrize("changes", [{}, {"activation": "swiglu"}, {"qk_norm": False}], ids=str)
def test_two_streams_of_the_same_weights_are_one_block_over_both(changes):
    block, (text, image, c, mask, rotary) = joint(**changes), streams()
    block.text.load_state_dict(block.image.state_dict())
    whole = Block(DIM, HEADS, cond_dim=16, style=BlockStyle(**changes))
    whole.load_state_dict(block.image.state_dict())
    expected = whole(torch.cat([text, image], 1), c, mask=mask, rotary=rotary)
    torch.testing.assert_close(torch.cat(block(text, image, c, mask, rotary), 1), expected)


def test_the_joint_attention_is_that_of_diffusers():
    block, (text, image, c, mask, _) = joint(), streams()
    for stream in (block.text, block.image):
        stream.modulation.weight.data.zero_()
        stream.modulation.bias.data.copy_(torch.tensor([0.0, 0, 1, 0, 0, 0]).repeat_interleave(DIM))  # the first gate
    theirs = Attention(
        DIM, heads=HEADS, dim_head=DIM // HEADS, added_kv_proj_dim=DIM, added_proj_bias=False, context_pre_only=False,
        qk_norm="rms_norm", eps=1e-6, processor=JointAttnProcessor2_0(),
    )  # fmt: skip
    names = {"image": ("to_{}", "to_out.0", "norm_{}"), "text": ("add_{}_proj", "to_add_out", "norm_added_{}")}
    for name, (projection, out, norm) in names.items():
        ours = getattr(block, name).attention
        weights = {"q": ours.query.weight, **dict(zip("kv", ours.key_value.weight.chunk(2), strict=True))}
        for letter, weight in weights.items():
            theirs.get_submodule(projection.format(letter)).weight.data.copy_(weight)
        theirs.get_submodule(norm.format("q")).weight.data.copy_(ours.query_norm.weight)
        theirs.get_submodule(norm.format("k")).weight.data.copy_(ours.key_norm.weight)
        theirs.get_submodule(out).load_state_dict(ours.out.state_dict())
    normed = (torch.nn.functional.rms_norm(x, (DIM,), eps=1e-6) for x in (image, text))
    heard_image, heard_text = theirs(*normed)
    found_text, found_image = block(text, image, c, torch.ones_like(mask), None)
    torch.testing.assert_close(found_image - image, heard_image, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found_text - text, heard_text, atol=1e-5, rtol=1e-4)


def test_the_last_block_gives_the_image_that_a_whole_block_would():
    block, last, (text, image, c, mask, rotary) = joint(), joint(LastBlock), streams()
    last.image.load_state_dict(block.image.state_dict())
    last.text.key_value.load_state_dict(block.text.attention.key_value.state_dict())
    last.text.key_norm.load_state_dict(block.text.attention.key_norm.state_dict())
    for name in ("weight", "bias"):
        shift_and_scale = getattr(block.text.modulation, name).data[: 2 * DIM]
        getattr(last.text.modulation, name).data.copy_(shift_and_scale)
    _, expected = block(text, image, c, mask, rotary)
    torch.testing.assert_close(last(text, image, c, mask, rotary), expected)


def test_a_new_joint_block_is_the_identity():
    text, image, c, mask, rotary = streams()
    new_text, new_image = JointBlock(config("mmdit"))(text, image, c, mask, rotary)
    assert torch.equal(new_text, text)
    assert torch.equal(new_image, image)
    assert torch.equal(LastBlock(config("mmdit"))(text, image, c, mask, rotary), image)


def test_the_streams_hear_each_other():
    block, (text, image, c, mask, rotary) = joint(), streams()
    new_text, new_image = block(text, image, c, mask, rotary)
    other_text, _ = block(text, -image, c, mask, rotary)
    _, other_image = block(-text, image, c, mask, rotary)
    assert farthest(new_text, other_text).min() > 1e-2
    assert farthest(new_image, other_image).min() > 1e-2


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("positions", ["rotary", "sincos", "both"])
def test_every_depth_and_every_kind_of_position_works(layers, positions):
    made, (x_t, t, cond) = network("mmdit", layers=layers, positions=positions), inputs()
    out = made(x_t, t, cond)
    assert out.shape == x_t.shape
    moved = x_t.roll(4, -1)
    assert farthest(made(moved, t, cond).roll(-4, -1), out).min() > 1e-3
