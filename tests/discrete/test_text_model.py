from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from backbone import attention, block
from discrete.attend import causal, causal_blocks, documents
from discrete.text_model import PerDocument, TextTransformer, TextTransformerConfig

VOCAB, END = 11, 10


def network(**options) -> TextTransformer:
    torch.manual_seed(0)
    model = TextTransformer(TextTransformerConfig(**{"dim": 16, "layers": 2, "heads": 2} | options), VOCAB)
    for p in model.parameters():  # blocks start as the identity; make every path count
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def tokens(batch: int = 3, length: int = 12) -> Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def test_causal_logits_are_bitwise_deaf_to_later_tokens_and_hear_earlier_ones():
    model, x = network(), tokens()
    logits = model(x, mask=causal(12))
    for i in range(12):
        changed = x.clone()
        changed[:, i] = (x[:, i] + 1) % VOCAB
        other = model(changed, mask=causal(12))
        assert torch.equal(other[:, :i], logits[:, :i])
        assert (other[:, i:] != logits[:, i:]).any(-1).all()


def test_without_a_mask_every_position_reads_every_other_one():
    model, x = network(), tokens(1)
    for i in range(12):
        changed = x.clone()
        changed[:, i] = (x[:, i] + 1) % VOCAB
        assert (model(changed) != model(x)).any(-1).all()


