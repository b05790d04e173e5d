"""Laws of every conditioned network: DiT, MM-DiT and U-Net alike."""

import pytest
import torch

from latent.condition import Condition
from latent.guide import classifier_free
from latent.predict import as_model
from latent.schedule import Flow
from tests.latent.networks import KINDS, config, farthest, inputs, network

every_kind = pytest.mark.parametrize("kind", KINDS)
VARIANTS = {
    "default": {},
    "swiglu": {"activation": "swiglu"},
    "gelu": {"activation": "gelu", "qk_norm": False},
    "refined": {"refiner_layers": 1},
    "unrefined": {"refiner_layers": 0},
    "image": {"image_channels": 3},
    "patches": {"patch": 2},
}


@every_kind
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_new_network_puts_out_zeros_and_every_parameter_learns(kind, changes):
    made = network(kind, trained=False, **changes)
    x_t, t, cond = inputs(image_channels=made.image_channels)
    assert torch.equal(made(x_t, t, cond), torch.zeros_like(x_t))
    optimiser = torch.optim.SGD(made.parameters(), lr=0.3)
    for _ in range(5):
        optimiser.zero_grad()
        (made(x_t, t, cond, torch.tensor([True, False, False])) - x_t).square().mean().backward()
        unused = [name for name, p in made.named_parameters() if p.grad is None]
        assert not unused  # a distributed run waits for each of them in every step
        optimiser.step()
    assert not [name for name, p in made.named_parameters() if not p.grad.any()]


@every_kind
@pytest.mark.parametrize("side", [8, 16])
def test_one_network_serves_all_sizes(kind, side):
    x_t, t, cond = inputs(side=side)
    out = network(kind)(x_t, t, cond)
    assert out.shape == x_t.shape
    assert out.dtype == torch.float32
    assert out.std() > 0.01
    narrow = x_t[..., : side // 2]
    assert network(kind)(narrow, t, cond).shape == narrow.shape


@every_kind
@pytest.mark.parametrize("refiner_layers", [0, 2])
def test_tokens_behind_the_mask_do_not_matter_and_words_do(kind, refiner_layers):
    made, (x_t, t, cond) = network(kind, refiner_layers=refiner_layers), inputs()
    expected = made(x_t, t, cond)
    padding = torch.where(cond.mask[..., None], cond.tokens, torch.full_like(cond.tokens, 50.0))
    torch.testing.assert_close(made(x_t, t, cond._replace(tokens=padding)), expected)
    words = torch.where(cond.mask[..., None], cond.tokens + 1, cond.tokens)
    assert farthest(made(x_t, t, cond._replace(tokens=words)), expected).min() > 1e-3


@every_kind
@pytest.mark.parametrize("refiner_layers", [0, 2])
def test_the_order_of_words_matters(kind, refiner_layers):
    made, (x_t, t, cond) = network(kind, refiner_layers=refiner_layers), inputs()
    cond = cond._replace(mask=torch.ones_like(cond.mask))
    other = cond._replace(tokens=cond.tokens[:, [3, 1, 2, 0, 4, 5]])
    assert farthest(made(x_t, t, other), made(x_t, t, cond)).min() > 1e-4


@every_kind
def test_time_and_pooled_text_matter(kind):
    made, (x_t, t, cond) = network(kind), inputs()
    expected = made(x_t, t, cond)
    assert farthest(made(x_t, t / 2, cond), expected).min() > 1e-3
    assert farthest(made(x_t, t, cond._replace(pooled=-cond.pooled)), expected).min() > 1e-3


@every_kind
def test_a_dropped_item_is_the_null_condition_and_the_others_stay(kind):
    made, (x_t, t, cond) = network(kind), inputs()
    dropped = torch.tensor([False, True, False])
    out = made(x_t, t, made.drop(cond, dropped))
    null, kept = made(x_t, t, made.null_condition(3)), made(x_t, t, cond)
    torch.testing.assert_close(out[dropped], null[dropped])
    torch.testing.assert_close(out[~dropped], kept[~dropped])
    assert farthest(null, kept).min() > 1e-3  # the inverted rule would fail here
    torch.testing.assert_close(made(x_t, t, cond, dropped), out)


@every_kind
def test_the_null_condition_is_learned(kind):
    made, (x_t, t, _) = network(kind), inputs()
    made(x_t, t, made.null_condition(3)).square().mean().backward()
    assert made.null_token.grad.any()
    assert made.null_pooled.grad.any()


@every_kind
@pytest.mark.parametrize("image_channels", [0, 3])
def test_an_item_does_not_depend_on_its_batch(kind, image_channels):
    made, (x_t, t, cond) = network(kind, image_channels=image_channels), inputs(image_channels=image_channels)
    whole = made(x_t, t, cond)
    alone = made(x_t[1:2], t[1:2], type(cond)(*(part[1:2] for part in cond)))
    torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=1e-4)


