from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from backbone.noise import uniform
from discrete.layout import Layout
from discrete.predict import denoiser, sharpened, subs
from discrete.sample import (
    Remasking,
    Remember,
    ancestral,
    block,
    cached,
    confidence,
    draw,
    entropy_bound,
    first_hitting,
    invert,
    looped,
    remask,
)
from discrete.schedule import Cosine, Linear
from tests.discrete.oracle import Joint

JOINT = Joint(vocab=3, length=3)
ONE_BY_ONE = torch.linspace(1, 0, 4)


def hitting(denoise, schedule, x, times, **options):
    return first_hitting(denoise, schedule, x, start=float(times[0]), **options)


def bounded(denoise, schedule, x, times, **options):
    return entropy_bound(denoise, schedule, x, 0.1, **options)


def in_blocks(denoise, schedule, x, times, **options):
    return block(denoise, schedule, x, times, sampler=ancestral, size=1, **options)


GRID_SAMPLERS = [ancestral, cached, confidence, remask]
SAMPLERS = [*GRID_SAMPLERS, hitting, bounded, in_blocks]
EXACT = [ancestral, cached, hitting, bounded, in_blocks]  # those whose law is the model's, on a fine grid


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_masked(count: int, joint: Joint = JOINT) -> Tensor:
    return torch.full((count, joint.states.shape[1]), joint.mask_id)


def naive_draw(log_probs: Tensor, g: torch.Generator) -> Tensor:
    """The counterexample: Gumbel-max in float32, as it stands in well-known code."""
    u = torch.rand(log_probs.shape, generator=g)
    return (log_probs.float() - torch.log(-torch.log(u))).argmax(-1)


def test_draw_hits_the_tail_and_float32_gumbel_does_not():
    rare, rows, p = 5000, 500, 2e-8  # 400 rounds of 500 draws: 20 tail hits expected
    log_probs = torch.full((rare + 1,), p, dtype=torch.float64).log()
    log_probs[0] = torch.log1p(torch.tensor(-rare * p, dtype=torch.float64))
    g, hits, naive = generator(3), 0, 0
    for _ in range(400):
        hits += int((draw(log_probs.expand(1, rows, -1), g) > 0).sum())
        naive += int((naive_draw(log_probs.expand(rows, -1), g) > 0).sum())
    low, high = 9, 34  # Poisson(20) leaves them with probability 0.4 %
    assert low <= hits <= high
    assert naive < low  # none at all could be drawn if the common token's noise were never negative


def test_draw_is_the_inverse_distribution_function_of_float64_uniforms():
    log_probs = 12 * torch.randn(40, 25, 30, generator=generator(1))  # many tokens far below float32's resolution
    u = torch.rand(40, 25, generator=generator(2), dtype=torch.float64).numpy()
    mass = np.cumsum(np.exp(log_probs.double().numpy()), -1)
    expected = (mass <= u[..., None] * mass[..., -1:]).sum(-1)
    assert (draw(log_probs, generator(2)).numpy() == expected).all()


def test_invert_resolves_probabilities_far_below_float32():
    log_probs = torch.tensor([[0.0, 1e-12], [0.0, 1e-12]], dtype=torch.float64)
    log_probs[:, 1].log_()
    assert invert(log_probs, torch.tensor([1 - 5e-13, 1 - 5e-12], dtype=torch.float64)).tolist() == [1, 0]


def test_draw_never_returns_a_token_without_probability():
    log_probs = torch.tensor([-torch.inf, 0.0, -torch.inf, -1.0, -torch.inf]).expand(1, 6, 5)
    u = torch.tensor([0, 1e-300, 0.5, 1 - 2**-53, 0.999999, 0.7310585786300049], dtype=torch.float64)
    assert set(invert(log_probs[0], u).tolist()) <= {1, 3}
    assert set(draw(log_probs.expand(500, 6, 5), generator()).unique().tolist()) == {1, 3}


@pytest.mark.parametrize("sampler", EXACT)
@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
def test_samplers_of_the_reverse_process_reproduce_the_exact_joint(sampler, schedule):
    x = sampler(JOINT, schedule, all_masked(10_000), torch.linspace(1, 0, 201), mask_id=3, generator=generator(1))
    assert JOINT.chi_square(x) > 1e-3


