import pytest
import torch

from latent.unet import Stage
from tests.latent.networks import config, farthest, inputs, network


@pytest.mark.parametrize(
    ("side", "changes"),
    [
        (8, {}),
        (8, {"multipliers": (1, 2, 2, 4), "attention_levels": ()}),
        (32, {"channels": 3, "patch": 2, "multipliers": (1, 1, 2), "attention_levels": (1, 2)}),
        (64, {"channels": 3, "patch": 4, "blocks": 2}),
        (128, {"channels": 3, "patch": 4, "multipliers": (1, 1, 1), "attention_levels": (2,)}),
    ],
    ids=str,
)
def test_latents_and_pixels_keep_their_shape(side, changes):
    made = network("unet", **changes)
    _, t, cond = inputs()
    x_t = torch.randn(3, made.config.channels, side, side)
    out = made(x_t, t, cond)
    assert out.shape == x_t.shape
    assert out.std() > 0.01


def test_sides_that_the_levels_do_not_divide_are_refused():
    x_t, t, cond = inputs(side=8)
    made = network("unet", patch=2, multipliers=(1, 1, 1))
    with pytest.raises(ValueError, match=r"8 x 6 do not fit.*multiples of factor = 8.*8 x 8"):
        made(x_t[..., :6], t, cond)
    assert made(x_t, t, cond).shape == x_t.shape


def test_the_lowest_level_lies_at_the_stated_size():
    made, (x_t, t, cond) = network("unet", multipliers=(1, 2, 3), patch=2), inputs(side=16)
    seen = []
    made.middle[0].register_forward_hook(lambda module, arguments, out: seen.append(out.shape))
    made(x_t, t, cond)
    assert seen == [(3, 48, 2, 2)]
    assert made.config.factor == 16 // 2


def test_attention_stands_at_the_listed_levels_and_in_the_middle():
    made = network("unet", multipliers=(1, 2, 2), attention_levels=(1,), blocks=2)
    attends = lambda layers: [layer.attention is not None for layer in layers if isinstance(layer, Stage)]  # noqa: E731
    assert attends(made.down) == [False, False, True, True, False, False]
    assert attends(made.middle) == [True, False]
    assert attends(made.up) == [False] * 3 + [True] * 3 + [False] * 3


def test_all_that_is_kept_on_the_way_down_is_used_on_the_way_up():
    """With the lowest features silenced, what stays of each layer's gradient came through its skip connection."""
    made, (x_t, t, cond) = network("unet", blocks=2), inputs()
    kept = []

    def cut(module, arguments, out):
        kept.append(out.detach().requires_grad_())  # the next layer goes on from here, and so does the skip
        return kept[-1]

    for layer in [made.stem, *made.down]:
        layer.register_forward_hook(cut)
    made.middle[0].register_forward_pre_hook(lambda module, arguments: torch.zeros_like(arguments[0]))
    made(x_t, t, cond).square().sum().backward()
    assert len(kept) == 1 + 2 + 1 + 2
    assert all(features.grad is not None and features.grad.any() for features in kept)


def test_channels_last_changes_no_value():
    made, (x_t, t, cond) = network("unet"), inputs()
    expected = made(x_t, t, cond)
    found = made.to(memory_format=torch.channels_last)(x_t.contiguous(memory_format=torch.channels_last), t, cond)
    torch.testing.assert_close(found, expected)


def test_features_stay_in_channels_last_through_every_layer():
    """A transposed copy in every layer would cost about as much as its convolution."""
    made, (x_t, t, cond) = network("unet"), inputs()
    for layer in [*made.down, *made.middle, *made.up]:
        layer.register_forward_hook(
            lambda module, arguments, out: formats.append(out.is_contiguous(memory_format=torch.channels_last))
        )
    formats = []
    made(x_t, t, cond)
    assert len(formats) == 10
    assert all(formats)


def test_text_reaches_a_network_whose_levels_do_not_attend():
    made, (x_t, t, cond) = network("unet", attention_levels=()), inputs()
    words = torch.where(cond.mask[..., None], cond.tokens + 1, cond.tokens)
    assert farthest(made(x_t, t, cond._replace(tokens=words)), made(x_t, t, cond)).min() > 1e-4


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", 20, "width is 20, expected a positive multiple of 8"),
        ("blocks", 0, "blocks is 0, expected at least 1"),
        ("multipliers", (), r"multipliers is \(\), expected one number from 1 up for each level"),
        ("multipliers", (1, 0), r"multipliers is \(1, 0\), expected one number from 1 up"),
        ("attention_levels", (2,), r"attention_levels is \(2,\), expected levels from 0 to 1"),
        ("head_width", 12, "head_width is 12, expected a divisor of the 32 channels of level 1"),
        ("head_width", 0, "head_width is 0, expected a divisor"),
    ],
)
def test_a_size_out_of_range_is_refused_with_its_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        config("unet", **{field: value})