@pytest.mark.parametrize("cuts", [[0, 1, 2, 12], [0, 5, 12], [0, 11, 12]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pieces_read_with_memory_give_what_the_whole_gives(cuts: list[int], dtype: torch.dtype):
    model, x = network().to(dtype), tokens()
    memory = model.memories()
    pieces = []
    for start, stop in pairwise(cuts):
        mask = causal(stop)[start:]
        pieces.append(model(x[:, start:stop], mask=mask, memory=memory))
        assert len(memory[0]) == stop
    torch.testing.assert_close(torch.cat(pieces, 1), model(x, mask=causal(12)), atol=1e-5, rtol=1e-5)


def test_a_piece_read_without_keep_leaves_no_trace():
    model, x = network(), tokens()
    memory = model.memories()
    model(x[:, :4], mask=causal_blocks(4, 4), memory=memory)
    for wrong in (x[:, :4].flip(1), x[:, 5:9]):
        for one in memory:
            one.keep = False
        seen = model(wrong, memory=memory)
        whole = model(torch.cat([x[:, :4], wrong], 1), mask=causal_blocks(8, 4))
        torch.testing.assert_close(seen, whole[:, 4:], atol=1e-5, rtol=1e-5)
        assert [len(one) for one in memory] == [4, 4]
    for one in memory:
        one.keep = True
    torch.testing.assert_close(
        model(x[:, 4:8], memory=memory), model(x[:, :8], mask=causal_blocks(8, 4))[:, 4:], atol=1e-5, rtol=1e-5
    )
    assert [len(one) for one in memory] == [8, 8]


@pytest.mark.parametrize("order", [lambda n: torch.ones(n, n, dtype=torch.bool), causal])
def test_a_packed_document_gives_the_logits_it_gives_alone(order):
    model, g = network(), torch.Generator().manual_seed(2)
    parts = [torch.randint(0, END, (1, n), generator=g) for n in (4, 1, 6)]
    parts = [F.pad(part, (0, 1), value=END) for part in parts]
    packed = torch.cat(parts, 1)
    together = model(packed, mask=documents(packed, END) & order(packed.shape[1]))
    alone = torch.cat([model(part, mask=order(part.shape[1])) for part in parts], 1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(packed, mask=order(packed.shape[1])), alone, atol=1e-2)


@pytest.mark.parametrize("order", [None, causal(13)])
@pytest.mark.parametrize(("copies", "halves"), [(1, 1), (3, 1), (2, 2)])
def test_documents_stay_apart_in_every_masking_of_a_packed_batch(order, copies: int, halves: int):
    model, g = network(), torch.Generator().manual_seed(3)
    x = torch.randint(0, END, (2, 13), generator=g)
    x[0, [3, 4, 9]], x[1, 6] = END, END
    x_t = torch.where(torch.rand(2 * copies, 13 * halves, generator=g) < 0.5, model.mask_id, x.repeat(copies, halves))
    mask = None if order is None else order.repeat(halves, halves)
    places = torch.arange(13).repeat(halves)
    together = PerDocument.of(model, x, END)(x_t, mask=mask, positions=places)
    for row in range(2 * copies):
        cuts = [0, *((x[row % 2] == END).nonzero()[:, 0] + 1).tolist(), 13]
        for start, stop in pairwise(cuts):
            own = torch.cat([torch.arange(start, stop) + 13 * half for half in range(halves)])
            within = None if mask is None else mask[own][:, own]
            alone = model(x_t[row : row + 1, own], mask=within, positions=places[own])
            torch.testing.assert_close(together[row : row + 1, own], alone, atol=1e-5, rtol=1e-5)


def test_logits_depend_on_distances_and_not_on_where_a_text_starts():
    model, x = network(), tokens()
    torch.testing.assert_close(model(x, positions=torch.arange(12) + 1000), model(x), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model(x, positions=torch.arange(12) * 2), model(x), atol=1e-2)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(model(x[:, order], positions=order), model(x)[:, order], atol=1e-5, rtol=1e-5)


def test_time_is_read_only_where_asked():
    x, early, late = tokens(), torch.tensor(0.1), torch.tensor([0.1, 0.9, 0.9])
    assert torch.equal(network()(x, early), network()(x, late)) and torch.equal(network()(x), network()(x, late))
    timed = network(time=True)
    a, b = timed(x, early), timed(x, late)
    torch.testing.assert_close(a[0], b[0])
    assert not torch.allclose(a[1:], b[1:])
    with pytest.raises(ValueError, match="give it t"):
        timed(x)


def test_an_embedding_is_trained_as_what_is_read_and_as_what_is_predicted():
    model, x = network(), tokens(1, 6) % 4  # tokens 0 to 3 are read
    model(x).square().sum().backward()
    both = model.tokens.weight.grad.clone()
    model.zero_grad()
    F.linear(model.states(x), model.tokens.weight[:VOCAB].detach(), model.bias).square().sum().backward()
    read = model.tokens.weight.grad.clone()
    model.zero_grad()
    F.linear(model.states(x).detach(), model.tokens.weight[:VOCAB], model.bias).square().sum().backward()
    predicted = model.tokens.weight.grad
    torch.testing.assert_close(both, read + predicted, atol=1e-3, rtol=1e-4)
    assert read.any(-1).nonzero().flatten().tolist() == x.unique().tolist()
    assert predicted.any(-1).tolist() == [True] * VOCAB + [False]  # the mask is never predicted


def test_the_mask_alone_is_forbidden_in_the_wide_logits():
    model, x = network(), tokens()
    wide = model.logits(x)
    assert wide.shape == (3, 12, VOCAB + 1) and wide.dtype == torch.float32
    assert torch.isneginf(wide[..., model.mask_id]).all()
    torch.testing.assert_close(wide[..., :VOCAB], model(x))


def test_a_new_network_scores_a_token_by_its_own_embedding_alone():
    model, x = TextTransformer(TextTransformerConfig(dim=16, heads=2), VOCAB), tokens()
    e = model.tokens.weight.detach()
    scale = (e[x].square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    torch.testing.assert_close(model(x), (e[x] * scale) @ e[:VOCAB].T)


def test_any_length_can_be_read_also_beyond_the_switch_of_attention_backends():
    model, x = network(), tokens(1, 300)
    long = model(x, mask=causal(300))
    assert long.shape == (1, 300, VOCAB) and torch.isfinite(long).all()
    torch.testing.assert_close(model(x[:, :200], mask=causal(200)), long[:, :200], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", attention.available())
def test_a_packed_text_reads_alike_over_the_attention_backends(backend: str, monkeypatch: pytest.MonkeyPatch):
    model, x = network(), tokens(3, 40)
    mask = documents(x, END) & causal(40)

    def chosen(*inputs: Tensor) -> Tensor:
        return attention.attention(*inputs, backend=backend)

    default = model(x, mask=mask)
    monkeypatch.setattr(block, "attention", chosen)
    device = "cuda" if backend == "xformers" else "cpu"
    found = model.to(device)(x.to(device), mask=mask.to(device))
    torch.testing.assert_close(found.cpu(), default, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"dim": 0}, "dim is 0"), ({"layers": -1}, "layers is -1"), ({"dim": 16, "heads": 3}, "dim 16 over 3 heads"),
     ({"dim": 6, "heads": 2}, "even number")],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_named(options: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        TextTransformerConfig(**options)


def test_scores_of_their_own_start_without_an_opinion_and_reach_every_reader():
    fresh = TextTransformer(TextTransformerConfig(dim=16, layers=2, heads=2, tied=False), VOCAB)
    tied = TextTransformer(TextTransformerConfig(dim=16, layers=2, heads=2), VOCAB)
    x = tokens()
    assert not fresh(x).any()
    repeated = tied(x).argmax(-1) == x  # blocks start as the identity: a tied network repeats what it reads
    assert repeated.float().mean() > 0.9
    model = network(tied=False)
    narrow, wide = model(x), model.logits(x)
    torch.testing.assert_close(wide[..., :VOCAB], narrow, atol=1e-5, rtol=1e-5)
    assert wide[..., VOCAB].isneginf().all()
    torch.testing.assert_close(model.score(model.states(x)), narrow)
    assert model.head is not None and not torch.equal(narrow, F.linear(model.states(x), model.tokens.weight[:VOCAB]))