@pytest.mark.parametrize(("rule", "eta"), [("cap", 0.3), ("rescale", 0.3), ("rescale", 1.0)])
def test_remasking_hides_as_often_as_its_rule_says_and_keeps_the_visible_share(rule, eta):
    t, s, joint = 0.5, 0.3, Joint(vocab=3, length=3)
    remasking = Remasking(rule=rule, eta=eta)
    most = min(1, s / (1 - t))  # (1 - alpha_s) / alpha_t of the linear schedule
    sigma = min(eta, most) if rule == "cap" else eta * most
    alphas = torch.tensor([1 - t, 1 - s], dtype=torch.float64)
    assert remasking.sigma(*alphas).item() == pytest.approx(sigma)
    x = joint.sample(60_000)
    hidden = uniform(x.shape, generator(2)) < t
    x_t = torch.where(hidden, 3, x)
    times = torch.tensor([t, s, 0.0])
    seen = []

    def watched(x_s: Tensor, at: Tensor) -> Tensor:
        seen.append(x_s)
        return joint(x_s, at)

    remask(watched, Linear(), x_t, times, mask_id=3, generator=generator(1), remasking=remasking)
    again = (seen[1] == 3)[~hidden].double().mean().item()
    assert again == pytest.approx(sigma, abs=5 * (sigma / hidden.numel()) ** 0.5)
    assert (seen[1] == 3).double().mean().item() == pytest.approx(s, abs=0.005)


@pytest.mark.parametrize("sampler", [confidence, entropy_bound])
def test_draws_may_be_greedy_while_the_order_is_the_models(sampler):
    """Five positions of falling certainty, in a known order; the likeliest token is drawn at each."""
    order = [3, 0, 4, 1, 2]  # surest first
    p = torch.zeros(5, 4, dtype=torch.float64)
    for rank, place in enumerate(order):
        p[place, 1], p[place, 0] = 0.95 - 0.1 * rank, 0.05 + 0.1 * rank
    seen = []

    def denoise(x: Tensor, _: Tensor) -> Tensor:
        seen.append((x[0] == 3).tolist())
        return subs(p.log().expand(len(x), 5, 4), x, 3)

    options = {"mask_id": 3, "generator": generator(), "sharpen": lambda logits: sharpened(logits, top_k=1)}
    grid = 0.0 if sampler is entropy_bound else torch.linspace(1, 0, 6)
    x = sampler(denoise, Linear(), torch.full((1, 5), 3), grid, **options)
    assert x.tolist() == [[1] * 5]
    came = [next(i for i in range(5) if before[i] and not after[i]) for before, after in pairwise([*seen, [False] * 5])]
    assert came == order


def test_remasking_tends_to_the_exact_joint_as_steps_grow_finer_and_sigma_smaller():
    def law(steps: int, remasking: Remasking, times=None) -> float:
        grid = torch.linspace(1, 0, steps + 1) if times is None else times
        options = {"mask_id": 3, "generator": generator(1), "remasking": remasking}
        return JOINT.chi_square(remask(JOINT, Linear(), all_masked(8000), grid, **options))

    assert law(800, Remasking(eta=0.005)) > 1e-3
    assert law(400, Remasking(rule="rescale", eta=0.005)) > 1e-3
    loop = Remasking(eta=0.02, window=(0.5, 0.5))
    assert law(0, loop, looped(torch.linspace(1, 0, 201), 0.5, 200)) > 1e-3
    assert law(10, Remasking(eta=0.3)) < 1e-6  # many tokens at once: the known bias
    assert law(200, Remasking(eta=1.0, confidence=True)) < 1e-6  # hiding what was unlikely is a heuristic


def test_remasking_keeps_the_share_of_visible_tokens():
    seen, joint = [], Joint(vocab=2, length=4)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append((x_t != 2).double().mean())
        return joint(x_t)

    options = {"mask_id": 2, "generator": generator(), "remasking": Remasking(rule="rescale", eta=0.5)}
    remask(denoise, Cosine(), all_masked(5000, joint), torch.linspace(1, 0, 11), **options)
    expected = Cosine().alpha(torch.linspace(1, 0, 11)[:-1].double())
    torch.testing.assert_close(torch.stack(seen), expected, atol=0.015, rtol=0)


