import copy

import pytest
import torch

from latent.dit import Condition, DiT, DiTConfig, patchify, unpatchify

SMALL = dict(dim=32, layers=2, heads=2, text_width=12, text_length=6, pooled_width=10, text_dim=16, text_heads=2)


def config(**changes):
    return DiTConfig(**{**SMALL, "cond_dim": 16, **changes})


def network(*, trained=True, **changes):
    torch.manual_seed(0)
    made = DiT(config(**changes))
    if trained:
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def inputs(batch=3, side=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    x_t = torch.randn(batch, 4, side, side, generator=g)
    tokens = torch.randn(batch, 6, 12, generator=g)
    mask = torch.arange(6) < torch.tensor([4, 6, 2, 5])[:batch, None]
    return x_t, torch.rand(batch, generator=g), Condition(tokens, mask, torch.randn(batch, 10, generator=g))


def test_a_new_network_puts_out_zeros_and_every_parameter_learns():
    made, (x_t, t, cond) = network(trained=False), inputs()
    assert torch.equal(made(x_t, t, cond), torch.zeros_like(x_t))
    optimiser = torch.optim.SGD(made.parameters(), lr=0.3)
    for _ in range(5):
        optimiser.zero_grad()
        dropped = made.drop(cond, torch.tensor([True, False, False]))
        (made(x_t, t, dropped) - x_t).square().mean().backward()
        optimiser.step()
    idle = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("side", [8, 16])
def test_latents_of_32_and_64_pixels_keep_their_shape(patch, side):
    x_t, t, cond = inputs(side=side)
    out = network(patch=patch)(x_t, t, cond)
    assert out.shape == x_t.shape
    assert out.dtype == torch.float32
    assert out.std() > 0.01


@pytest.mark.parametrize(("height", "width", "patch"), [(8, 8, 2), (4, 6, 1), (6, 12, 3)])
def test_patches_go_back_to_the_picture(height, width, patch):
    x = torch.randn(2, 4, height, width)
    tokens = patchify(x, patch)
    assert tokens.shape == (2, height * width // patch**2, 4 * patch**2)
    assert torch.equal(tokens[:, 1].view(2, 4, patch, patch), x[..., :patch, patch : 2 * patch])
    assert torch.equal(unpatchify(tokens, patch, height // patch, width // patch), x)


def test_sides_that_the_patch_does_not_divide_are_refused():
    x_t, t, cond = inputs(side=7)
    with pytest.raises(ValueError, match="latents of 7 x 7 cannot be cut in patches of 2 x 2"):
        network()(x_t, t, cond)


def test_tokens_behind_the_mask_do_not_matter_and_words_do():
    made, (x_t, t, cond) = network(), inputs()
    expected = made(x_t, t, cond)
    padding = torch.where(cond.mask[..., None], cond.tokens, torch.full_like(cond.tokens, 50.0))
    torch.testing.assert_close(made(x_t, t, cond._replace(tokens=padding)), expected)
    words = torch.where(cond.mask[..., None], cond.tokens + 1, cond.tokens)
    assert (made(x_t, t, cond._replace(tokens=words)) - expected).abs().amax((1, 2, 3)).min() > 1e-3


def test_a_dropped_item_is_the_null_condition_and_the_others_stay():
    made, (x_t, t, cond) = network(), inputs()
    dropped = torch.tensor([False, True, False])
    out = made(x_t, t, made.drop(cond, dropped))
    null, kept = made(x_t, t, made.null_condition(3)), made(x_t, t, cond)
    torch.testing.assert_close(out[dropped], null[dropped])
    torch.testing.assert_close(out[~dropped], kept[~dropped])
    assert (null - kept).abs().amax((1, 2, 3)).min() > 1e-3  # the inverted rule would fail here
    torch.testing.assert_close(made(x_t, t, cond, dropped), out)


def test_the_null_condition_is_learned():
    made, (x_t, t, _) = network(), inputs()
    made(x_t, t, made.null_condition(3)).square().mean().backward()
    assert made.null_token.grad.any()
    assert made.null_pooled.grad.any()


def test_an_item_does_not_depend_on_its_batch():
    made, (x_t, t, cond) = network(), inputs()
    whole = made(x_t, t, cond)
    alone = made(x_t[1:2], t[1:2], Condition(*(part[1:2] for part in cond)))
    torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=1e-5)


def test_time_is_embedded_in_float32_under_bfloat16_autocast():
    made, (x_t, _, cond) = network(), inputs()
    t = torch.tensor([0.9, 0.9001, 0.9002])
    seen = []
    made.time.register_forward_hook(lambda module, arguments, out: seen.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        made(x_t, t, cond)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], made.time(t))
    assert t.bfloat16().unique().numel() == 1
    assert (seen[0][0] - seen[0][1]).abs().max() > 1e-3


def test_bfloat16_autocast_stays_near_float32():
    made, arguments = network(), inputs()
    expected = made(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(*arguments).float()
    assert (found - expected).square().mean() < 1e-2 * expected.square().mean()


@pytest.mark.parametrize("layers", [1, 2])
def test_word_order_changes_the_picture_after_a_few_steps(layers):
    """Two captions of the same words in two orders, and pooled vectors that cannot tell them apart."""
    made, (x_t, t, cond) = network(trained=False, refiner_layers=layers), inputs(batch=2)
    tokens = cond.tokens[:1].expand(2, -1, -1).clone()
    tokens[1] = tokens[0, [3, 1, 2, 0, 4, 5]]
    cond = Condition(tokens, torch.ones(2, 6, dtype=torch.bool), torch.zeros(2, 10))
    x_t, t = x_t[:1].expand(2, -1, -1, -1), torch.ones(2)
    target = torch.stack([torch.ones(4, 8, 8), -torch.ones(4, 8, 8)])
    optimiser = torch.optim.Adam(made.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = (made(x_t, t, cond) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2  # a network that cannot tell the orders apart stays at 1


def test_one_state_dict_serves_two_sizes():
    made = network()
    other = copy.deepcopy(made)
    other.load_state_dict(made.state_dict())
    for side in (8, 16):
        x_t, t, cond = inputs(side=side)
        assert torch.equal(made(x_t, t, cond), other(x_t, t, cond))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("patch", 0, "patch is 0, expected at least 1"),
        ("dim", 30, "dim is 30, expected a positive multiple of 4 x its heads = 8"),
        ("text_dim", 12, "text_dim is 12, expected a positive multiple of 4 x its heads = 8"),
        ("heads", 0, "dim is 32, expected a positive multiple"),
        ("layers", -1, "layers is -1"),
        ("refiner_layers", -1, "refiner_layers is -1"),
        ("mlp_ratio", 0.0, "mlp_ratio is 0.0"),
        ("cond_dim", 0, "cond_dim is 0"),
    ],
)
def test_a_size_out_of_range_is_refused_with_its_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        config(**{field: value})
