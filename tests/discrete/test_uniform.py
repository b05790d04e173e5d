import math

import numpy as np
import pytest
import torch
from torch import Tensor

from discrete import d3pm
from discrete.loss import sample_times
from discrete.predict import Denoise
from discrete.schedule import Cosine, Linear, Schedule
from discrete.uniform import (
    observe,
    replace_tokens,
    uniform_ancestral,
    uniform_nelbo,
    uniform_posterior,
    uniform_start,
)
from tests.discrete.oracle import Joint, within
from tests.discrete.test_d3pm import bayes, expected_bound

JOINT = Joint(vocab=3, length=2)
WRONG = Joint(vocab=3, length=2, seed=9)
SCHEDULES = [Linear(), Cosine()]
EYE = torch.eye(3, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact(joint: Joint, schedule: Schedule) -> Denoise:
    """The exact denoiser, by enumeration: sum over states of p(state) prod_j q(x_t,j | state_j)."""
    eye = torch.eye(joint.mask_id, dtype=torch.float64)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha = schedule.alpha(t.double()).reshape(-1, 1, 1)
        return bayes(joint, alpha * eye[x_t] + (1 - alpha) / joint.mask_id)

    return denoise


def expected_nelbo(schedule: Schedule, denoise: Denoise, joint: Joint) -> Tensor:
    """The continuous-time bound of each sequence, all x_t being summed up and t integrated numerically, (S,)."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    count, vocab = len(joint.states), joint.mask_id
    clean, noisy = joint.states.repeat_interleave(count, 0), joint.states.repeat(count, 1)
    total = torch.zeros(count, dtype=torch.float64)
    for root, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        t = torch.full((len(clean),), root**2, dtype=torch.float64)  # t = root^2 smooths t log t at 0
        alpha = schedule.alpha(t)[:, None]
        q = (alpha * (clean == noisy) + (1 - alpha) / vocab).prod(-1)
        terms = uniform_nelbo(schedule, denoise(noisy, t), clean, noisy, t, vocab=vocab)
        total += 2 * root * weight * (q * terms).reshape(count, count).sum(-1)
    return total


def published_term(log_r: np.ndarray, x: int, b: int, alpha: float, rate: float) -> float:
    """One token's loss as UDLM and Duo print it, the network's output being plugged in for x."""
    k = len(log_r)
    true = k * alpha * np.eye(k)[x] + 1 - alpha
    model = k * alpha * np.exp(log_r) + 1 - alpha
    inner = k / true[b] - k / model[b]
    for j in range(k):
        inner -= true[j] / true[b] * np.log(model[b] * true[j] / (model[j] * true[b]))
    return rate / (k * alpha) * inner


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0.2, 0.7, 1.0])
def test_replaced_tokens_follow_the_forward_law_and_known_ones_stay(schedule: Schedule, t: float):
    x = torch.tensor([[0, 1, 2]]).expand(30_000, 3)
    known = torch.tensor([False, False, True]).expand_as(x)
    times = torch.full((len(x),), t)
    x_t = replace_tokens(schedule, x, times, vocab=3, generator=generator(1), known=known)
    assert torch.equal(x_t[:, 2], x[:, 2])
    alpha = schedule.alpha(torch.tensor(t))
    for column in (0, 1):
        seen = torch.nn.functional.one_hot(x_t[:, column], 3).double().mean(0)
        torch.testing.assert_close(seen, alpha * EYE[column] + (1 - alpha) / 3, atol=0.012, rtol=0)


def test_each_token_may_have_its_own_time():
    x = torch.zeros(20_000, 2, dtype=torch.int64)
    t = torch.tensor([0.0, 1.0]).expand(20_000, 2)
    x_t = replace_tokens(Linear(), x, t, vocab=4, generator=generator())
    assert (x_t[:, 0] == 0).all() and within((x_t[:, 1] == 0).double(), 0.25)


def test_the_start_is_uniform():
    seen = torch.bincount(uniform_start((10_000, 3), 5, generator()).flatten(), minlength=5) / 30_000
    torch.testing.assert_close(seen, torch.full((5,), 0.2), atol=0.012, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("times", [(1.0, 0.6), (0.6, 0.25), (0.3, 0.0), (1.0, 0.0)])
def test_posterior_is_bayes_on_the_joint_of_three_times(schedule: Schedule, times: tuple[float, float]):
    p = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    t, s = torch.tensor(times, dtype=torch.float64)
    alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
    early = alpha_s * EYE + (1 - alpha_s) / 3
    late = alpha_t / alpha_s * EYE + (1 - alpha_t / alpha_s) / 3
    joint = p[:, None, None] * early[:, :, None] * late  # (x, x_s, x_t)
    x_t = torch.arange(3)[None]
    predicted = (joint.sum(1) / joint.sum((0, 1))).T[x_t].log()
    found = uniform_posterior(schedule, predicted, x_t, t, s, vocab=3)
    torch.testing.assert_close(found[0], (joint.sum(0) / joint.sum((0, 1))).T)
    for k in range(3):
        if s > 0:  # else k and x_s are one
            certain = uniform_posterior(schedule, EYE[k].log().expand(1, 3, 3), x_t, t, s, vocab=3)
            torch.testing.assert_close(certain[0], (joint[k] / joint[k].sum(0)).T)
    wide = torch.nn.functional.pad(predicted, (0, 1), value=-torch.inf)
    assert torch.equal(uniform_posterior(schedule, wide, x_t, t, s, vocab=3), found)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_posterior_is_that_of_the_discrete_chain(schedule: Schedule):
    chain, x_t = d3pm.uniform(schedule, 6, 5), torch.randint(0, 5, (6, 4), generator=generator())
    log_probs = torch.randn(6, 4, 5, generator=generator(1), dtype=torch.float64).log_softmax(-1)
    i = torch.arange(1, 7)
    found = uniform_posterior(schedule, log_probs, x_t, i / 6, (i - 1) / 6, vocab=5)
    torch.testing.assert_close(found, chain.posterior(log_probs, x_t, i), atol=1e-7, rtol=0)  # i / 6 is a float32


def test_observe_turns_the_law_given_the_other_tokens_into_the_law_given_all():
    t, x_t = torch.tensor([0.4]), torch.tensor([[0, 2]])
    full = exact(JOINT, Linear())(x_t, t)
    p = JOINT.p.reshape(3, 3)
    keep = 0.6 * EYE + 0.4 / 3
    others = torch.stack([p @ keep[:, 2], keep[:, 0] @ p])[
        None
    ]  # of token 0 given the second, of token 1 given the first
    found = observe(Linear(), others.log(), x_t, t, vocab=3)
    torch.testing.assert_close(found, full, atol=1e-7, rtol=0)
    assert (others.log().log_softmax(-1) - full).abs().max() > 0.3


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nelbo_of_observed_logits_is_the_published_loss(schedule: Schedule):
    x, x_t = (torch.randint(0, 6, (40, 3), generator=generator(seed)) for seed in (0, 1))
    x_t[:, 0] = x[:, 0]
    t = torch.linspace(0.01, 0.97, 40, dtype=torch.float64)
    log_r = torch.randn(40, 3, 6, generator=generator(2), dtype=torch.float64).log_softmax(-1)
    found = uniform_nelbo(schedule, observe(schedule, log_r, x_t, t, vocab=6), x, x_t, t, vocab=6)
    for row in range(40):
        alpha, rate = schedule.alpha(t[row]).item(), schedule.rate(t[row]).item()
        terms = [published_term(log_r[row, i].numpy(), int(x[row, i]), int(x_t[row, i]), alpha, rate) for i in range(3)]
        assert found[row].item() == pytest.approx(sum(terms), rel=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nelbo_equals_slow_loops_over_jumps(schedule: Schedule):
    x, x_t = (torch.randint(0, 5, (30, 4), generator=generator(seed)) for seed in (0, 1))
    t = torch.rand(30, 4, generator=generator(2), dtype=torch.float64)  # each token at its own time
    log_probs = torch.randn(30, 4, 5, generator=generator(3), dtype=torch.float64).log_softmax(-1)
    known = torch.rand(30, 4, generator=generator(4)) < 0.3
    wide = torch.nn.functional.pad(log_probs, (0, 1), value=-torch.inf)
    found = uniform_nelbo(schedule, wide, x, x_t, t, vocab=5, known=known)
    for row in range(30):
        expected = 0.0
        for i in (i for i in range(4) if not known[row, i]):
            alpha, rate = schedule.alpha(t[row, i]).item(), schedule.rate(t[row, i]).item()
            q = alpha * np.eye(5) + (1 - alpha) / 5  # (from, to)
            b, p = int(x_t[row, i]), log_probs[row, i].exp().numpy()
            for a in (a for a in range(5) if a != b):
                rho = q[x[row, i], a] / q[x[row, i], b]
                model = sum(p[k] * q[k, a] / q[k, b] for k in range(5))
                expected += -rate / (5 * alpha) * (rho * math.log(rho / model) - rho + model)
        assert found[row].item() == pytest.approx(expected, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_exact_nelbo_of_one_token_is_its_log_probability(schedule: Schedule):
    joint = Joint(vocab=4, length=1)
    found = expected_nelbo(schedule, exact(joint, schedule), joint)
    torch.testing.assert_close(found, -joint.p.log(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_exact_nelbo_equals_entropy_and_a_wrong_denoiser_pays(schedule: Schedule):
    found = (JOINT.p * expected_nelbo(schedule, exact(JOINT, schedule), JOINT)).sum().item()
    assert found == pytest.approx(JOINT.entropy(), abs=1e-6)
    wrong = (JOINT.p * expected_nelbo(schedule, exact(WRONG, schedule), JOINT)).sum().item()
    kl = (JOINT.p * (JOINT.p / WRONG.p).log()).sum().item()
    assert wrong == pytest.approx(JOINT.entropy() + kl, abs=1e-6)  # exact for another joint: its cross-entropy


def careless(schedule: Schedule) -> Denoise:
    """A denoiser of no joint: it looks at the neighbour, wrongly, and at itself."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        logits = torch.randn(3, 2, 3, generator=generator(4), dtype=torch.float64)
        return observe(schedule, logits[x_t.flip(-1), torch.arange(2)], x_t, t, vocab=3)

    return denoise


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_discrete_bound_tends_to_the_nelbo_as_one_over_T(schedule: Schedule):
    denoise = careless(schedule)
    limit, errors = expected_nelbo(schedule, denoise, JOINT), []
    for T in (10, 100, 1000):
        chain = d3pm.uniform(schedule, T, 3)
        errors.append((expected_bound(chain, denoise, JOINT.states) - limit).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_drawn_time_estimates_the_nelbo_without_bias(schedule: Schedule):
    x = JOINT.sample(100_000)
    t = sample_times("stratified", len(x), generator(1))
    x_t = replace_tokens(schedule, x, t, vocab=3, generator=generator(2))
    assert within(uniform_nelbo(schedule, exact(JOINT, schedule)(x_t, t), x, x_t, t, vocab=3), JOINT.entropy())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0.0, 1e-12, 1e-8, 1e-4, 1 - 1e-4, 1 - 1e-9, 1.0])
