import copy
import hashlib

import pytest
import torch

from latent import condition
from latent.dit import Condition, DiT, DiTConfig, patchify, place, unpatchify
from latent.sizes import TRANSFORMER_SIZES
from tests.latent.networks import config, farthest, inputs, network


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("side", [8, 16])
def test_latents_of_32_and_64_pixels_keep_their_shape(patch, side):
    x_t, t, cond = inputs(side=side)
    out = network("dit", patch=patch)(x_t, t, cond)
    assert out.shape == x_t.shape
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
        network("dit")(x_t, t, cond)


def test_one_state_dict_serves_two_sizes():
    made = network("dit")
    other = copy.deepcopy(made)
    other.load_state_dict(made.state_dict())
    for side in (8, 16):
        x_t, t, cond = inputs(side=side)
        assert torch.equal(made(x_t, t, cond), other(x_t, t, cond))


def test_checkpoints_of_the_default_network_keep_their_names_and_shapes():
    """Weights that people have trained must load: a new option may add nothing to the default network."""
    with torch.device("meta"):
        state = DiT(DiTConfig()).state_dict()
    assert len(state) == 155
    assert sum(value.numel() for value in state.values()) == 7_653_648
    text = "\n".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "7721b577250c6611"


def test_the_condition_is_importable_from_here():
    assert Condition is condition.Condition


PUBLISHED = {"S": 33e6, "B": 130e6, "L": 458e6, "XL": 675e6}  # DiT-S/2 to DiT-XL/2 of arXiv:2212.09748
CLASSES = 1001  # of ImageNet, and none


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_trunk_of_a_named_size_has_as_many_parameters_as_published(size):
    """Ours reads text by cross-attention and a refiner, the published one a class from an embedding of its width."""
    dim = TRANSFORMER_SIZES[size]["dim"]
    with torch.device("meta"):
        made = DiT(DiTConfig(size=size, cond_dim=dim, activation="gelu", positions="sincos"))
    of_text = ("cross", "refiner", "pooled", "null")
    count = sum(p.numel() for name, p in made.named_parameters() if not any(part in name for part in of_text))
    assert count + CLASSES * dim == pytest.approx(PUBLISHED[size], rel=0.01)


def test_positions_enter_as_asked():
    """Without any, the network would not notice that patches change places."""
    x_t, t, cond = inputs()
    moved = x_t.roll(4, -1)
    outs = {}
    for positions in ("rotary", "sincos", "both"):
        made = network("dit", positions=positions)
        outs[positions] = made(x_t, t, cond)
        assert farthest(made(moved, t, cond).roll(-4, -1), outs[positions]).min() > 1e-3
    assert farthest(outs["rotary"], outs["sincos"]).min() > 1e-3
    assert farthest(outs["rotary"], outs["both"]).min() > 1e-3


def test_sincos_is_added_and_rotary_is_not():
    x = torch.zeros(1, 6, 16)
    (both, table), (added, nothing), (untouched, same) = (
        place(x, 2, 3, 2, positions) for positions in ("both", "sincos", "rotary")
    )
    assert torch.equal(both, added)
    assert added.any()
    assert torch.equal(untouched, x)
    assert nothing is None
    assert torch.equal(table.cos, same.cos)
    assert table.cos.shape == (6, 4)


@pytest.mark.parametrize("kind", ["dit", "mmdit"])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dim", 30, "dim is 30, expected a positive multiple of 4 x its heads = 8"),
        ("heads", 0, "dim is 32, expected a positive multiple"),
        ("layers", -1, "layers is -1"),
    ],
)
def test_a_transformer_size_out_of_range_is_refused_with_its_name(kind, field, value, message):
    with pytest.raises(ValueError, match=message):
        config(kind, **{field: value})
