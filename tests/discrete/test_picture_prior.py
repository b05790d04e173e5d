import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from discrete.layout import Layout
from discrete.picture_prior import (
    PicturePrior,
    PicturePriorConfig,
    SpanNats,
    draw_codes,
    losses,
    next_token_nll,
    shifted,
)
from discrete.predict import sharpened, sharpener
from discrete.spans import SpanLogits

TINY = Layout(text_length=2, text_vocab=3, sides=(2,), image_vocabs=(2,))
WIDE = Layout(text_length=4, text_vocab=7, sides=(3, 3), image_vocabs=(5, 6))
TEXTS = torch.tensor(list(itertools.product(range(3), repeat=2)))
CODES = torch.tensor(list(itertools.product(range(2), repeat=4)))
PAIRS = torch.stack([TINY.join(t[None], c[None])[0] for t in TEXTS for c in CODES])


def prior(layout: Layout = TINY, std: float = 0.3, **options) -> PicturePrior:
    torch.manual_seed(0)
    network = PicturePrior(PicturePriorConfig(dim=16, layers=2, heads=2, **options), layout)
    for p in network.parameters():  # blocks start as the identity; make every path count
        torch.nn.init.normal_(p, std=std)
    return network.double().eval().requires_grad_(False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(layout: Layout, batch: int, seed: int = 1) -> Tensor:
    g = generator(seed)
    text = torch.randint(0, layout.text_vocab, (batch, layout.text_length), generator=g)
    codes = [(grid.codes.start, grid.codes.stop, (batch, grid.side**2)) for grid in layout.grids]
    parts = [torch.randint(*each, generator=g) for each in codes]
    return layout.join(text, torch.cat(parts, 1))


def log_likelihood(network: PicturePrior, x: Tensor, layout: Layout) -> Tensor:
    """log p(codes | text) of each sequence, (B,) float64."""
    return -next_token_nll(network, x, layout).image.double().sum(1)


def full_logits(network: PicturePrior, text: Tensor, codes: Tensor) -> Tensor:
    """Logits (B, K) of the code behind text (B, Lt) and codes (B, k), all of them read anew."""
    start = torch.full_like(text[:, :1], network.layout.mask_id)
    image = network(torch.cat([start, text, codes + network.layout.text_vocab], 1)).image
    assert image is not None
    return image[:, -1]


@pytest.mark.parametrize("layout", [TINY, WIDE], ids=["one grid", "two grids"])
def test_no_logit_heeds_a_later_token_and_every_one_heeds_all_before(layout: Layout):
    network, x = prior(layout), pairs(layout, 2)
    own = [layout.text_vocab if i < layout.text_length else layout.image_vocab for i in range(layout.length)]
    first = [0 if i < layout.text_length else layout.text_vocab for i in range(layout.length)]
    before = torch.cat([part.flatten(1) for part in network(shifted(x, layout)) if part is not None], 1)
    width = np.cumsum([0, *own])
    for i in range(layout.length):
        changed = x.clone()
        changed[:, i] = first[i] + (x[:, i] - first[i] + 1) % own[i]
        after = torch.cat([part.flatten(1) for part in network(shifted(changed, layout)) if part is not None], 1)
        assert torch.equal(after[:, : width[i + 1]], before[:, : width[i + 1]])
        heeded = (after != before) | before.isneginf()  # another grid's codes
        assert heeded[:, width[i + 1] :].all()


def test_probabilities_of_all_pairs_sum_to_one_and_so_do_those_of_all_pictures_of_a_text():
    text, image = next_token_nll(prior(), PAIRS, TINY)
    assert text.shape == (144, 2) and image.shape == (144, 4)
    assert (-(text.sum(1) + image.sum(1))).exp().sum().item() == pytest.approx(1, abs=1e-6)
    given = log_likelihood(prior(), PAIRS, TINY).exp().view(9, 16).sum(1)
    torch.testing.assert_close(given, torch.ones(9, dtype=torch.float64), atol=1e-6, rtol=0)


def test_each_place_is_scored_against_its_own_span_alone():
    network = PicturePrior(PicturePriorConfig(dim=16, layers=1, heads=2), WIDE)
    text, image = network(shifted(pairs(WIDE, 3), WIDE))
    assert text.shape == (3, 4, 7) and image is not None and image.shape == (3, 18, 11)


def test_likelihood_is_that_of_a_softmax_over_the_whole_vocabulary_without_the_other_span():
    network, x = prior(WIDE), pairs(WIDE, 3)
    expected = torch.zeros(3, dtype=torch.float64)
    for i in range(WIDE.length):
        hidden = network.norm(_states(network, shifted(x, WIDE)[:, : i + 1]))[:, -1]
        scores = hidden @ network.tokens.weight.T + torch.cat([network.bias, torch.zeros(1)])
        log_probs = scores.masked_fill(~WIDE.allowed()[i], -torch.inf).log_softmax(-1)
        expected += log_probs.gather(1, x[:, i : i + 1])[:, 0] * (i >= WIDE.text_length)
    torch.testing.assert_close(log_likelihood(network, x, WIDE), expected, rtol=1e-6, atol=1e-6)


def _states(network: PicturePrior, read: Tensor) -> Tensor:
    """Hidden states before the last norm, as the blocks leave them."""
    kept = []
    hook = network.blocks[-1].register_forward_hook(lambda _, __, out: kept.append(out))
    try:
        network(read)
    finally:
        hook.remove()
    return kept[0]


@pytest.mark.parametrize("scale", [1.0, 2.5, 0.0])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}])
def test_remembered_keys_draw_what_two_full_passes_draw(scale: float, options: dict):
    network, text = prior(WIDE), pairs(WIDE, 5)[:, WIDE.text]
    found = draw_codes(network, text, generator=generator(3), scale=scale, sharpen=sharpener(**options))
    g, codes = generator(3), torch.zeros(5, 0, dtype=torch.int64)
    for _ in range(WIDE.image_length):
        given = full_logits(network, text, codes)
        null = full_logits(network, torch.full_like(text, WIDE.mask_id), codes)
        guided = (null + scale * (given - null)).nan_to_num(-torch.inf, neginf=-torch.inf)  # -inf - -inf elsewhere
        logits = sharpened(guided, **options)
        mass = np.cumsum(np.exp(logits.numpy()), -1)
        u = torch.rand(5, 1, generator=g, dtype=torch.float64).numpy()
        codes = torch.cat([codes, torch.tensor((mass <= u * mass[:, -1:]).sum(-1))[:, None]], 1)
    assert torch.equal(found, codes)
    assert found.min() >= 0 and found.max() < WIDE.image_vocab