def test_nelbo_and_its_gradient_are_finite_and_never_negative_at_any_time(schedule: Schedule, t: float):
    x, x_t = JOINT.states.repeat_interleave(9, 0), JOINT.states.repeat(9, 1)
    logits = torch.randn(81, 2, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    time = torch.full((81,), t, dtype=torch.float64)
    loss = uniform_nelbo(schedule, observe(schedule, logits, x_t, time, vocab=3), x, x_t, time, vocab=3)
    loss.sum().backward()
    assert loss.isfinite().all() and (loss >= 0).all()
    assert logits.grad is not None and logits.grad.isfinite().all()
    if t in (0, 1):
        assert (loss == 0).all()


@pytest.mark.parametrize("near_one", [1e-2, 1e-4, 1e-6])
def test_nelbo_falls_linearly_to_zero_at_the_end(near_one: float):
    # -alpha' alpha / K sum (r - rho)^2 / (2 rho alpha^2): what the difference of logarithms would round away
    log_probs = torch.tensor([[[0.2, 0.5, 0.3]]], dtype=torch.float64).log()
    x, x_t, t = torch.tensor([[0]]), torch.tensor([[2]]), torch.tensor([1 - near_one], dtype=torch.float64)
    limit = 3 * ((0.2 - 1 - 0.3) ** 2 + (0.5 - 0.3) ** 2) / 2
    found = uniform_nelbo(Linear(), log_probs, x, x_t, t, vocab=3).item()
    assert found / near_one == pytest.approx(limit, rel=10 * near_one)


def test_a_perfect_prediction_costs_nothing():
    x, x_t = JOINT.states.repeat_interleave(9, 0), JOINT.states.repeat(9, 1)
    t = torch.linspace(0, 1, 81)
    assert (uniform_nelbo(Cosine(), EYE[x].log(), x, x_t, t, vocab=3).abs() < 1e-12).all()


def test_a_hidden_known_side_may_lie_outside_the_vocabulary_and_is_not_counted():
    x, t = JOINT.sample(50), torch.full((50,), 0.5)
    known = torch.tensor([True, False]).expand_as(x)
    x_t = replace_tokens(Linear(), x, t, vocab=3, generator=generator(), known=known)
    logits = torch.randn(50, 2, 4, generator=generator(1), requires_grad=True)
    hidden = x_t.masked_fill(known, 3)
    loss = [
        uniform_nelbo(Linear(), observe(Linear(), logits, side, t, vocab=3), x, side, t, vocab=3, known=known)
        for side in (x_t, hidden)
    ]
    torch.testing.assert_close(loss[0], loss[1])
    loss[1].sum().backward()
    assert logits.grad is not None and (logits.grad[:, 0] == 0).all() and logits.grad.isfinite().all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_many_steps_reproduce_the_exact_joint_and_one_step_does_not(schedule: Schedule):
    x_1 = uniform_start((20_000, 2), 3, generator(1))
    for steps, agrees in ((200, True), (1, False)):
        times = torch.linspace(1, 0, steps + 1)
        x = uniform_ancestral(exact(JOINT, schedule), schedule, x_1, times, vocab=3, generator=generator(2))
        assert (JOINT.chi_square(x) > 1e-3) if agrees else (JOINT.chi_square(x) < 1e-6)


def test_a_grid_that_ends_early_goes_to_zero_all_the_same():
    def sample(times: list[float]) -> Tensor:
        x = uniform_start((500, 2), 3, generator(1))
        return uniform_ancestral(
            exact(JOINT, Linear()), Linear(), x, torch.tensor(times), vocab=3, generator=generator()
        )

    assert torch.equal(sample([1, 0.5, 0.3]), sample([1, 0.5, 0.0]))


def test_infilling_keeps_known_tokens_and_follows_the_conditional():
    given = torch.tensor([3, 1])
    x = uniform_start((20_000, 2), 3, generator(1))
    x[:, 1] = 1
    known = (given != 3).expand_as(x)
    truth = JOINT.posterior(given[None])[0]

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        p = torch.stack([truth[JOINT.states[:, 0] == v].sum() for v in range(3)])
        return observe(Linear(), p.log().expand(*x_t.shape, 3), x_t, t, vocab=3)

    out = uniform_ancestral(
        denoise, Linear(), x, torch.linspace(1, 0, 21), vocab=3, generator=generator(2), known=known
    )
    assert (out[:, 1] == 1).all()
    assert JOINT.chi_square(out, given) > 1e-3


def test_a_known_token_stays_even_outside_the_vocabulary_and_a_mask_is_never_drawn():
    x = uniform_start((200, 2), 3, generator())
    x[:, 0] = 3
    known = (x == 3).clone()

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.zeros(*x_t.shape, 4).log_softmax(-1)  # gives the mask a probability, against the contract

    out = uniform_ancestral(denoise, Linear(), x, torch.linspace(1, 0, 6), vocab=3, generator=generator(), known=known)
    assert (out[:, 0] == 3).all() and out[:, 1].unique().tolist() == [0, 1, 2]


def test_an_item_does_not_depend_on_the_batch_it_is_in():
    x, t, seeds = torch.tensor([[0, 1], [2, 1], [0, 2]]), torch.tensor([0.2, 0.6, 0.9]), [11, 22, 33]

    def sources(items: list[int]) -> list[torch.Generator]:
        return [generator(seeds[j]) for j in items]

    def replace(items: list[int]) -> Tensor:
        return replace_tokens(Linear(), x[items], t[items], vocab=3, generator=sources(items))

    def sample(items: list[int]) -> Tensor:
        start = uniform_start((len(items), 2), 3, sources(items))
        known = (x == 1)[items]
        start = torch.where(known, x[items], start)
        times = torch.linspace(1, 0, 5)
        denoise = exact(JOINT, Cosine())
        return uniform_ancestral(denoise, Cosine(), start, times, vocab=3, generator=sources(items), known=known)

    for function in (replace, sample):
        together = function([0, 1, 2])
        assert all(torch.equal(function([j])[0], together[j]) for j in range(3))
        assert torch.equal(function([2, 0])[1], together[0])


def test_the_denoiser_is_called_once_per_step():
    calls = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t))
        return torch.zeros(*x_t.shape, 3).log_softmax(-1)

    start = uniform_start((2, 2), 3, generator())
    uniform_ancestral(denoise, Linear(), start, torch.linspace(1, 0, 5), vocab=3, generator=generator())
    assert calls == [1.0, 0.75, 0.5, 0.25]
