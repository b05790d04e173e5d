import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from discrete.corrupt import mask_tokens
from discrete.learned import LearnedPowers
from discrete.loss import nelbo, sample_times
from discrete.predict import subs
from discrete.sample import Remasking, ancestral, remask
from discrete.schedule import Cosine, Linear, Polynomial, Spans
from tests.discrete.oracle import Joint, within

JOINT = Joint(vocab=3, length=3)
LENGTHS = (1, 2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uneven(x_t: Tensor, t: Tensor | None = None) -> Tensor:
    """A model that uses the first token to tell the others, but learned nothing of the other way round."""
    logits = torch.zeros(*x_t.shape, 4, dtype=torch.float64)
    told = torch.nn.functional.one_hot(x_t[:, :1].clamp_max(2), 4) * 2.0 * (x_t[:, :1, None] != 3)
    logits[:, 1:] = told
    return subs(logits, x_t, 3)


def exact_bound(powers: np.ndarray, denoise, x: Tensor) -> float:
    """The expectation over maskings by enumeration and over times by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    total = 0.0
    for hidden in itertools.product([False, True], repeat=3):
        mask = torch.tensor(hidden)
        nll = -denoise(torch.where(mask, 3, x)[None])[0].gather(-1, x[:, None])[:, 0].numpy()
        for t, w in zip((nodes + 1) / 2, weights / 2, strict=True):
            chance = np.prod(np.where(hidden, t**powers, 1 - t**powers))
            total += w * chance * (np.where(hidden, nll, 0) * powers / t).sum()
    return total


def test_the_bound_of_spans_with_schedules_of_their_own_is_tight_for_the_exact_posterior():
    schedule = Spans(parts=(Cosine(), Polynomial(power=3.0)), lengths=LENGTHS)
    x = JOINT.sample(60_000)
    t = sample_times("stratified", len(x), generator(1))
    x_t = mask_tokens(schedule, x, t, mask_id=3, generator=generator(2))
    assert within(nelbo(schedule, JOINT(x_t), x, x_t, t, mask_id=3), JOINT.entropy())


@pytest.mark.parametrize("sampler", [ancestral, remask])
def test_samplers_follow_schedules_of_their_own_to_the_exact_joint(sampler):
    schedule = Spans(parts=(Linear(), Polynomial(power=3.0)), lengths=LENGTHS)
    options = {} if sampler is ancestral else {"remasking": Remasking(eta=0.005)}
    x = torch.full((8000, 3), 3)
    x = sampler(JOINT, schedule, x, torch.linspace(1, 0, 401), mask_id=3, generator=generator(1), **options)
    assert JOINT.chi_square(x) > 1e-3


def test_a_span_of_higher_power_comes_up_first():
    schedule = Spans(parts=(Polynomial(power=8.0), Linear()), lengths=LENGTHS)
    assert schedule.alpha(torch.tensor(0.5)).tolist() == pytest.approx([1 - 0.5**8, 0.5, 0.5])
    assert schedule.weight(torch.tensor([[0.5], [0.25]])).shape == (2, 3)
    with pytest.raises(ValueError, match="take ancestral"):
        schedule.time(torch.tensor(0.5))
    with pytest.raises(ValueError, match="1 schedules for 2 spans"):
        Spans(parts=(Linear(),), lengths=LENGTHS)


def test_the_estimate_and_its_gradient_are_those_of_the_enumerated_bound():
    learned, x = LearnedPowers(LENGTHS), torch.tensor([2, 2, 0])
    with torch.no_grad():
        learned.log_powers.copy_(torch.tensor([0.4, -0.2]))
    values, gradients = [], []
    for i in range(40):
        bound = learned.bound(uneven, x.expand(500, 3), mask_id=3, generator=generator(i))
        (gradient,) = torch.autograd.grad(bound.mean(), learned.log_powers)
        values.append(bound.mean().detach())
        gradients.append(gradient[0].double())

    def at(log_first: float) -> float:
        logs = np.array([log_first, -0.2])
        return exact_bound(np.repeat(np.exp(logs - logs.mean()), LENGTHS), uneven, x)

    assert within(torch.stack(values), at(0.4))
    slope = (at(0.4 + 1e-4) - at(0.4 - 1e-4)) / 2e-4
    assert abs(slope) > 0.05 and within(torch.stack(gradients), slope)


def test_learning_reveals_first_what_tells_the_rest_and_lowers_the_bound():
    # the first token is drawn evenly, the others repeat it: the model can use that only where the first comes first
    x = torch.randint(0, 3, (256, 1), generator=generator()).expand(-1, 3)
    learned = LearnedPowers(LENGTHS)
    before = exact_bound(np.ones(3), uneven, x[0])
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.05)
    for i in range(150):
        loss = learned.bound(uneven, x, mask_id=3, generator=generator(i)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first, others = learned.powers().tolist()
    after = exact_bound(np.repeat([first, others], LENGTHS), uneven, x[0])
    assert first > 2 * others and after < before - 0.2
    assert math.prod((first, others)) == pytest.approx(1, rel=1e-5)


def test_the_powers_do_not_matter_to_an_exact_model():
    learned = LearnedPowers(LENGTHS)
    found = [
        torch.autograd.grad(
            learned.bound(JOINT, JOINT.sample(2000, i), mask_id=3, generator=generator(i)).mean(), learned.log_powers
        )[0][0]
        for i in range(20)
    ]
    assert within(torch.stack(found).double(), 0.0)