def test_drawn_codes_follow_the_enumerated_law_of_their_text():
    network, n = prior(std=0.5), 8_000
    for text in (TEXTS[1], TEXTS[6]):
        x = TINY.join(text.expand(16, 2), CODES)
        law = log_likelihood(network, x, TINY).exp().numpy()
        drawn = draw_codes(network, text.expand(n, 2), generator=generator(4))
        seen = np.bincount(drawn @ torch.tensor([8, 4, 2, 1]), minlength=16)
        assert stats.chisquare(seen, law / law.sum() * n).pvalue > 1e-3
        assert stats.chisquare(seen, np.roll(law, 1) / law.sum() * n).pvalue < 1e-6


def test_guidance_moves_the_odds_of_the_first_code_by_its_scale():
    network, text, n = prior(std=0.5), TEXTS[5].expand(4_000, 2), 4_000
    odds = [full_logits(network, shown, TINY.masked(n)[:, :0]).diff()[0].item()
            for shown in (text, torch.full_like(text, TINY.mask_id))]  # fmt: skip
    drawn = draw_codes(network, text, generator=generator(5), scale=3.0)[:, 0]
    p = 1 / (1 + math.exp(-(odds[1] + 3 * (odds[0] - odds[1]))))
    assert stats.binomtest(int(drawn.sum()), n, p).pvalue > 1e-3
    assert stats.binomtest(int(drawn.sum()), n, 1 / (1 + math.exp(-odds[0]))).pvalue < 1e-6


