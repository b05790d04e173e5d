from itertools import permutations

import torch

from latent.couple import transport
from tests.latent.oracle import generator, randn


def cost(x, eps):
    return (x - eps).square().sum().item()


def test_the_coupling_is_the_cheapest_of_all_orders():
    x, eps = randn(6, 2, 3), randn(6, 2, 3, seed=1)
    cheapest = min(cost(x, eps[list(order)]) for order in permutations(range(6)))
    assert abs(cost(x, transport(x, eps)) - cheapest) < 1e-12


def test_every_draw_of_noise_is_used_once():
    x, eps = randn(64, 3).float(), torch.randn(64, 3, generator=generator())
    coupled = transport(x, eps)
    assert sorted(coupled.tolist()) == sorted(eps.tolist())


def test_on_the_line_the_order_of_data_and_noise_agrees():
    x, eps = randn(100, 1), randn(100, 1, seed=1)
    assert torch.equal(transport(x, eps).argsort(0), x.argsort(0))
