import math
from itertools import permutations

import pytest
import torch
from scipy import stats
from torch import Tensor

from discrete.likelihood import any_order
from discrete.predict import Denoise, subs
from discrete.sample import first_hitting
from discrete.schedule import Linear
from discrete.text_model import TextTransformer, TextTransformerConfig
from tests.discrete.oracle import Joint

VOCAB, LENGTH = 3, 4


def wrong_model() -> Denoise:
    """A denoiser whose conditionals belong to no joint."""
    torch.manual_seed(0)
    network = TextTransformer(TextTransformerConfig(dim=16, layers=2, heads=2), VOCAB)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return lambda x_t, t: subs(network.logits(x_t), x_t, VOCAB)


@torch.no_grad()
def test_the_exact_denoiser_costs_what_the_joint_says_and_its_bound_is_tight():
    joint = Joint(vocab=VOCAB, length=LENGTH)
    exact, bound = any_order(joint, joint.states, mask_id=VOCAB)
    torch.testing.assert_close(exact, -joint.p.log(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(bound, -joint.p.log(), rtol=1e-9, atol=1e-9)  # all orders agree on p(x)


@torch.no_grad()
def test_any_model_is_a_distribution_below_its_bound_and_first_hitting_samples_it():
    model, states = wrong_model(), Joint(vocab=VOCAB, length=LENGTH).states
    exact, bound = any_order(model, states, mask_id=VOCAB)
    assert (-exact).exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert (bound >= exact - 1e-9).all() and (bound > exact + 1e-3).any()
    masked = torch.full((20_000, LENGTH), VOCAB)
    x = first_hitting(model, Linear(), masked, mask_id=VOCAB, generator=torch.Generator().manual_seed(0))
    base = VOCAB ** torch.arange(LENGTH - 1, -1, -1)
    seen = torch.bincount((x * base).sum(-1), minlength=len(states)).double()
    law = (-exact).exp() / (-exact).exp().sum()
    assert stats.chisquare(seen, law * len(x)).pvalue > 1e-3
    assert stats.chisquare(seen, law.roll(1) * len(x)).pvalue < 1e-6


@torch.no_grad()
def test_the_sums_over_subsets_are_means_over_all_orders():
    model, x = wrong_model(), torch.tensor([[2, 0, 1, 1]])
    logs = []
    for order in permutations(range(LENGTH)):
        x_t, total = torch.full_like(x, VOCAB), 0.0
        for i in order:
            total += model(x_t, torch.zeros(()))[0, i, x[0, i]].item()
            x_t[0, i] = x[0, i]
        logs.append(total)
    exact, bound = any_order(model, x, mask_id=VOCAB)
    assert bound.item() == pytest.approx(-sum(logs) / len(logs), rel=1e-6)
    assert exact.item() == pytest.approx(-math.log(sum(map(math.exp, logs)) / len(logs)), rel=1e-6)


def test_what_cannot_happen_costs_infinitely_much_and_nothing_is_nan():
    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        logits = torch.zeros(*x_t.shape, 3).masked_fill(torch.arange(3) == 1, -torch.inf)
        return subs(logits, x_t, 2)

    exact, bound = any_order(denoise, torch.tensor([[0, 0], [0, 1]]), mask_id=2)
    assert exact[0] == bound[0] == 0 and exact[1] == bound[1] == torch.inf


def test_long_sequences_are_refused_with_the_number_of_maskings():
    with pytest.raises(ValueError, match=r"17 tokens, which can be masked in 2\^17 ways"):
        any_order(Joint(vocab=2, length=1), torch.zeros(1, 17, dtype=torch.int64), mask_id=2)
