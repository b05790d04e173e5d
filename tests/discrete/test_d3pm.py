import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from discrete.corrupt import draw_count
from discrete.d3pm import Chain, absorbing, bound, gaussian, sample_chain, uniform
from discrete.loss import nelbo
from discrete.predict import Denoise
from discrete.schedule import Cosine, Linear
from tests.discrete.oracle import Joint, within

JOINT = Joint(vocab=3, length=2)
WRONG = Joint(vocab=3, length=2, seed=9)
MAKERS = {
    "absorbing": lambda T: absorbing(Cosine(), T, 3),
    "uniform": lambda T: uniform(Linear(), T, 3),
    "gaussian": lambda T: gaussian(torch.linspace(0.2, 2, T), 3),
}
CHAINS = [pytest.param(make(4), id=name) for name, make in MAKERS.items()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bayes(joint: Joint, likelihood: Tensor) -> Tensor:
    """log p(x_i | x_t) (B, L, V) from q(x_t,i | x_i = k) (B, L, V), by summing the table."""
    fit = likelihood[:, torch.arange(joint.states.shape[1]), joint.states].prod(-1)  # (B, S)
    weight = fit * joint.p
    weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-300)  # an x_t that cannot be gives -inf throughout
    return torch.einsum("bs,slv->blv", weight, torch.nn.functional.one_hot(joint.states, joint.mask_id).double()).log()


