import math

import numpy as np
import pytest
import torch
from torch import Tensor

from discrete.corrupt import draw_count, mask_exact_count, mask_tokens
from discrete.loss import exact_count_nelbo, exact_count_weight, masked_cross_entropy, nelbo, sample_times
from discrete.predict import subs
from discrete.schedule import Cosine, Linear, Schedule
from tests.discrete.oracle import Joint, within

JOINT = Joint(vocab=3, length=3)
SCHEDULES = [Linear(), Cosine()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_time(schedule: Schedule, denoise, x: Tensor, t: Tensor, mask_id: int, seed: int = 2) -> Tensor:
    x_t = mask_tokens(schedule, x, t, mask_id=mask_id, generator=generator(seed))
    return nelbo(schedule, denoise(x_t), x, x_t, t, mask_id=mask_id)


def by_count(denoise, x: Tensor, mask_id: int, known: Tensor | None = None, seed: int = 2) -> Tensor:
    unknown = (torch.ones_like(x, dtype=torch.bool) if known is None else ~known).sum(-1)
    count = draw_count(unknown, generator(seed))
    x_t = mask_exact_count(x, count, mask_id=mask_id, generator=generator(seed + 1), known=known)
    return exact_count_nelbo(denoise(x_t), x, x_t, mask_id=mask_id, known=known)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nelbo_equals_entropy_for_exact_posterior(schedule: Schedule):
    x = JOINT.sample(100_000)
    t = sample_times("stratified", len(x), generator(1))
    assert within(by_time(schedule, JOINT, x, t, JOINT.mask_id), JOINT.entropy())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nelbo_equals_entropy_when_every_token_has_its_own_time(schedule: Schedule):
    # independent tokens: the bound splits over positions, whatever their times
    joint = Joint(vocab=4, length=1)
    x = joint.sample(200_000).reshape(-1, 2)

    def denoise(x_t: Tensor) -> Tensor:
        return joint(x_t.reshape(-1, 1)).reshape(*x_t.shape, -1)

    t = sample_times("independent", x.numel(), generator(1)).reshape(x.shape)
    assert within(by_time(schedule, denoise, x, t, joint.mask_id), 2 * joint.entropy())


def test_nelbo_is_the_objective_of_the_mdlm_paper_on_the_same_batch():
    # its notation: alpha = exp(-sigma), loss = sigma' / (exp(sigma) - 1) times the cross-entropy of masked tokens, with
    # the log-linear noise sigma = -log(1 - t); written with numpy from arXiv:2406.07524, eq. 10 and app. E
    logits = torch.randn(32, 20, 12, generator=generator(), dtype=torch.float64)
    x = torch.randint(0, 11, (32, 20), generator=generator(1))
    t = sample_times("independent", 32, generator(2))
    x_t = mask_tokens(Linear(), x, t, mask_id=11, generator=generator(3))
    ours = nelbo(Linear(), subs(logits, x_t, 11), x, x_t, t, mask_id=11)
    z, times = logits.numpy()[..., :11], t.numpy()
    log_p = z - z.max(-1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_p, x.numpy()[..., None], -1)[..., 0]
    sigma, rate = -np.log1p(-times), 1 / (1 - times)
    theirs = (rate / np.expm1(sigma))[:, None] * nll * (x_t.numpy() == 11)
    np.testing.assert_allclose(ours.numpy(), theirs.sum(-1), rtol=1e-5)


def test_exact_count_nelbo_equals_entropy_for_exact_posterior():
    assert within(by_count(JOINT, JOINT.sample(100_000), JOINT.mask_id), JOINT.entropy())


def test_exact_count_nelbo_of_the_unknown_given_the_known_is_their_conditional_entropy():
    x = JOINT.sample(100_000)
    known = torch.tensor([True, False, False]).expand_as(x)
    first = torch.stack([JOINT.p[JOINT.states[:, 0] == v].sum() for v in range(3)])
    conditional = JOINT.entropy() + (first * first.log()).sum().item()
    assert within(by_count(JOINT, x, JOINT.mask_id, known), conditional)


def test_a_hidden_known_side_is_not_counted():
    x = JOINT.sample(1000)
    known = torch.tensor([True, False, False]).expand_as(x)
    x_t = torch.full_like(x, JOINT.mask_id)
    loss = exact_count_nelbo(JOINT(x_t), x, x_t, mask_id=JOINT.mask_id, known=known)
    nll = -JOINT(x_t).gather(-1, x[..., None])[..., 0]
    torch.testing.assert_close(loss, nll[:, 1:].sum(-1))


def test_exact_nelbo_bounds_the_log_likelihood_of_every_sequence_from_above():
    # on average over x the exact denoiser is tight; for a worse denoiser the bound is above the entropy
    wrong = Joint(vocab=3, length=3, seed=9)
    assert by_count(wrong, JOINT.sample(20_000), JOINT.mask_id).mean() > JOINT.entropy() + 0.1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_unigram_denoiser_scores_its_cross_entropy(schedule: Schedule):
    q = torch.tensor([0.5, 0.2, 0.2, 0.1, 0.0], dtype=torch.float64).log()  # EVALUATION 1.8
    p = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    x = torch.multinomial(p, 40_000 * 8, True, generator=generator()).reshape(-1, 8)

    def denoise(x_t: Tensor) -> Tensor:
        return subs(q.expand(*x_t.shape, 5), x_t, 4)

    expected = 8 * -(p * q[:4]).sum().item()
    t = sample_times("stratified", len(x), generator(1))
    assert within(by_time(schedule, denoise, x, t, 4), expected)
    assert within(by_count(denoise, x, 4), expected)


def test_uniform_denoiser_scores_log_v_exactly():
    x = torch.randint(0, 7, (100, 12), generator=generator())

    def denoise(x_t: Tensor) -> Tensor:
        return subs(torch.zeros(*x_t.shape, 8, dtype=torch.float64), x_t, 7)

    torch.testing.assert_close(by_count(denoise, x, 7), torch.full((100,), 12 * math.log(7), dtype=torch.float64))


def test_one_token_scores_plain_cross_entropy():
    joint = Joint(vocab=5, length=1)
    x = joint.sample(50)
    torch.testing.assert_close(by_count(joint, x, 5), -joint.p.log()[x[:, 0]])


def test_counting_masks_exactly_takes_most_of_the_variance_away():
    # means of batches of 64 sequences; stratified times gain next to nothing, as EVALUATION 1.8 has it
    joint, batches = Joint(vocab=2, length=10, sharpness=0.5), 100
    x = joint.sample(64 * batches)
    strata = torch.cat([sample_times("stratified", 64, generator(10 + i)) for i in range(batches)])
    stratified = by_time(Linear(), joint, x, strata, 2).reshape(batches, 64).mean(1)
    independent = by_time(Linear(), joint, x, sample_times("independent", len(x), generator(1)), 2)
    counted = by_count(joint, x, 2)
    assert counted.reshape(batches, 64).mean(1).var() < stratified.var() / 4
    assert counted.var() < independent.var() / 4


def test_no_time_is_left_out_and_a_time_of_zero_costs_nothing():
    t = sample_times("stratified", 64, generator())
    assert ((t > 0) & (t <= 1)).all()
    assert torch.equal((t.sort().values * 64).ceil(), torch.arange(1.0, 65.0, dtype=torch.float64))
    x = JOINT.sample(4)
    zero = nelbo(Linear(), JOINT(x), x, x, torch.zeros(4), mask_id=JOINT.mask_id)
    assert torch.equal(zero, torch.zeros_like(zero))


def test_gradient_of_the_nelbo_is_finite_at_time_zero():
    logits = torch.randn(4, 3, 4, requires_grad=True)
    x = torch.randint(0, 3, (4, 3))
    nelbo(Linear(), subs(logits, x, 3), x, x, torch.zeros(4), mask_id=3).sum().backward()
    assert logits.grad is not None and (logits.grad == 0).all()


def test_masked_cross_entropy_with_count_weights_is_the_nelbo():
    logits = torch.randn(16, 5, 8, generator=generator())
    x = torch.randint(0, 8, (16, 5), generator=generator(1))
    count = draw_count(torch.full((16,), 5), generator(2))
    x_t = mask_exact_count(x, count, mask_id=8, generator=generator(3))
    masked = x_t == 8
    weight = masked * exact_count_weight(masked)[:, None]
    wide = torch.cat([logits, torch.zeros(16, 5, 1)], -1)
    torch.testing.assert_close(
        masked_cross_entropy(logits, x, weight), exact_count_nelbo(subs(wide, x_t, 8), x, x_t, mask_id=8)
    )


def test_tokens_without_weight_may_lie_outside_the_vocabulary_and_get_no_gradient():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    x = torch.tensor([[0, 99, 1], [99, 99, 3]])
    weight = (x < 99).float()
    masked_cross_entropy(logits, x, weight).sum().backward()
    assert logits.grad is not None and (logits.grad[x == 99] == 0).all() and (logits.grad[x < 99] != 0).any()
