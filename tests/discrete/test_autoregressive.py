import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from discrete.attend import causal
from discrete.autoregressive import continue_text, next_token_nll, shifted
from discrete.predict import sharpened
from discrete.text_model import PerDocument, TextTransformer, TextTransformerConfig

VOCAB, LENGTH = 3, 4
STATES = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))


def network(vocab: int = VOCAB, **options) -> TextTransformer:
    torch.manual_seed(0)
    model = TextTransformer(TextTransformerConfig(dim=16, layers=2, heads=2, **options), vocab)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chi_square(x: Tensor, law: np.ndarray) -> float:
    base = VOCAB ** torch.arange(x.shape[1] - 1, -1, -1)
    seen = np.bincount((x * base).sum(-1), minlength=len(law))
    assert seen[law == 0].sum() == 0
    return float(stats.chisquare(seen[law > 0], law[law > 0] * len(x)).pvalue)


def uncached(model: TextTransformer, prompt: Tensor, length: int, g, sharpen=None) -> Tensor:
    """Read all anew for every token; draw by the inverse distribution function in numpy."""
    x = prompt
    while x.shape[1] < length:
        read = torch.cat([torch.full_like(x[:, :1], model.mask_id), x], 1) if x.shape[1] else start(model, len(x))
        logits = model(read, torch.tensor(0.0), mask=causal(read.shape[1]))[:, -1]
        logits = logits if sharpen is None else sharpen(logits)
        mass = np.cumsum(np.exp(logits.detach().double().numpy()), -1)
        u = torch.rand(len(x), 1, generator=g, dtype=torch.float64).numpy()
        x = torch.cat([x, torch.tensor((mass <= u * mass[:, -1:]).sum(-1))[:, None]], 1)
    return x


def start(model: TextTransformer, batch: int) -> Tensor:
    return torch.full((batch, 1), model.mask_id)


NONE = torch.zeros(20_000, 0, dtype=torch.int64)


@pytest.mark.parametrize("time", [False, True])
def test_costs_of_all_texts_are_those_of_one_probability_distribution(time: bool):
    nll = next_token_nll(network(time=time), STATES)
    assert nll.shape == STATES.shape and nll.dtype == torch.float32
    assert (-nll.double().sum(-1)).exp().sum().item() == pytest.approx(1, abs=1e-5)
    for n in range(1, LENGTH):  # and so are those of all their beginnings
        assert (-nll[:, :n].double().sum(-1)).exp().sum().item() == pytest.approx(VOCAB ** (LENGTH - n), rel=1e-5)


def test_each_token_costs_its_softmax_read_from_the_text_before_it_alone():
    model, x = network(VOCAB + 4), torch.randint(0, VOCAB + 4, (5, 7), generator=generator())
    nll = next_token_nll(model, x).detach().numpy()
    for i in range(7):
        logits = model(torch.cat([start(model, 5), x[:, :i]], 1), mask=causal(i + 1))[:, -1].detach().double().numpy()
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(nll[:, i], -np.log(p[np.arange(5), x[:, i]]), atol=1e-5)


def test_the_network_reads_a_start_and_never_the_last_token():
    assert shifted(network(), torch.tensor([[0, 1, 2], [2, 2, 1]])).tolist() == [[3, 0, 1], [3, 2, 2]]


def test_packed_documents_cost_what_each_costs_alone():
    model, end = network(VOCAB + 1), VOCAB
    first, second = torch.tensor([[0, 2, 1, end]]), torch.tensor([[1, 1, end]])
    both = torch.cat([first, second], 1)
    packed = next_token_nll(PerDocument.of(model, both, end), both)
    alone = torch.cat([next_token_nll(model, first), next_token_nll(model, second)], 1)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(next_token_nll(model, torch.cat([first, second], 1)), alone, atol=1e-3)


def test_drawn_texts_follow_the_law_of_their_costs():
    model = network()
    law = (-next_token_nll(model, STATES).double().sum(-1)).exp().detach().numpy()
    x = continue_text(model, NONE, LENGTH, generator=generator(1))
    assert chi_square(x, law / law.sum()) > 1e-3
    wrong = np.roll(law, 1) / law.sum()
    assert chi_square(x, wrong) < 1e-6


def test_continuations_follow_the_law_given_the_prompt_and_keep_it():
    model, prompt = network(), torch.tensor([2, 0])
    law = (-next_token_nll(model, STATES).double().sum(-1)).exp().detach()
    law = torch.where((STATES[:, :2] == prompt).all(-1), law, 0).numpy()
    x = continue_text(model, prompt.expand(20_000, 2), LENGTH, generator=generator(2))
    assert torch.equal(x[:, :2], prompt.expand(20_000, 2))
    assert chi_square(x, law / law.sum()) > 1e-3


@pytest.mark.parametrize("sharpen", [None, lambda logits: sharpened(logits, temperature=0.7, top_k=4, top_p=0.9)])
@pytest.mark.parametrize("prompt", [0, 1, 5])
def test_remembered_keys_give_what_reading_all_anew_gives(prompt: int, sharpen):
    model = network(9).double()
    given = torch.randint(0, 9, (6, prompt), generator=generator(3))
    found = continue_text(model, given, 20, generator=generator(4), sharpen=sharpen)
    assert torch.equal(found, uncached(model, given, 20, generator(4), sharpen))


def test_an_item_does_not_depend_on_the_batch_it_is_in():
    model, prompts, seeds = network(), torch.tensor([[0, 1], [2, 2], [1, 0]]), [11, 22, 33]

    def sample(items: list[int]) -> Tensor:
        return continue_text(model, prompts[items], 12, generator=[generator(seeds[i]) for i in items])

    together = sample([0, 1, 2])
    assert all(torch.equal(sample([i])[0], together[i]) for i in range(3))
    assert torch.equal(sample([2, 0]), together[[2, 0]])


def test_the_same_seed_repeats_and_a_full_prompt_is_the_text():
    model = network()
    first, again, other = (continue_text(model, NONE[:20], 6, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(continue_text(model, first, 6, generator=generator()), first)


def test_a_prompt_longer_than_the_text_is_refused_with_both_lengths():
    with pytest.raises(ValueError, match=r"prompt has 4 tokens.* to have 3"):
        continue_text(network(), STATES[:2], 3, generator=generator())