@every_kind
def test_time_is_embedded_in_float32_under_bfloat16_autocast(kind):
    made, (x_t, _, cond) = network(kind), inputs()
    t = torch.tensor([0.9, 0.9001, 0.9002])
    seen = []
    made.time.register_forward_hook(lambda module, arguments, out: seen.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        made(x_t, t, cond)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], made.time(t))
    assert t.bfloat16().unique().numel() == 1
    assert (seen[0][0] - seen[0][1]).abs().max() > 1e-3


@every_kind
def test_bfloat16_autocast_stays_near_float32(kind):
    made, arguments = network(kind), inputs()
    expected = made(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(*arguments).float()
    assert (found - expected).square().mean() < 1e-2 * expected.square().mean()


def calls_of(module):
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append(module))
    return calls


INNER = {"dit": "blocks.1", "mmdit": "blocks.0", "unet": "up.0"}


@every_kind
def test_checkpointing_gives_the_same_gradients_and_runs_blocks_twice(kind):
    arguments, grads, calls = inputs(), [], []
    for checkpointing in (False, True):
        made = network(kind, checkpointing=checkpointing)
        calls.append(calls_of(made.get_submodule(INNER[kind])))
        made(*arguments).square().mean().backward()
        grads.append([p.grad for p in made.parameters() if p.grad is not None])
    for plain, again in zip(*grads, strict=True):
        assert torch.equal(plain, again)
    assert [len(c) for c in calls] == [1, 2]


@every_kind
def test_checkpointing_is_for_training_alone(kind):
    made = network(kind, checkpointing=True)
    expected = made(*inputs())
    with torch.no_grad():
        assert torch.equal(made(*inputs()), expected)
    kept = network(kind, checkpointing=True).eval()
    calls = calls_of(kept.get_submodule(INNER[kind]))
    kept(*inputs()).sum().backward()
    assert len(calls) == 1


@every_kind
@pytest.mark.parametrize("refiner_layers", [1, 2])
def test_word_order_changes_the_picture_after_a_few_steps(kind, refiner_layers):
    """Two captions of the same words in two orders, and pooled vectors that cannot tell them apart."""
    made = network(kind, trained=False, refiner_layers=refiner_layers)
    x_t, _, cond = inputs(batch=2, side=4)
    tokens = cond.tokens[:1].expand(2, -1, -1).clone()
    tokens[1] = tokens[0, [3, 1, 2, 0, 4, 5]]
    cond = Condition(tokens, torch.ones(2, 6, dtype=torch.bool), torch.zeros(2, 10))
    with torch.no_grad():  # zeros at the start and opposite targets are a saddle that only rounding would leave
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    target = torch.stack([torch.ones(4, 4, 4), -torch.ones(4, 4, 4)])
    # a network that cannot tell the orders apart stays at 1
    assert fitted(made, (x_t[:1].expand(2, -1, -1, -1), torch.ones(2), cond), target, steps=80) < 0.3


