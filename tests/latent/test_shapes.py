"""Latents that are not square: a network that is turned with its input gives the turned output."""

import copy

import pytest
import torch

from backbone.embed import Rotary
from latent import dit, mmdit
from tests.latent.networks import farthest, inputs, network

SHAPES = [(4, 8), (6, 2), (2, 6)]


def shown(shape, batch=3):
    _, t, cond = inputs(batch)
    return torch.randn(batch, 4, *shape, generator=torch.Generator().manual_seed(7)), t, cond


def turned(table, height, width):
    """Rows of a table over (width, height), in the order of the places of (height, width)."""
    return table.unflatten(0, (width, height)).transpose(0, 1).flatten(0, 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("positions", ["rotary", "sincos", "both"])
@pytest.mark.parametrize("kind", ["dit", "mmdit"])
def test_a_transformer_told_columns_for_rows_gives_the_turned_output(kind, positions, shape, monkeypatch):
    x_t, t, cond = shown(shape)
    made = network(kind, patch=1, positions=positions)
    straight = made(x_t, t, cond)
    place = dit.place

    def columns_for_rows(x, height, width, heads, positions):
        added, rotary = place(torch.zeros_like(x), width, height, heads, positions)
        moved = x + turned(added.movedim(1, 0), height, width).movedim(0, 1)
        return moved, rotary and Rotary(*(turned(table, height, width) for table in rotary))

    for module in (dit, mmdit):
        monkeypatch.setattr(module, "place", columns_for_rows)
    across = made(x_t.mT, t, cond).mT
    assert straight.shape == x_t.shape and straight.std() > 0.01
    torch.testing.assert_close(across, straight, atol=1e-4, rtol=1e-4)
    monkeypatch.undo()
    assert farthest(made(x_t.mT, t, cond).mT, straight).min() > 1e-3  # rows are told from columns


@pytest.mark.parametrize("shape", [(4, 8), (8, 2)])
def test_a_unet_with_turned_kernels_gives_the_turned_output(shape):
    x_t, t, cond = shown(shape)
    made = network("unet")
    other = copy.deepcopy(made)
    for module in other.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data = module.weight.data.mT.contiguous()
    straight = made(x_t, t, cond)
    assert straight.shape == x_t.shape and straight.std() > 0.01
    torch.testing.assert_close(other(x_t.mT, t, cond).mT, straight, atol=1e-3, rtol=1e-3)
    assert farthest(made(x_t.mT, t, cond).mT, straight).min() > 1e-3


def test_a_place_means_the_same_in_a_longer_picture():
    """What is added for a row and a column, and how far they turn, does not depend on the other rows and columns."""
    x = torch.zeros(1, 4 * 8, 32)
    added, rotary = dit.place(x, 4, 8, 2, "both")
    part, inner = dit.place(x[:, :15], 3, 5, 2, "both")
    assert torch.equal(added.view(4, 8, 32)[:3, :5].flatten(0, 1), part[0])
    for whole, cut in zip(rotary, inner, strict=True):
        assert torch.equal(whole.unflatten(0, (4, 8))[:3, :5].flatten(0, 1), cut)


@pytest.mark.parametrize("kind", ["dit", "mmdit", "unet"])
def test_weights_serve_all_shapes_and_items_do_not_meet(kind):
    made = network(kind, patch=2 if kind != "unet" else 1)
    for shape in ((4, 8), (8, 4), (8, 8)):
        x_t, t, cond = shown(shape)
        whole = made(x_t, t, cond)
        alone = made(x_t[1:2], t[1:2], type(cond)(*(part[1:2] for part in cond)))
        torch.testing.assert_close(whole[1:2], alone, atol=1e-4, rtol=1e-4)
