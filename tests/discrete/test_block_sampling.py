import itertools

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from discrete import attend
from discrete.objective import Blocks
from discrete.predict import denoiser, sharpened
from discrete.sample import ancestral, block, block_causal, confidence, remask
from discrete.schedule import Cosine, Linear
from discrete.text_model import TextTransformer, TextTransformerConfig
from tests.discrete.oracle import Joint

VOCAB = 7
TIMES = torch.linspace(1, 0, 4)


def network(vocab: int = VOCAB) -> TextTransformer:
    torch.manual_seed(0)
    model = TextTransformer(TextTransformerConfig(dim=16, layers=2, heads=2), vocab)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.double().eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def partly_masked(batch: int, length: int) -> tuple[Tensor, Tensor]:
    x = torch.randint(0, VOCAB, (batch, length), generator=generator(5))
    known = torch.rand(batch, length, generator=generator(6)) < 0.3
    return torch.where(known, x, VOCAB), known


@torch.no_grad()
def anew(model: TextTransformer, schedule, x: Tensor, times, *, known, sampler, size, g, sharpen=None) -> Tensor:
    """Read the whole prefix again for every call, under the block-causal mask."""
    for stop in range(size, x.shape[1] + 1, size):
        start = stop - size

        def logits(piece: Tensor, t: Tensor, stop=stop, start=start) -> Tensor:
            read = torch.cat([x[:, :start], piece], 1)  # noqa: B023
            found = model(read, mask=attend.causal_blocks(stop, size))[:, start:]
            wide = F.pad(found.float(), (0, 1), value=-torch.inf)
            return wide if sharpen is None else sharpen(wide)

        denoise, seen = denoiser(logits, mask_id=model.mask_id), slice(start, stop)
        options = {"mask_id": model.mask_id, "generator": g, "known": known[:, seen]}
        x = torch.cat([x[:, :start], sampler(denoise, schedule, x[:, seen], times, **options), x[:, stop:]], 1)
    return x


@pytest.mark.parametrize("sampler", [ancestral, remask, confidence])
@pytest.mark.parametrize("size", [1, 3, 12])
def test_remembered_blocks_give_what_reading_all_anew_gives(sampler, size: int):
    model, (x, known) = network(), partly_masked(5, 12)
    options = {"known": known, "sampler": sampler, "size": size}
    found = block_causal(model, Cosine(), x, TIMES, generator=generator(1), **options)
    assert torch.equal(found, anew(model, Cosine(), x, TIMES, g=generator(1), **options))
    assert torch.equal(found[known], x[known]) and (found < VOCAB).all()


def test_sharpened_blocks_give_what_reading_all_anew_gives():
    model, (x, known) = network(), partly_masked(5, 8)
    options = {"known": known, "sampler": ancestral, "size": 4}
    options["sharpen"] = lambda logits: sharpened(logits, temperature=0.5, top_k=3)
    found = block_causal(model, Linear(), x, TIMES, generator=generator(1), **options)
    assert torch.equal(found, anew(model, Linear(), x, TIMES, g=generator(1), **options))
    del options["sharpen"]
    assert not torch.equal(found, block_causal(model, Linear(), x, TIMES, generator=generator(1), **options))


def test_single_tokens_in_blocks_follow_the_law_that_their_objective_prices():
    model, states = network(3), torch.tensor(list(itertools.product(range(3), repeat=3)))
    law = (-Blocks(size=1).nats(model, states, 1, generator())).exp().detach().numpy()
    x = torch.full((20_000, 3), 3)
    x = block_causal(model, Linear(), x, torch.tensor([1.0, 0.0]), generator=generator(2), sampler=ancestral, size=1)
    seen = torch.bincount((x * torch.tensor([9, 3, 1])).sum(-1), minlength=27).numpy()
    assert stats.chisquare(seen, law / law.sum() * len(x)).pvalue > 1e-3


def test_a_text_of_three_times_the_length_is_filled_in_and_begins_as_the_short_one_does():
    model, length = network(), 8
    long = torch.full((4, 3 * length), VOCAB)
    options = {"sampler": ancestral, "size": 4}
    short = block_causal(model, Linear(), long[:, :length], TIMES, generator=generator(3), **options)
    found = block_causal(model, Linear(), long, TIMES, generator=generator(3), **options)
    assert (found < VOCAB).all() and torch.equal(found[:, :length], short)


def test_a_call_of_the_network_costs_one_block_however_long_the_text(monkeypatch: pytest.MonkeyPatch):
    model, widths = network(), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda x, *a, **k: widths.append(x.shape[1]) or forward(x, *a, **k))
    block_causal(model, Linear(), torch.full((2, 12), VOCAB), TIMES, generator=generator(), sampler=ancestral, size=4)
    assert set(widths) == {4} and len(widths) <= 3 * (3 + 1)  # three blocks, three steps and one to remember