def fitted(made, arguments, target, *, steps):
    """Mean squared error after so many steps."""
    optimiser = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = (made(*arguments) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return loss.item()


@every_kind
@pytest.mark.parametrize("activation", ["relu2", "gelu", "swiglu"])
def test_one_batch_is_learned_by_heart(kind, activation):
    made, arguments = network(kind, trained=False, activation=activation), inputs(batch=2, side=4)
    assert fitted(made, arguments, torch.sign(inputs(batch=2, side=4, seed=1)[0]), steps=20) < 0.5


@every_kind
def test_the_image_and_its_noise_level_matter(kind):
    made, (x_t, t, cond) = network(kind, image_channels=3), inputs(image_channels=3)
    expected = made(x_t, t, cond)
    assert expected.shape == x_t.shape
    assert farthest(made(x_t, t, cond._replace(image=-cond.image)), expected).min() > 1e-3
    assert farthest(made(x_t, t, cond._replace(level=1 - cond.level)), expected).min() > 1e-3


@every_kind
def test_dropping_takes_the_text_and_leaves_the_image(kind):
    made, (x_t, t, cond) = network(kind, image_channels=3), inputs(image_channels=3)
    null = made.drop(cond, torch.ones(3, dtype=torch.bool))
    assert torch.equal(null.image, cond.image)
    assert torch.equal(null.level, cond.level)
    for found, expected in zip(null[:3], made.null_condition(3), strict=True):
        assert torch.equal(found, expected)
    assert farthest(made(x_t, t, null), made(x_t, t, cond)).min() > 1e-3


@every_kind
@pytest.mark.parametrize("image_channels", [0, 3])
@torch.no_grad()
def test_both_kinds_of_condition_can_be_guided(kind, image_channels):
    made, (x_t, _, cond) = network(kind, image_channels=image_channels), inputs(image_channels=image_channels)
    null = made.drop(cond, torch.ones(3, dtype=torch.bool))
    model, t = as_model(made, Flow(), "velocity"), torch.tensor(0.6)
    guided = classifier_free(model, cond, null, 3.0)(x_t, t)
    main, weak = model(x_t, t, cond), model(x_t, t, null)
    torch.testing.assert_close(guided.x, weak.x + 3 * (main.x - weak.x), atol=1e-4, rtol=1e-4)


@every_kind
def test_a_condition_of_the_other_kind_is_refused(kind):
    x_t, t, with_image = inputs(image_channels=3)
    with pytest.raises(TypeError, match=r"is ImageCondition, expected Condition:.*image_channels = 0"):
        network(kind)(x_t, t, with_image)
    with pytest.raises(TypeError, match=r"is Condition, expected ImageCondition:.*image_channels = 3"):
        network(kind, image_channels=3)(x_t, t, Condition(*with_image[:3]))


@every_kind
def test_an_image_of_another_size_is_refused(kind):
    x_t, t, cond = inputs(image_channels=3)
    small = cond._replace(image=cond.image[..., ::2, ::2])
    with pytest.raises(ValueError, match=r"image is \(3, 3, 4, 4\), expected \(3, 3, 8, 8\); resize it"):
        network(kind, image_channels=3)(x_t, t, small)


@every_kind
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("channels", 0, "channels is 0, expected at least 1"),
        ("patch", 0, "patch is 0, expected at least 1"),
        ("text_dim", 12, "text_dim is 12, expected a positive multiple of 4 x its heads = 8"),
        ("refiner_layers", -1, "refiner_layers is -1"),
        ("mlp_ratio", 0.0, "mlp_ratio is 0.0"),
        ("cond_dim", 0, "cond_dim is 0"),
        ("image_channels", -1, "image_channels is -1"),
    ],
)
def test_a_size_out_of_range_is_refused_with_its_name(kind, field, value, message):
    with pytest.raises(ValueError, match=message):
        config(kind, **{field: value})


@every_kind
def test_swiglu_has_about_as_many_parameters(kind):
    plain, gated = (sum(p.numel() for p in network(kind, activation=a).parameters()) for a in ("relu2", "swiglu"))
    assert gated == pytest.approx(plain, rel=0.05)