def exact(joint: Joint, chain: Chain) -> Denoise:
    """The exact denoiser of a chain that starts at the joint."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        i = int((t * chain.length).round())
        return bayes(joint, chain.cumulative[i, : chain.vocab].T[x_t])

    return denoise


def pairs(chain: Chain, length: int = 2) -> Tensor:
    return torch.tensor(list(itertools.product(range(len(chain.stationary)), repeat=length)))


def of_pairs(matrix: Tensor) -> Tensor:
    """The transition matrix of two independent tokens."""
    return torch.kron(matrix, matrix)


def expected_bound(chain: Chain, denoise: Denoise, x: Tensor) -> Tensor:
    """The bound of each sequence of x (S, L), all steps and all x_t being summed up, (S,)."""
    states = pairs(chain, x.shape[1])
    total = torch.zeros(len(x), dtype=torch.float64)
    clean, noisy = x.repeat_interleave(len(states), 0), states.repeat(len(x), 1)
    for i in range(1, chain.length + 1):
        q = chain.cumulative[i][clean, noisy].prod(-1)
        log_probs = denoise(states, torch.tensor(i / chain.length)).repeat(len(x), 1, 1)
        terms = bound(chain, log_probs, clean, noisy, torch.full((len(clean),), i))
        total += torch.where(q > 0, q * terms, 0).reshape(len(x), -1).sum(-1)
    return total / chain.length


def model_law(chain: Chain, denoise: Denoise, length: int = 2) -> Tensor:
    """p(x_0) of the reverse chain started at the stationary law, over all sequences of states, (N^L,)."""
    states = pairs(chain, length)
    law = chain.stationary[states].prod(-1)
    for i in range(chain.length, 0, -1):
        p = chain.posterior(denoise(states, torch.tensor(i / chain.length)), states, torch.full((len(states),), i))
        law = law @ p[:, torch.arange(length), states].prod(-1)  # (from, to): a product of tokens
    return law


def fit(x: Tensor, law: Tensor, base: int) -> float:
    """p-value of samples x (B, L) against a table over all sequences of base states."""
    seen = torch.bincount((x * base ** torch.arange(x.shape[1] - 1, -1, -1)).sum(-1), minlength=len(law)).double()
    assert seen[law == 0].sum() == 0
    kept = law > 0
    return float(stats.chisquare(seen[kept], law[kept] / law.sum() * len(x)).pvalue)


def stationary_start(chain: Chain, count: int, seed: int = 5) -> Tensor:
    return torch.multinomial(chain.stationary, 2 * count, True, generator=generator(seed)).reshape(count, 2)


@pytest.mark.parametrize("chain", CHAINS)
def test_posterior_is_bayes_on_the_joint_of_all_paths(chain: Chain):
    n, p = len(chain.stationary), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    paths = np.array(list(itertools.product(range(n), repeat=chain.length + 1)))
    paths = paths[paths[:, 0] < 3]
    weight = p.numpy()[paths[:, 0]]
    for i in range(1, chain.length + 1):
        weight = weight * chain.steps[i - 1].numpy()[paths[:, i - 1], paths[:, i]]
    for i in range(1, chain.length + 1):
        joint = np.zeros((3, n, n))  # of (x_0, x_{i-1}, x_i)
        np.add.at(joint, (paths[:, 0], paths[:, i - 1], paths[:, i]), weight)
        x_t = torch.tensor(joint.sum((0, 1)).nonzero()[0])[None]
        step = torch.tensor([i])
        predicted = torch.tensor(joint.sum(1) / joint.sum((0, 1)).clip(1e-300)).T[x_t].log()
        expected = (joint.sum(0) / joint.sum((0, 1)).clip(1e-300)).T[x_t.numpy()]
        np.testing.assert_allclose(chain.posterior(predicted, x_t, step).numpy(), expected, atol=1e-13)
        for k, b in itertools.product(range(3), range(n)):
            if joint[k, :, b].sum() > 0:
                certain = torch.nn.functional.one_hot(torch.tensor([[k]]), 3).double().log()
                given = chain.posterior(certain, torch.tensor([[b]]), step)[0, 0].numpy()
                np.testing.assert_allclose(given, joint[k, :, b] / joint[k, :, b].sum(), atol=1e-13)


def test_leaving_the_likelihood_out_as_the_paper_does_is_not_bayes_for_uniform_chains():
    chain, p = uniform(Linear(), 4, 3), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    joint = p[:, None, None] * chain.cumulative[1][:, :, None] * chain.steps[1]  # (x_0, x_1, x_2)
    after = joint.sum((0, 1))
    predicted = joint.sum(1) / after  # p(x_0 | x_2)
    papers = (predicted[:, 0, None] * chain.cumulative[1] * chain.steps[1][:, 0]).sum(0)
    expected = joint.sum(0)[:, 0] / after[0]
    ours = chain.posterior(predicted[:, 0].log()[None, None], torch.tensor([[0]]), torch.tensor([2]))[0, 0]
    torch.testing.assert_close(ours, expected)
    assert (papers / papers.sum() - expected).abs().max() > 0.05


@pytest.mark.parametrize("chain", CHAINS)
def test_rows_are_distributions_at_every_step(chain: Chain):
    torch.testing.assert_close(chain.cumulative.sum(-1), torch.ones_like(chain.cumulative[..., 0]))
    assert (chain.cumulative >= 0).all()
    torch.testing.assert_close(chain.stationary @ chain.steps, chain.stationary.expand(chain.length, -1))


@pytest.mark.parametrize("make", [absorbing, uniform])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
@pytest.mark.parametrize("T", [1, 7, 200])
def test_a_token_is_kept_with_alpha_and_forgotten_at_the_end(make: Callable, schedule, T: int):
    chain = make(schedule, T, 3)
    alpha = schedule.alpha(torch.arange(T + 1, dtype=torch.float64) / T)[:, None, None]
    n = len(chain.stationary)
    torch.testing.assert_close(chain.cumulative, alpha * torch.eye(n) + (1 - alpha) * chain.stationary)
    torch.testing.assert_close(chain.cumulative[-1], chain.stationary.expand(n, n), atol=1e-15, rtol=0)


def test_gaussian_matrices_are_the_papers_and_doubly_stochastic():
    beta, k = torch.tensor([0.02, 0.3, 5.0]), 6
    steps = gaussian(beta, k).steps.numpy()
    for b, step in zip(beta.double().numpy(), steps, strict=True):
        total = sum(np.exp(-4 * n**2 / ((k - 1) ** 2 * b)) for n in range(-(k - 1), k))
        for i, j in itertools.permutations(range(k), 2):
            assert step[i, j] == pytest.approx(np.exp(-4 * (i - j) ** 2 / ((k - 1) ** 2 * b)) / total, rel=1e-12)
    np.testing.assert_allclose(steps.sum(1), 1)
    np.testing.assert_allclose(steps.sum(2), 1)
    assert (np.diff(steps[:, 0], axis=-1) < 0).all()


@pytest.mark.parametrize("chain", CHAINS)
def test_corrupt_follows_the_cumulative_matrix_and_keeps_known_tokens(chain: Chain):
    x = torch.tensor([[0, 1, 2]]).expand(20_000, 3)
    known = torch.tensor([False, False, True]).expand_as(x)
    for i in (1, 3):
        x_t = chain.corrupt(x, torch.full((20_000,), i), generator=generator(i), known=known)
        assert torch.equal(x_t[:, 2], x[:, 2])
        for column in (0, 1):
            assert fit(x_t[:, column : column + 1], chain.cumulative[i, column], len(chain.stationary)) > 1e-3


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("T", [1, 2, 9])
def test_the_exact_bound_of_one_token_is_its_log_probability_and_what_x_T_still_tells(name: str, T: int):
    joint, chain = Joint(vocab=3, length=1), MAKERS[name](T)
    q_T = joint.p @ chain.cumulative[-1, :3]
    left = torch.xlogy(chain.cumulative[-1, :3], torch.where(q_T > 0, q_T / chain.stationary, 1)).sum(-1)
    found = expected_bound(chain, exact(joint, chain), joint.states)
    torch.testing.assert_close(found, left - joint.p.log(), atol=1e-12, rtol=0)
    if name != "gaussian":  # x_T is stationary, so that the bound equals the entropy for any T
        assert (joint.p * found).sum().item() == pytest.approx(joint.entropy(), abs=1e-12)


@pytest.mark.parametrize("chain", CHAINS)
def test_the_exact_bound_exceeds_the_entropy_by_the_correlation_that_factored_steps_ignore(chain: Chain):
    n = len(chain.stationary)
    p = torch.zeros(n, n, dtype=torch.float64)
    p[:3, :3] = JOINT.p.reshape(3, 3)
    excess = 0.0
    for i in range(1, chain.length + 1):
        before = p.flatten() @ of_pairs(chain.cumulative[i - 1])
        both = (before[:, None] * of_pairs(chain.steps[i - 1])).reshape(n, n, n * n)  # (x_{i-1}, x_i)
        given = both / both.sum((0, 1)).clamp_min(1e-300)
        product = given.sum(1, keepdim=True) * given.sum(0, keepdim=True)
        excess += torch.xlogy(both, torch.where(both > 0, given / product, 1)).sum().item()
    q_T = p.flatten() @ of_pairs(chain.cumulative[-1])
    prior = chain.stationary[pairs(chain)].prod(-1)
    left = torch.xlogy(q_T, torch.where(q_T > 0, q_T / prior, 1)).sum().item()
    found = (JOINT.p * expected_bound(chain, exact(JOINT, chain), JOINT.states)).sum().item()
    assert found == pytest.approx(JOINT.entropy() + excess + left, abs=1e-11)
    assert excess > 0.01


@pytest.mark.parametrize("name", ["absorbing", "uniform"])
def test_the_exact_bound_falls_to_the_entropy_as_steps_are_added(name: str):
    gaps = []
    for T in (1, 10, 100, 1000):
        chain = MAKERS[name](T)
        gaps.append((JOINT.p * expected_bound(chain, exact(JOINT, chain), JOINT.states)).sum().item() - JOINT.entropy())
    marginals = JOINT.p.reshape(3, 3).sum(1), JOINT.p.reshape(3, 3).sum(0)
    independent = -sum((m * m.log()).sum().item() for m in marginals)
    assert gaps[0] == pytest.approx(independent - JOINT.entropy(), abs=1e-12)  # one step: a product of marginals
    assert all(a > 3 * b > 0 for a, b in itertools.pairwise(gaps))
    assert gaps[2] / gaps[3] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("chain", CHAINS)
def test_the_bound_of_every_sequence_is_above_minus_its_log_likelihood(chain: Chain):
    denoise = exact(WRONG, chain)
    law = model_law(chain, denoise).reshape(len(chain.stationary), -1)[:3, :3].flatten()
    assert law.sum().item() == pytest.approx(1)
    assert (expected_bound(chain, denoise, JOINT.states) > -law.log() + 1e-4).all()


def test_the_absorbing_bound_tends_to_the_continuous_one_as_one_over_T():
    states = pairs(absorbing(Linear(), 1, 3))
    nodes, weights = np.polynomial.legendre.leggauss(20)  # exact: the integrand is a polynomial of t
    limit = torch.zeros(len(JOINT.states), dtype=torch.float64)
    clean, noisy = JOINT.states.repeat_interleave(16, 0), states.repeat(9, 1)
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        q = (t * (noisy == 3) + (1 - t) * (noisy == clean)).prod(-1)
        terms = nelbo(Linear(), WRONG(noisy), clean, noisy, torch.full((len(clean),), t), mask_id=3)
        limit += weight * torch.where(q > 0, q * terms, 0).reshape(9, 16).sum(-1)
    errors = []
    for T in (10, 100, 1000):
        chain = absorbing(Linear(), T, 3)
        errors.append(expected_bound(chain, lambda x_t, t: WRONG(x_t), JOINT.states) - limit)
    for coarse, fine in itertools.pairwise(errors):
        torch.testing.assert_close(coarse / fine, torch.full_like(fine, 10), rtol=1e-3, atol=0)


@pytest.mark.parametrize("chain", CHAINS)
def test_bound_equals_slow_loops_over_tokens(chain: Chain):
    n, T = len(chain.stationary), chain.length
    x = torch.randint(0, 3, (12, 5), generator=generator())
    i = draw_count(torch.full((12,), T), generator(1))
    x_t = chain.corrupt(x, i, generator=generator(2))
    log_probs = torch.randn(12, 5, 3, generator=generator(3), dtype=torch.float64).log_softmax(-1)
    known = torch.rand(12, 5, generator=generator(4)) < 0.3
    found = bound(chain, log_probs, x, x_t, i, known=known).numpy()
    q = chain.steps.numpy()
    cumulative = [np.linalg.multi_dot([np.eye(n), np.eye(n), *q[:j]]) for j in range(T + 1)]

    def back(k: int, b: int, j: int) -> np.ndarray:
        return q[j - 1][:, b] * cumulative[j - 1][k] / cumulative[j][k, b]

    def kl(p: np.ndarray, r: np.ndarray) -> float:
        return sum(a * np.log(a / b) for a, b in zip(p, r, strict=True) if a > 0)

    for row, (j, total) in enumerate(zip(i.tolist(), found, strict=True)):
        expected = 0.0
        for token in range(5):
            if known[row, token]:
                continue
            k, b = int(x[row, token]), int(x_t[row, token])
            prediction = log_probs[row, token].exp().numpy()
            possible = [m for m in range(3) if cumulative[j][m, b] > 0]
            mixed = sum(prediction[m] * back(m, b, j) for m in possible) / prediction[possible].sum()
            expected += T * kl(back(k, b, j), mixed) + kl(cumulative[T][k], chain.stationary.numpy())
        assert total == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("chain", CHAINS)
def test_one_drawn_step_estimates_the_bound_without_bias(chain: Chain):
    denoise, x = exact(WRONG, chain), JOINT.sample(40_000)
    i = draw_count(torch.full((len(x),), chain.length), generator(1))
    x_t = chain.corrupt(x, i, generator=generator(2))
    table = torch.stack([denoise(x_t, torch.tensor(j / chain.length)) for j in range(1, chain.length + 1)])
    values = bound(chain, table[i - 1, torch.arange(len(x))], x, x_t, i)
    exact_bound = (expected_bound(chain, denoise, JOINT.states) * JOINT.p).sum().item()
    assert within(values, exact_bound)


@pytest.mark.parametrize("chain", CHAINS)
def test_predictions_that_exclude_what_is_possible_give_no_nan(chain: Chain):
    x = torch.randint(0, 3, (60, 4), generator=generator())
    i = draw_count(torch.full((60,), chain.length), generator(1))
    x_t = chain.corrupt(x, i, generator=generator(2))
    never = torch.full((60, 4, 4), -torch.inf, dtype=torch.float64)
    never[..., 0] = 0  # only token 0
    p = chain.posterior(never, x_t, i)
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]))
    assert not bound(chain, never, x, x_t, i).isnan().any()
    logits = torch.randn(60, 4, 3, generator=generator(3), requires_grad=True)
    bound(chain, logits.log_softmax(-1), x, x_t, i).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad.abs().max() > 0


def test_matrices_that_are_not_stochastic_are_refused():
    with pytest.raises(ValueError, match="rows of the transition matrices"):
        Chain(steps=torch.full((2, 3, 3), 0.3), stationary=torch.full((3,), 1 / 3), vocab=3)


@pytest.mark.parametrize("chain", CHAINS)
def test_samples_follow_the_law_of_the_reverse_chain_for_any_denoiser(chain: Chain):
    denoise = exact(WRONG, chain)
    x = sample_chain(denoise, chain, stationary_start(chain, 30_000), generator=generator(1))
    assert fit(x, model_law(chain, denoise), len(chain.stationary)) > 1e-3


@pytest.mark.parametrize("name", ["absorbing", "uniform"])
def test_many_steps_reproduce_the_exact_joint_and_one_step_does_not(name: str):
    for T, agrees in ((200, True), (1, False)):
        chain = MAKERS[name](T)
        x = sample_chain(exact(JOINT, chain), chain, stationary_start(chain, 20_000), generator=generator(2))
        assert (JOINT.chi_square(x) > 1e-3) if agrees else (JOINT.chi_square(x) < 1e-6)


@pytest.mark.parametrize("chain", CHAINS)
def test_known_tokens_stay_even_outside_the_chain_and_the_rest_is_data(chain: Chain):
    x = stationary_start(chain, 500)
    x[:, 0] = 7
    known = torch.tensor([True, False]).expand_as(x)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.zeros(*x_t.shape, 4).log_softmax(-1)  # gives the mask a probability, against the contract

    out = sample_chain(denoise, chain, x, generator=generator(), known=known)
    assert (out[:, 0] == 7).all() and out[:, 1].unique().tolist() == [0, 1, 2]


def test_visible_tokens_are_carried_over_by_an_absorbing_chain_from_any_start():
    chain = absorbing(Linear(), 5, 3)
    x = torch.randint(0, 4, (200, 2), generator=generator())
    out = sample_chain(exact(JOINT, chain), chain, x, generator=generator(1))
    assert torch.equal(out[x < 3], x[x < 3]) and (out < 3).all()


@pytest.mark.parametrize("chain", CHAINS)
def test_an_item_does_not_depend_on_the_batch_it_is_in(chain: Chain):
    x, i, seeds = stationary_start(chain, 3), torch.tensor([1, 3, 4]), [11, 22, 33]

    def corrupt(items: list[int]) -> Tensor:
        return chain.corrupt(x[items], i[items], generator=[generator(seeds[j]) for j in items])

    def sample(items: list[int]) -> Tensor:
        return sample_chain(exact(JOINT, chain), chain, x[items], generator=[generator(seeds[j]) for j in items])

    for function in (corrupt, sample):
        together = function([0, 1, 2])
        assert all(torch.equal(function([j])[0], together[j]) for j in range(3))
        assert torch.equal(function([2, 0])[1], together[0])