def test_a_loop_stays_at_its_time_and_a_window_remasks_nowhere_else():
    grid = looped(torch.linspace(1, 0, 5), 0.5, 3)
    assert grid.tolist() == [1.0, 0.75, 0.5, 0.5, 0.5, 0.5, 0.25, 0.0]
    assert looped(torch.linspace(1, 0, 3), 0.7, 1).tolist() == pytest.approx([1.0, 0.7, 0.7, 0.5, 0.0])
    remasking, steps = Remasking(window=(0.5, 0.5)), list(pairwise(grid))
    assert [remasking.acts(t, s) for t, s in steps] == [False, False, True, True, True, False, False]
    never = Remasking(eta=0.0)
    options = {"mask_id": 3, "generator": generator(4)}
    plain = ancestral(JOINT, Linear(), all_masked(50), ONE_BY_ONE, mask_id=3, generator=generator(4))
    assert torch.equal(remask(JOINT, Linear(), all_masked(50), ONE_BY_ONE, remasking=never, **options), plain)


@pytest.mark.parametrize("times", [torch.linspace(1, 0, 101), ONE_BY_ONE])
def test_cached_equals_ancestral_under_the_same_noise_and_asks_for_far_fewer_rows(times: Tensor):
    x, rows = all_masked(300), []

    def counted(x_t: Tensor, t: Tensor) -> Tensor:
        rows.append(len(x_t))
        return JOINT(x_t)

    options = {"mask_id": 3}
    plain = ancestral(JOINT, Cosine(), x, times, generator=generator(5), **options)
    assert torch.equal(cached(counted, Cosine(), x, times, generator=generator(5), **options), plain)
    assert sum(rows) <= 300 * min(4, len(times) - 1)  # a sequence of three tokens changes at most three times


def test_remember_asks_about_changed_rows_alone_and_answers_for_all():
    asked = []

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        asked.append(x_t.tolist())
        return x_t.double() * 2

    remember, t = Remember(network), torch.ones(())
    x = torch.tensor([[0, 1], [2, 3]])
    assert torch.equal(remember(x, t), x * 2.0)
    x = torch.tensor([[0, 1], [2, 4]])
    assert torch.equal(remember(x, t), x * 2.0) and asked[-1] == [[2, 4]]
    assert torch.equal(remember(x, t), x * 2.0) and len(asked) == 2 and remember.rows == 3
    assert torch.equal(remember(x[:1], t), x[:1] * 2.0)  # another batch


def test_hitting_times_have_the_law_of_the_path():
    # the time at which the first of n tokens appears: P(T < t) = (1 - alpha_t)^n
    seen = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return JOINT(x_t)

    first_hitting(denoise, Cosine(), all_masked(20_000), mask_id=3, generator=generator())
    share = torch.stack([torch.ones(20_000), *(1 - Cosine().alpha(t) for t in seen)])
    assert len(seen) == 3
    for left, ratio in zip((3, 2, 1), share[1:] / share[:-1], strict=True):
        assert stats.kstest(ratio, lambda u, left=left: u**left).pvalue > 1e-3


@pytest.mark.parametrize("sampler", [hitting, ancestral])
def test_a_token_is_drawn_at_the_time_at_which_it_is_revealed(sampler):
    # p(1 | t) = t: over a uniform time of revealing, half of the tokens are 1
    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        t = t.double().expand(len(x_t))[:, None]
        return subs(torch.stack([(1 - t).log(), t.log(), torch.zeros_like(t)], -1), x_t, 2)

    x = sampler(
        denoise, Linear(), torch.full((8000, 1), 2), torch.linspace(1, 0, 201), mask_id=2, generator=generator()
    )
    assert abs(x.double().mean().item() - 0.5) < 0.02


def test_several_tokens_at_once_cost_fewer_calls_and_the_exact_law():
    joint = Joint(vocab=2, length=5)
    first_hitting(joint, Linear(), all_masked(4, joint), mask_id=2, generator=generator(), at_once=2)
    assert joint.calls == 3
    x = first_hitting(JOINT, Linear(), all_masked(20_000), mask_id=3, generator=generator(), at_once=3)
    assert JOINT.chi_square(x) < 1e-6


def test_a_large_entropy_bound_reveals_all_at_once_and_a_small_one_token_by_token():
    for bound, calls in ((0.0, 4), (1e9, 1)):
        joint = Joint(vocab=2, length=4)
        entropy_bound(joint, Linear(), all_masked(50, joint), bound, mask_id=2, generator=generator())
        assert joint.calls == calls


