import itertools

import pytest
import torch
from scipy import stats

from discrete.corrupt import draw_count, mask_both_ways, mask_exact_count, mask_tokens
from discrete.schedule import Cosine, Linear, Schedule

MASK = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
@pytest.mark.parametrize("shape", [(), (4,), (4, 6000)])
def test_visible_share_is_alpha_for_times_of_every_shape(schedule: Schedule, shape: tuple[int, ...]):
    t = torch.linspace(0.05, 0.95, 4, dtype=torch.float64)
    t = {0: t[1], 1: t, 2: t[:, None].expand(4, 6000)}[len(shape)]
    x = torch.randint(0, MASK, (4, 6000), generator=generator())
    x_t = mask_tokens(schedule, x, t, mask_id=MASK, generator=generator(1))
    shares = (x_t != MASK).double().mean(-1)
    alpha = schedule.alpha(t if len(shape) < 2 else t[:, 0]).expand(4)
    assert ((shares - alpha).abs() < 4 * (alpha * (1 - alpha) / 6000).sqrt()).all()
    assert ((x_t == x) | (x_t == MASK)).all()


def test_spans_stand_at_their_own_times():
    t = torch.cat([torch.zeros(8, 3), torch.ones(8, 4)], 1)
    x_t = mask_tokens(Linear(), torch.zeros(8, 7, dtype=torch.long), t, mask_id=MASK, generator=generator())
    assert (x_t[:, :3] == 0).all() and (x_t[:, 3:] == MASK).all()


def test_exact_count_masks_so_many_and_never_a_known_token():
    x = torch.zeros(200, 9, dtype=torch.long)
    known = torch.rand(200, 9, generator=generator()) < 0.4
    count = draw_count((~known).sum(-1), generator(1))
    x_t = mask_exact_count(x, count, mask_id=MASK, generator=generator(2), known=known)
    assert ((x_t == MASK).sum(-1) == count).all()
    assert (x_t[known] == 0).all()


def test_exact_count_draws_every_subset_equally_often():
    x = torch.zeros(20_000, 5, dtype=torch.long)
    x_t = mask_exact_count(x, torch.full((20_000,), 2), mask_id=MASK, generator=generator())
    code = ((x_t == MASK) * 2 ** torch.arange(5)).sum(-1)
    pairs = [2**i + 2**j for i, j in itertools.combinations(range(5), 2)]
    assert stats.chisquare([(code == pair).sum() for pair in pairs]).pvalue > 1e-4


def test_masking_both_ways_asks_for_every_token_once_and_for_one_twice():
    x, count = torch.arange(5).repeat(20_000, 1), torch.arange(20_000) % 5 + 1
    first, second = (x_t == MASK for x_t in mask_both_ways(x, count, mask_id=MASK, generator=generator()))
    assert (first.sum(-1) == count).all() and (second.sum(-1) == 6 - count).all()
    assert (first | second).all() and ((first & second).sum(-1) == 1).all()
    for masked in (first, second):
        chosen = masked[masked.sum(-1) == 2]
        code = (chosen * 2 ** torch.arange(5)).sum(-1)
        pairs = [2**i + 2**j for i, j in itertools.combinations(range(5), 2)]
        assert stats.chisquare([(code == pair).sum() for pair in pairs]).pvalue > 1e-4


def test_count_is_uniform_from_one_to_all():
    count = draw_count(torch.full((30_000,), 6), generator())
    assert count.min() == 1 and count.max() == 6
    assert stats.chisquare(torch.bincount(count)[1:].numpy()).pvalue > 1e-4