def test_an_item_does_not_depend_on_the_batch_it_is_in():
    model, (x, known), seeds = network(), partly_masked(3, 12), [11, 22, 33]

    def sample(items: list[int]) -> Tensor:
        generators = [generator(seeds[i]) for i in items]
        options = {"known": known[items], "sampler": ancestral, "size": 3}
        return block_causal(model, Linear(), x[items], TIMES, generator=generators, **options)

    together = sample([0, 1, 2])
    assert all(torch.equal(sample([i])[0], together[i]) for i in range(3))


def test_blocks_of_one_follow_the_exact_joint_and_blocks_of_all_in_one_step_do_not():
    joint = Joint(vocab=3, length=3)
    masked = torch.full((20_000, 3), 3)
    options = {"mask_id": 3, "sampler": ancestral}
    step = torch.tensor([1.0, 0.0])
    one = block(joint, Linear(), masked, step, generator=generator(1), size=1, **options)
    assert joint.chi_square(one) > 1e-3
    whole = block(joint, Linear(), masked, step, generator=generator(1), size=3, **options)
    assert joint.chi_square(whole) < 1e-6


def test_a_window_over_the_last_tokens_gives_the_law_of_a_markov_chain():
    # a model of pairs slides over three tokens: p(a) p(b | a) p(c | b)
    pair = Joint(vocab=3, length=2, seed=4)
    p = pair.p.reshape(3, 3)
    given = p / p.sum(1, keepdim=True)
    law = torch.einsum("ab,bc->abc", p, given).flatten().numpy()
    x = block(
        pair, Linear(), torch.full((20_000, 3), 3), torch.tensor([1.0, 0.0]),
        mask_id=3, generator=generator(1), sampler=ancestral, size=1, window=2,
    )  # fmt: skip
    seen = torch.bincount((x * torch.tensor([9, 3, 1])).sum(-1), minlength=27).numpy()
    assert stats.chisquare(seen, law * len(x)).pvalue > 1e-3


@pytest.mark.parametrize(("size", "window"), [(2, 2), (2, 5), (3, 4), (4, 12), (4, 30), (2, None)])
def test_the_model_sees_a_window_that_ends_with_the_block_and_masks_behind_it(size: int, window: int | None):
    seen = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(x_t)
        return F.pad(torch.zeros(*x_t.shape, VOCAB), (0, 1), value=-torch.inf).log_softmax(-1)

    x = torch.full((2, 12), VOCAB)
    options = {"mask_id": VOCAB, "generator": generator(), "sampler": ancestral, "size": size, "window": window}
    out = block(denoise, Linear(), x, torch.tensor([1.0, 0.0]), **options)
    assert len(seen) == 12 // size and (out < VOCAB).all()
    for number, piece in enumerate(seen):
        start = number * size
        stop = start + size
        first = max(0, stop - (window or 12))
        width = min(window or 12, 12)
        expected = torch.cat([out[:, first:start], torch.full((2, width), VOCAB)], 1)[:, :width]
        assert torch.equal(piece, expected)


@pytest.mark.parametrize("window", [None, 3, 6])
def test_known_tokens_never_change_in_whatever_block_they_stand(window: int | None):
    joint = Joint(vocab=VOCAB, length=3)
    x, known = partly_masked(40, 12)
    x[0, 0], known[0, 0] = VOCAB, True  # even a mask

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return joint(x_t[:, -3:]).repeat(1, 4, 1)[:, -x_t.shape[1] :]

    options = {"mask_id": VOCAB, "generator": generator(), "sampler": confidence, "size": 3, "window": window}
    out = block(denoise, Linear(), x, TIMES, known=known, **options)
    assert torch.equal(out[known], x[known]) and (out[~known] < VOCAB).all()


def test_sizes_that_do_not_fit_are_named():
    x = torch.full((1, 10), VOCAB)
    options = {"generator": generator(), "sampler": ancestral}
    for sample in (lambda: block(None, Linear(), x, TIMES, mask_id=VOCAB, size=4, **options),
                   lambda: block_causal(network(), Linear(), x, TIMES, size=4, **options)):  # fmt: skip
        with pytest.raises(ValueError, match="blocks of 4 do not divide a length of 10"):
            sample()
    with pytest.raises(ValueError, match="blocks of 5 tokens do not fit a window of 4"):
        block(None, Linear(), x, TIMES, mask_id=VOCAB, size=5, window=4, **options)