def test_a_picture_does_not_depend_on_the_batch_it_is_in():
    network, text, seeds = prior(WIDE), pairs(WIDE, 3)[:, WIDE.text], [11, 22, 33]

    def sample(items: list[int]) -> Tensor:
        return draw_codes(network, text[items], generator=[generator(seeds[i]) for i in items], scale=2.0)

    together = sample([0, 1, 2])
    assert all(torch.equal(sample([i])[0], together[i]) for i in range(3))
    assert torch.equal(sample([2, 0]), together[[2, 0]])


def test_a_hidden_text_is_read_as_masks_and_says_nothing_of_the_picture():
    network, x = prior(WIDE), pairs(WIDE, 2)
    hidden = torch.tensor([True, False])
    assert (shifted(x, WIDE, hidden)[0, :5] == WIDE.mask_id).all()
    assert torch.equal(shifted(x, WIDE, hidden)[1], shifted(x, WIDE)[1])
    other = x.clone()
    other[:, WIDE.text] = (x[:, WIDE.text] + 1) % 7
    first, second = (next_token_nll(network, one, WIDE, hidden).image for one in (x, other))
    assert torch.equal(first[0], second[0]) and not torch.allclose(first[1], second[1])


class Seen:
    """A network that is sure of nothing, and keeps what it read."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.read = layout, torch.zeros(0)

    def __call__(self, read: Tensor) -> SpanLogits:
        self.read, n = read, len(read)
        text = torch.zeros(n, self.layout.text_length, self.layout.text_vocab)
        return SpanLogits(text, torch.zeros(n, self.layout.image_length, self.layout.image_vocab))


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.7])
def test_a_text_is_kept_with_probability_one_less_dropout(dropout: float):
    x, network = pairs(TINY, 20_000), Seen(TINY)
    losses(network, x, TINY, text_weight=0.1, caption_dropout=dropout, generator=generator())
    kept = (network.read[:, 1:3] == x[:, TINY.text]).all(1)
    assert torch.equal(~kept, (network.read[:, 1:3] == TINY.mask_id).all(1))  # whole texts, never a part
    assert torch.equal(network.read[:, 3:], x[:, 2:-1])
    assert stats.binomtest(int(kept.sum()), len(x), 1 - dropout).pvalue > 1e-3


def test_the_loss_is_a_mean_over_items_of_image_and_weighted_text_costs_those_of_hidden_texts_left_out():
    network, x = prior(WIDE), pairs(WIDE, 40)
    total, image, text = losses(network, x, WIDE, text_weight=0.125, caption_dropout=0.5, generator=generator(2))
    hidden = torch.rand(40, generator=generator(2), dtype=torch.float64) < 0.5
    assert 0 < hidden.sum() < 40
    nats: SpanNats = next_token_nll(network, x, WIDE, hidden)
    assert image.item() == pytest.approx(nats.image.mean().item())
    assert text.item() == pytest.approx(nats.text[~hidden].sum().item() / (0.5 * nats.text.numel()))
    assert total.item() == pytest.approx(image.item() + 0.125 * text.item())
    sure = losses(network, x, WIDE, text_weight=0.5, caption_dropout=1 - 1e-12, generator=generator(2))
    assert sure.text.item() == 0 and sure.total.item() == sure.image.item()


def test_one_batch_can_be_learned_by_heart():
    torch.manual_seed(0)
    network, x = PicturePrior(PicturePriorConfig(dim=32, layers=1, heads=2), WIDE), pairs(WIDE, 4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(80):
        loss = losses(network, x, WIDE, text_weight=0.125, caption_dropout=0.0, generator=generator()).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = draw_codes(network.eval(), x[:, WIDE.text], generator=generator(1), sharpen=sharpener(temperature=1e-3))
    assert loss.item() < 0.4  # the first words alone cannot be known: ln 4 nats for 4 tokens, weighed by an eighth
    assert torch.equal(drawn, x[:, WIDE.image] - WIDE.text_vocab)


def test_more_tokens_than_the_layout_has_are_refused():
    x = pairs(TINY, 1)
    with pytest.raises(ValueError, match="7 tokens are read, expected at most 6"):
        prior()(torch.cat([x[:, :1], x], 1))
    with pytest.raises(ValueError, match="dim 16 over 3 heads"):
        PicturePriorConfig(dim=16, heads=3)
