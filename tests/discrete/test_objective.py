import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from discrete.corrupt import draw_count
from discrete.objective import Autoregressive, Blocks, Masked, Objective, relative_weight
from discrete.replaced import D3PM
from discrete.schedule import Cosine, Linear, Polynomial
from discrete.text_model import TextTransformer, TextTransformerConfig
from tests.discrete.oracle import within

VOCAB, LENGTH = 3, 4
STATES = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))
X = torch.tensor([0, 2, 1, 1])
SUBSETS = [list(s) for l in range(1, LENGTH + 1) for s in itertools.combinations(range(LENGTH), l)]  # noqa: E741


def network(**options) -> TextTransformer:
    torch.manual_seed(0)
    model = TextTransformer(TextTransformerConfig(dim=8, layers=1, heads=2, **options), VOCAB)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return model.eval().requires_grad_(False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hidden_nll(model: TextTransformer, x: Tensor, hidden: list[int], t: float = 0.0) -> Tensor:
    """-log p(x_i | the rest) (B, number hidden)."""
    x_t = x.clone()
    x_t[:, hidden] = model.mask_id
    nll = -log_softmax(model(x_t, torch.tensor(t)).double(), -1).gather(-1, x[..., None])[..., 0]
    return nll[:, hidden]


def any_order(model: TextTransformer, x: Tensor) -> Tensor:
    """Mean cost (B,) of the chain rule over all orders, by which the bound is known in another form."""
    orders = list(itertools.permutations(range(x.shape[1])))
    chains = [sum(hidden_nll(model, x, sorted(o[i:]))[:, sorted(o[i:]).index(o[i])] for i in range(len(o)))
              for o in orders]  # fmt: skip
    return sum(chains) / len(orders)


def by_integral(model: TextTransformer, x: Tensor, weight) -> float:
    """Gauss-Legendre over the masked share m of weight(m) E[sum of the hidden nlls] / length."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    total = 0.0
    for m, w in zip((nodes + 1) / 2, weights / 2, strict=True):
        for s in SUBSETS:
            chance = m ** len(s) * (1 - m) ** (LENGTH - len(s))
            total += w * weight(m) * chance * hidden_nll(model, x[None], s).sum().item()
    return total / LENGTH


def by_blocks(model: TextTransformer, x: Tensor, size: int) -> Tensor:
    """Bound (B,) of a block-causal model: each block by all orders given the blocks before, each read on its own."""
    total = torch.zeros(len(x), dtype=torch.float64)
    for start in range(0, x.shape[1], size):
        before, block = x[:, :start], x[:, start : start + size]
        for hidden in (s for n in range(1, size + 1) for s in itertools.combinations(range(size), n)):
            x_t = block.clone()
            x_t[:, hidden] = model.mask_id
            read = torch.cat([before, x_t], 1)
            number = torch.arange(read.shape[1]) // size
            mask = number[:, None] >= number[None, :]
            logits = model(read, torch.tensor(0.0), mask=mask)[:, start:].double()
            nll = -log_softmax(logits, -1).gather(-1, block[..., None])[..., 0]
            total += nll[:, hidden].sum(-1) / len(hidden) / math.comb(size, len(hidden))
    return total


def mean_loss(objective: Objective, model, x: Tensor = X, calls: int = 150, batch: int = 64) -> Tensor:
    g = generator(7)
    return torch.stack([objective.loss(model, x.expand(batch, -1), g).double() for _ in range(calls)])


@pytest.mark.parametrize("draws", [1, 3, 8])
def test_masked_nats_are_an_unbiased_estimate_of_the_mean_over_all_orders(draws: int):
    model = network()
    values = Masked().nats(model, X.expand(8000 // draws, -1), draws, generator(1))
    assert values.dtype == torch.float64
    assert within(values, any_order(model, X[None]).item())
    assert not within(values, any_order(model, X[None]).item() * 1.05)  # the test can fail


def test_subsets_and_orders_agree_and_a_bound_costs_no_less_than_a_distribution():
    model = network()
    exact = any_order(model, STATES)
    uniform_count = sum(hidden_nll(model, STATES, s).sum(-1) / len(s) / math.comb(LENGTH, len(s)) for s in SUBSETS)
    torch.testing.assert_close(exact, uniform_count)
    assert (-exact).exp().sum() <= 1
    estimate = Masked().nats(model, STATES, 400, generator(2))
    assert (estimate - exact).abs().max() < 0.15 * exact.mean()
    assert (-estimate).exp().sum() < 1.01


def test_a_draw_from_each_stratum_leaves_no_variance_of_the_count():
    class Count(nn.Module):
        """The more is masked, the less sure; which tokens are masked does not matter."""

        mask_id = VOCAB

        def forward(self, x_t: Tensor, t: Tensor, asked: Tensor, **_) -> Tensor:
            share = (x_t == VOCAB).double().mean(-1)
            logits = torch.stack([-9 * share.square(), 0 * share, 0 * share], -1)[:, None]
            return logits.expand(*x_t.shape, 3)[asked]

    x = torch.zeros(500, LENGTH, dtype=torch.int64)
    one, all_counts = (Masked().nats(Count(), x, draws, generator(1)) for draws in (1, 2 * LENGTH))
    blocks = Blocks(size=LENGTH).nats(Sees(Count()), x, LENGTH, generator(2))
    assert one.std() > 0.5
    torch.testing.assert_close(all_counts, all_counts[:1].expand(500), rtol=1e-6, atol=0)
    torch.testing.assert_close(blocks, all_counts, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("batch", "n"), [(3, 4), (8, 4), (5, 7), (1, 5)])
def test_spread_counts_are_one_of_each_stratum_and_uniform_for_every_item(batch: int, n: int):
    g = generator(4)
    counts = torch.stack([draw_count(torch.full((batch,), n), g, even=True) for _ in range(4000)])
    for item in (0, batch - 1):
        assert stats.chisquare(torch.bincount(counts[:, item] - 1, minlength=n)).pvalue > 1e-3
    low = torch.arange(batch) * n // batch + 1  # the least and the greatest count of each stratum
    high = -(-(torch.arange(batch) + 1) * n // batch)
    ranked = counts.sort(-1).values
    assert (ranked >= low).all() and (ranked <= high).all()


class Sees(nn.Module):
    """Of [x_t | x], x_t alone."""

    mask_id = VOCAB

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, both: Tensor, t: Tensor, asked: Tensor, **_) -> Tensor:
        half = both.shape[1] // 2
        assert not asked[:, half:].any()
        return self.inner(both[:, :half], t, asked[:, :half])


@pytest.mark.parametrize("objective", [
    Masked(), Masked(copies=2), Masked(copies=3), Masked(estimator="stratified"), Masked(estimator="independent"),
    Masked(copies=2, estimator="stratified"), Masked(schedule=Cosine()),
    Masked(estimator="stratified", schedule=Cosine()), Masked(estimator="stratified", schedule=Polynomial(power=3)),
])  # fmt: skip
def test_the_loss_of_every_estimator_and_schedule_is_the_bound_per_token(objective: Masked):
    model = network()
    assert within(mean_loss(objective, model), any_order(model, X[None]).item() / LENGTH)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Polynomial(power=0.5)])
def test_simple_weighs_every_masked_token_alike_over_shares(schedule):
    model = network()
    objective = Masked(estimator="stratified", weighting="simple", schedule=schedule)
    assert within(mean_loss(objective, model), by_integral(model, X, lambda m: 2.0))
    assert by_integral(model, X, lambda m: 1 / m) == pytest.approx(any_order(model, X[None]).item() / LENGTH, rel=1e-6)


def test_simple_weighs_every_masked_token_alike_over_counts():
    model = network()
    expected = sum(2 * hidden_nll(model, X[None], s).sum().item() / LENGTH / math.comb(LENGTH, len(s)) for s in SUBSETS)
    assert within(mean_loss(Masked(weighting="simple"), model), expected / LENGTH)


def test_weightings_are_relative_to_the_bound_in_terms_of_the_share_alone():
    share = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for schedule in (Linear(), Cosine(), Polynomial(power=3)):
        log_snr = schedule.log_snr(schedule.time(share))
        torch.testing.assert_close(relative_weight(log_snr, "bound"), torch.ones_like(share))
        torch.testing.assert_close(relative_weight(log_snr, "simple"), 2 * share)
    ends = torch.tensor([-torch.inf, torch.inf])
    for weighting in ("bound", "simple"):
        assert torch.isfinite(relative_weight(ends, weighting)).all()


@pytest.mark.parametrize("weighting", ["bound", "simple"])
@pytest.mark.parametrize("estimator", ["exact_count", "stratified", "independent"])
def test_losses_and_gradients_are_finite_for_one_token_and_many(estimator: str, weighting: str):
    for length in (1, LENGTH):
        model = network().requires_grad_(True)
        objective = Masked(estimator=estimator, weighting=weighting)
        loss = objective.loss(model, STATES[:8, :length], generator())
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("estimator", ["exact_count", "stratified"])
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Polynomial(power=2)])
def test_a_network_with_time_is_told_the_time_of_what_it_sees(estimator: str, schedule):
    seen = []

    class Spy(nn.Module):
        mask_id = VOCAB

        def forward(self, x_t: Tensor, t: Tensor, asked: Tensor, **_) -> Tensor:
            seen.append(((x_t == VOCAB).double().mean(-1), t))
            return torch.zeros(int(asked.sum()), VOCAB)

    x = torch.zeros(64, 4000, dtype=torch.int64)
    Masked(estimator=estimator, schedule=schedule).loss(Spy(), x, generator())
    Masked(estimator=estimator, schedule=schedule).nats(Spy(), x, 2, generator())
    assert len(seen) == 3
    for share, t in seen:
        assert t.shape == (64,) and t.dtype == torch.float32
        torch.testing.assert_close(1 - schedule.alpha(t.double()), share, atol=0.05, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_block_nats_are_an_unbiased_estimate_of_blocks_read_one_by_one(size: int):
    model = network()
    expected = by_blocks(model, X[None], size).item()
    values = Blocks(size=size).nats(model, X.expand(3000, -1), 2, generator(1))
    assert within(values, expected) if size > 1 else values.tolist() == pytest.approx([expected] * 3000, rel=1e-5)
    losses = mean_loss(Blocks(size=size), model)
    assert within(losses, expected / LENGTH) if size > 1 else losses.mean().item() == pytest.approx(expected / LENGTH)


def test_one_block_costs_what_masked_diffusion_costs():
    model = network()
    torch.testing.assert_close(by_blocks(model, STATES, LENGTH), any_order(model, STATES))
    values = Blocks(size=LENGTH).nats(model, X.expand(6000, -1), 2, generator(1))
    assert within(values, any_order(model, X[None]).item())


def test_blocks_of_one_cost_a_probability_distribution_and_larger_ones_no_less():
    model = network()
    one = Blocks(size=1).nats(model, STATES, 1, generator())
    assert (-one).exp().sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(one, by_blocks(model, STATES, 1), atol=1e-5, rtol=1e-5)
    for size in (2, 4):
        exact = by_blocks(model, STATES, size)
        assert (-exact).exp().sum() < 1
        torch.testing.assert_close(
            Blocks(size=size).nats(model, STATES, 300, generator()), exact, atol=0.2 * exact.mean().item(), rtol=0
        )


def test_autoregressive_loss_is_its_nats_per_token_and_needs_no_draws():
    model = network()
    nats = Autoregressive().nats(model, STATES, 1, generator())
    assert (-nats).exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(nats, Autoregressive().nats(model, STATES, 7, generator(3)))
    assert Autoregressive().loss(model, STATES, generator()).item() == pytest.approx(nats.mean().item() / LENGTH)


@pytest.mark.parametrize("objective", [Masked(), Masked(estimator="independent"), Blocks(size=2)])
def test_the_same_seed_repeats_and_another_does_not(objective: Objective):
    model = network()
    for estimate in (lambda s: objective.loss(model, STATES, generator(s)),
                     lambda s: objective.nats(model, STATES, 2, generator(s))):  # fmt: skip
        assert torch.equal(estimate(1), estimate(1)) and not torch.equal(estimate(1), estimate(2))


def test_whole_blocks_can_be_read_and_a_text_of_broken_ones_is_refused():
    assert [Blocks(size=4).readable(n) for n in (0, 3, 4, 11)] == [0, 0, 4, 8]
    assert [Masked().readable(n) for n in (0, 11)] == [0, 11] and Autoregressive().readable(7) == 7
    with pytest.raises(ValueError, match="blocks of 4 do not divide a length of 6"):
        Blocks(size=4).check(6)
    Masked().check(6)


class Table(nn.Module):
    """Logits of a position are a row of a matrix: that of the token read there."""

    mask_id = VOCAB

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(VOCAB + 1, VOCAB, generator=generator(3)))

    def forward(self, x_t: Tensor, t: Tensor | None = None, asked: Tensor | None = None, **_) -> Tensor:
        self.read = x_t
        return self.rows[x_t if asked is None else x_t[asked]]


def weights_of(objective: Objective, read: Tensor, x: Tensor) -> np.ndarray:
    """How much the loss weighs each -log p: by the counts of masks that the network was shown."""
    if isinstance(objective, Autoregressive):
        return np.full(x.shape, 1 / x.numel())
    size = objective.size if isinstance(objective, Blocks) else x.shape[1]
    hidden = (read[:, : x.shape[1]] == VOCAB).numpy().reshape(-1, size)
    return (hidden * size / hidden.sum(-1, keepdims=True)).reshape(x.shape) / x.numel()


@pytest.mark.parametrize("objective", [Autoregressive(), Masked(), Blocks(size=2), Blocks(size=1)])
def test_a_training_step_of_a_linear_model_is_the_one_computed_by_hand(objective: Objective):
    model, x = Table(), STATES[torch.randperm(len(STATES), generator=generator(1))[:10]]
    rate, decay, beta, eps = 0.1, 0.05, (0.9, 0.95), 1e-8
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, betas=beta, eps=eps)
    rows = model.rows.detach().double().numpy().copy()
    m, v, g = np.zeros_like(rows), np.zeros_like(rows), generator(5)
    for step in (1, 2, 3):
        loss = objective.loss(model, x, g)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        read, weight = model.read[:, :LENGTH].numpy(), weights_of(objective, model.read, x)
        p = np.exp(rows[read]) / np.exp(rows[read]).sum(-1, keepdims=True)  # (B, L, V)
        target = np.eye(VOCAB)[x.numpy()]
        assert loss.item() == pytest.approx(-(weight * np.log((p * target).sum(-1))).sum(), rel=1e-5)
        gradient = np.zeros_like(rows)
        np.add.at(gradient, read, weight[..., None] * (p - target))
        m, v = beta[0] * m + (1 - beta[0]) * gradient, beta[1] * v + (1 - beta[1]) * gradient**2
        mean, square = m / (1 - beta[0] ** step), v / (1 - beta[1] ** step)
        rows = rows * (1 - rate * decay) - rate * mean / (np.sqrt(square) + eps)
        np.testing.assert_allclose(model.rows.detach().numpy(), rows, atol=2e-5)


def test_tables_that_no_machine_holds_are_refused_before_they_are_made():
    with pytest.raises(ValueError, match=r"tables of 100 steps over 4,096 tokens hold 25.* GiB"):
        D3PM(steps=100).chain(4096, torch.device("cpu"))