def test_the_entropy_bound_holds_for_what_is_revealed_together():
    joint, bound, before = Joint(vocab=2, length=6, sharpness=2.5), 0.5, []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        before.append(x_t)
        return joint(x_t)

    out = entropy_bound(denoise, Linear(), all_masked(200, joint), bound, mask_id=2, generator=generator())
    together = 0
    for x_t, after in zip(before, [*before[1:], out], strict=True):
        log_p = joint(x_t)
        entropy = -torch.xlogy(log_p.exp(), log_p.exp()).sum(-1)
        shown = (x_t == 2) & (after != 2)
        lost = (entropy * shown).sum(-1) - (entropy * shown).amax(-1)
        assert (lost <= bound + 1e-12).all()
        together += int((shown.sum(-1) > 1).sum())
    assert together > 0


def test_certain_tokens_are_revealed_together_whatever_the_bound():
    def denoise(x_t: Tensor, t: Tensor) -> Tensor:  # the same token at all places, whichever it is
        logits = torch.zeros(*x_t.shape, 4)
        for v in range(3):
            logits[(x_t == v).any(-1)] = torch.where(torch.arange(4) == v, 0.0, -torch.inf)
        return subs(logits, x_t, 3)

    out = entropy_bound(denoise, Linear(), torch.full((6, 8), 3), 0.0, mask_id=3, generator=generator())
    assert (out == out[:, :1]).all()


def test_ancestral_in_one_step_gives_the_product_of_marginals():
    x = ancestral(JOINT, Linear(), all_masked(40_000), torch.tensor([1.0, 0.0]), mask_id=3, generator=generator())
    assert JOINT.chi_square(x) < 1e-6  # the test above can fail
    marginal = JOINT(all_masked(1))[0].exp()
    seen = torch.nn.functional.one_hot(x, 4).double().mean(0)
    torch.testing.assert_close(seen, marginal, atol=0.012, rtol=0)


def test_one_token_at_a_time_in_random_order_reproduces_the_exact_joint():
    # a huge temperature turns confidence order into a random order, independent of the guesses
    x = confidence(JOINT, Linear(), all_masked(40_000), ONE_BY_ONE, mask_id=3, generator=generator(), temperature=1e9)
    # the last step has no noise left, but then a single token is left too
    assert JOINT.chi_square(x) > 1e-3


def test_confidence_order_prefers_what_the_model_is_sure_of():
    x = confidence(JOINT, Linear(), all_masked(20_000), ONE_BY_ONE, mask_id=3, generator=generator())
    assert JOINT.chi_square(x) < 1e-6  # the known bias of the heuristic
    log_p = JOINT.posterior(x).max(-1).indices
    assert JOINT.p[log_p].log().mean() > -JOINT.entropy() + 0.05


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_infilling_keeps_known_tokens_and_follows_the_conditional(sampler):
    given = torch.tensor([3, 1, 3])
    x = given.expand(8000, 3)
    times = torch.linspace(1, 0, 101)
    options = {confidence: {"temperature": 1e9}, remask: {"remasking": Remasking(eta=0.01)}}.get(sampler, {})
    known = (given != 3).expand_as(x)
    out = sampler(JOINT, Linear(), x, times, mask_id=3, generator=generator(), known=known, **options)
    assert (out[:, 1] == 1).all()
    assert JOINT.chi_square(out, given) > 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("times", [[1.0, 0.0], [1.0, 0.5, 0.2], [0.7, 0.3, 1e-3], [1.0, 0.9, 0.8, 0.0]])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
def test_no_mask_is_left_whatever_the_grid_and_however_much_was_filled_in(sampler, times, schedule):
    x = torch.randint(0, 4, (64, 3), generator=generator())
    visible = x != 3
    known = (torch.rand(64, 3, generator=generator(1)) < 0.5) & visible
    out = sampler(JOINT, schedule, x, torch.tensor(times), mask_id=3, generator=generator(2), known=known)
    assert (out < 3).all() and (out >= 0).all()
    kept = known if sampler is remask else visible  # what is visible and not known may be hidden again
    assert torch.equal(out[kept], x[kept])


@pytest.mark.parametrize("start", [1.0, 0.8])
def test_the_noise_on_the_order_of_confidence_fades_evenly_with_the_steps(start: float):
    times = torch.linspace(start, 0, 4, dtype=torch.float64)
    x, odds = torch.full((500, 6), 3), torch.tensor([0.2, 0.3, 0.5, 0.0], dtype=torch.float64).log()
    rows, heat, replay = odds.expand(500, 6, 4), 3.0, generator(5)
    made = confidence(lambda *_: rows, Cosine(), x, times, mask_id=3, generator=generator(5), temperature=heat)
    alpha = Cosine().alpha(times)
    for number, s in enumerate(times[1:], start=1):
        u, v = (uniform(x.shape, replay) for _ in range(2))
        guess = (u[..., None] >= odds.exp().cumsum(-1)).sum(-1).clamp_max(2)
        score = odds[guess] - heat * s / start * torch.log(-torch.log(v))
        left = round(6 * (1 - float((alpha[number] - alpha[0]) / (1 - alpha[0])))) if number < 3 else 0
        order = score.masked_fill(x != 3, -torch.inf).argsort(-1, descending=True).argsort(-1)
        shown = order < ((x == 3).sum(-1) - left)[:, None]
        x = torch.where(shown, guess, x)
    assert torch.equal(made, x)


def test_first_hitting_takes_more_tokens_at_once_than_there_are():
    x = first_hitting(JOINT, Linear(), all_masked(64), mask_id=3, generator=generator(), at_once=9)
    assert (x < 3).all()


def test_a_known_token_stays_even_where_it_is_a_mask():
    x = torch.full((8, 3), 3)
    known = torch.tensor([True, False, False]).expand_as(x)
    for sampler in SAMPLERS:
        out = sampler(JOINT, Linear(), x, ONE_BY_ONE, mask_id=3, generator=generator(), known=known)
        assert (out[:, 0] == 3).all() and (out[:, 1:] < 3).all()


def test_the_quota_counts_unknown_positions_only():
    # 12 positions, 8 known: after half of the time 2 of the 4 unknown ones stand, not 6 - 8 < 0 of them
    seen = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append((x_t == 5).sum(-1))
        return subs(torch.zeros(*x_t.shape, 6), x_t, 5)

    x = torch.full((3, 12), 5)
    x[:, :8] = 0
    confidence(denoise, Linear(), x, torch.linspace(1, 0, 5), mask_id=5, generator=generator(), known=x == 0)
    assert torch.stack(seen).tolist() == [[4] * 3, [3] * 3, [2] * 3, [1] * 3]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_item_does_not_depend_on_the_batch_it_is_in(sampler):
    x = torch.tensor([[3, 3, 3], [3, 1, 3], [0, 3, 3]])
    known = x != 3
    seeds = [11, 22, 33]

    def sample(items: list[int]) -> Tensor:
        generators = [generator(seeds[i]) for i in items]
        return sampler(JOINT, Cosine(), x[items], ONE_BY_ONE, mask_id=3, generator=generators, known=known[items])

    together = sample([0, 1, 2])
    for i in range(3):
        assert torch.equal(sample([i])[0], together[i])
    assert torch.equal(sample([2, 0])[1], together[0])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_repeats_and_another_does_not(sampler):
    def sample(seed: int) -> Tensor:
        return sampler(JOINT, Linear(), all_masked(50), ONE_BY_ONE, mask_id=3, generator=generator(seed))

    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))


@pytest.mark.parametrize("sampler", [ancestral, confidence, remask])
def test_the_denoiser_is_called_once_per_step(sampler):
    joint = Joint(vocab=2, length=4)
    sampler(joint, Linear(), all_masked(4, joint), torch.linspace(1, 0, 8), mask_id=2, generator=generator())
    assert joint.calls == 7


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_stay_in_the_allowed_ranges(sampler):
    layout = Layout(text_length=3, text_vocab=5, sides=(2,), image_vocabs=(4,))
    denoise = denoiser(lambda x, t: torch.zeros(*x.shape, 10), mask_id=9, allowed=layout.allowed())
    x = sampler(denoise, Linear(), layout.masked(200), torch.linspace(1, 0, 4), mask_id=9, generator=generator())
    text, codes = layout.split(x)
    assert text.unique().tolist() == [0, 1, 2, 3, 4] and codes.unique().tolist() == [0, 1, 2, 3]
