import math
from itertools import islice

import numpy as np
import pytest
import torch

from discrete.autoregressive import next_token_nll
from discrete.objective import Autoregressive, Blocks, Masked
from discrete.text_model import TextTransformer, TextTransformerConfig
from pipelines.errors import DataError
from pipelines.text.corpus import TokenText, Windows, tokenise
from pipelines.text.detokenise import detokenise
from pipelines.text.likelihood import BATCH, cost
from tokenizer.plain import PlainTokenizer

TEXT = "an ant at a tan mat,\nnaïve and tame: 日本 meant a matte tint.\n" * 4
LENGTH = 8


def network(vocab: int) -> TextTransformer:
    torch.manual_seed(0)
    model = TextTransformer(TextTransformerConfig(dim=8, layers=1, heads=2), vocab)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return model.double().eval()  # float64 is not touched by autocast


def corpus(unit: str = "characters") -> tuple[PlainTokenizer, TokenText]:
    tokenizer = PlainTokenizer.train(TEXT, unit, 270 if unit == "bpe" else None)  # type: ignore[arg-type]
    return tokenizer, tokenise(tokenizer, TEXT)


def windows(n: int = 103, length: int = LENGTH, seed: int = 5) -> Windows:
    return Windows(torch.arange(n, dtype=torch.int32), length, seed)


@pytest.mark.parametrize("n", [16, 17, 23, 24, 103])
def test_an_epoch_is_made_of_windows_that_do_not_overlap_and_leaves_out_two_at_most(n: int):
    stream = windows(n)
    starts = set()
    for epoch in range(6):
        rows = torch.stack([stream[epoch * len(stream) + i] for i in range(len(stream))])
        assert rows.dtype == torch.int64 and (rows == rows[:, :1] + torch.arange(LENGTH)).all()
        assert len(rows.unique()) == rows.numel() > n - 2 * LENGTH
        starts.add(int(rows.min()))
    assert len(starts) > 1  # epochs are cut at other offsets


def test_epochs_have_other_orders_and_the_stream_is_a_function_of_seed_and_cursor():
    stream, again, other = windows(), windows(), windows(seed=6)
    positions = range(4 * len(stream))
    assert all(torch.equal(stream[i], again[i]) for i in reversed(positions))
    assert any(not torch.equal(stream[i], other[i]) for i in positions)
    order = [[int(stream[epoch * len(stream) + i][0]) for i in range(len(stream))] for epoch in range(3)]
    ranks = [np.argsort(row).tolist() for row in order]
    assert ranks[0] != ranks[1] != ranks[2]


def test_over_many_epochs_tokens_are_read_alike_but_for_the_ends():
    stream = windows(103)
    seen = torch.zeros(103)
    epochs = 300
    for i in range(epochs * len(stream)):
        seen[stream[i]] += 1
    spare = 103 - LENGTH * len(stream)  # the offset of an epoch is 0 .. spare
    assert (seen[spare : 103 - spare] == epochs).all() and seen.min() > 0


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_a_batch_without_overlap_in_any_number(world: int):
    stream, batches = windows(), 5
    one = list(islice(stream.batches(3, 8, 0, 1), batches))
    parts = [list(islice(stream.batches(3, 8, rank, world), batches)) for rank in range(world)]
    for step, (batch, cursor) in enumerate(one):
        assert cursor == 3 + 8 * (step + 1) and all(part[step][1] == cursor for part in parts)
        assert torch.equal(torch.cat([part[step][0]["x"] for part in parts]), batch["x"])
        assert torch.equal(batch["x"], torch.stack([stream[cursor - 8 + i] for i in range(8)]))


def test_resuming_from_a_cursor_goes_on_where_the_stream_stopped():
    whole = list(islice(windows().batches(0, 4, 1, 2), 20))
    resumed = list(islice(windows().batches(whole[6][1], 4, 1, 2), 13))
    for (a, cursor_a), (b, cursor_b) in zip(whole[7:], resumed, strict=True):
        assert torch.equal(a["x"], b["x"]) and cursor_a == cursor_b


def test_a_text_of_less_than_two_windows_and_a_batch_that_does_not_divide_are_refused():
    with pytest.raises(DataError, match="15 tokens, which is less than two windows of 8"):
        windows(15)
    with pytest.raises(DataError, match="batch of 7 does not divide over 2"):
        next(windows().batches(0, 7, 0, 2))


@pytest.mark.parametrize("unit", ["characters", "bpe"])
@pytest.mark.parametrize("length", [1, 7, 64, 10_000])
def test_windows_part_a_text_and_its_counts(unit: str, length: int):
    tokenizer, text = corpus(unit)
    parts = list(text.windows(length))
    assert [len(part.ids) for part in parts[:-1]] == [length] * (len(parts) - 1) and 0 < len(parts[-1].ids) <= length
    assert torch.equal(torch.cat([part.ids for part in parts]), text.ids)
    assert sum(int(part.characters.sum()) for part in parts) == len(TEXT)
    assert sum(int(part.bytes.sum()) for part in parts) == len(TEXT.encode())
    first = text.cut(length)
    assert len(first.ids) == len(first.characters) == len(first.bytes) == min(length, len(text.ids))
    assert TEXT[: int(first.characters.sum())].startswith(tokenizer.decode(first.ids.numpy()).rstrip("\ufffd"))


@pytest.mark.parametrize(
    ("raw", "written"),
    [
        (" = Robert Boulter = \n", "= Robert Boulter =\n"),
        (" = = Career = = \n", "= = Career = =\n"),
        (" 1 @,@ 000 and 2 @.@ 5 , well @-@ known . \n", "1,000 and 2.5, well-known.\n"),
        ("He did n't say it 's so ; they 'll , I 'm , we 've .", "He didn't say it's so; they'll, I'm, we've."),
        ("a film ( 2004 ) [ sic ]", "a film (2004) [sic]"),
        ('It was " very good " , he said : yes !', 'It was "very good", he said: yes!'),
        ('" one " and " two "', '"one" and "two"'),
        ("the boys ' toys cost $ 5 or £ 6 ?", "the boys' toys cost $5 or £6?"),
        ("a <unk> of 50 % \n \n next \n", "a <unk> of 50%\n\nnext\n"),
        ("nothing to do here.\n", "nothing to do here.\n"),
    ],
)
def test_wikitext_is_written_as_people_write_it(raw: str, written: str):
    assert detokenise(raw, "wikitext") == written
    assert detokenise(raw, "none") == raw


@pytest.mark.parametrize("unit", ["characters", "bpe"])
@pytest.mark.parametrize("objective", [Autoregressive(), Masked(), Blocks(size=1)])
@pytest.mark.parametrize("length", [9, 16, 10_000])
def test_a_cost_counts_every_token_character_and_byte_of_the_text_once(unit: str, objective, length: int):
    tokenizer, text = corpus(unit)
    found = cost(network(tokenizer.vocab_size), objective, text, length, draws=1)
    count = -(-len(text.ids) // length)
    assert found.nats.shape == (count, 1) and torch.isfinite(found.nats).all()
    assert int(found.tokens.sum()) == len(text.ids)
    assert int(found.characters.sum()) == len(TEXT) and int(found.bytes.sum()) == len(TEXT.encode())
    assert found.tokens.tolist()[:-1] == [length] * (count - 1)


@pytest.mark.parametrize("length", [1, 3, 16])
def test_an_autoregressive_cost_is_the_sum_over_windows_read_one_by_one(length: int):
    tokenizer, text = corpus()
    model = network(tokenizer.vocab_size)
    found = cost(model, Autoregressive(), text, length, draws=1)
    assert length > 1 or len(found.tokens) > 2 * BATCH  # more than one batch
    ids = text.ids.long()
    rows = [next_token_nll(model, ids[None, i : i + length]).double().sum() for i in range(0, len(ids), length)]
    torch.testing.assert_close(found.nats[:, 0], torch.stack(rows).detach(), rtol=1e-6, atol=1e-6)
    total = torch.stack(rows).sum().item()
    assert found.nats_per_token == pytest.approx(total / len(ids))
    assert found.bits_per_character == pytest.approx(total / math.log(2) / len(TEXT))


@pytest.mark.parametrize("count", [BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 1])
def test_no_window_is_lost_between_batches(count: int):
    tokenizer, _ = corpus()
    text = tokenise(tokenizer, 2 * TEXT)
    for kept in (2 * count, 2 * count + 1):
        found = cost(network(tokenizer.vocab_size), Masked(), text.cut(kept), 2, draws=1)
        assert len(found.nats) == len(found.tokens) == -(-kept // 2)


def test_bits_are_counted_per_character_of_the_text_and_not_per_token():
    tokenizer, text = corpus("bpe")
    found = cost(network(tokenizer.vocab_size), Autoregressive(), text, 16, draws=1)
    bits = found.nats.sum().item() / math.log(2)
    assert len(text.ids) != len(TEXT)
    assert found.bits_per_character == pytest.approx(bits / len(TEXT))
    assert found.nats_per_token == pytest.approx(found.nats.sum().item() / len(text.ids))


def test_a_network_that_knows_nothing_costs_the_logarithm_of_its_vocabulary():
    tokenizer, text = corpus()
    model = network(tokenizer.vocab_size)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    for objective in (Autoregressive(), Masked(), Blocks(size=4)):
        found = cost(model, objective, text, 16, draws=3)
        assert found.nats_per_token == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-6)
    bits = math.log2(tokenizer.vocab_size)
    assert cost(model, Autoregressive(), text, 16, draws=1).bits_per_character == pytest.approx(bits, rel=1e-6)


def test_repeats_are_estimates_of_their_own_for_a_bound_and_the_same_for_an_exact_cost():
    tokenizer, text = corpus()
    model = network(tokenizer.vocab_size)
    masked = cost(model, Masked(), text, 16, draws=2, repeats=3)
    assert masked.nats.shape[1] == 3
    assert all((masked.nats[:, a] != masked.nats[:, b]).all() for a, b in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(masked.nats, cost(model, Masked(), text, 16, draws=2, repeats=3).nats)
    assert torch.equal(masked.nats[:, :1], cost(model, Masked(), text, 16, draws=2).nats)
    assert not torch.equal(masked.nats[:, :1], cost(model, Masked(), text, 16, draws=2, seed=9).nats)
    exact = cost(model, Autoregressive(), text, 16, draws=2, repeats=3).nats
    assert torch.equal(exact, exact[:, :1].expand(-1, 3))


def test_a_last_window_of_broken_blocks_is_cut_and_its_rest_not_counted():
    tokenizer, text = corpus()
    model = network(tokenizer.vocab_size)
    for kept, length in ((39, 16), (34, 16), (32, 16)):
        found = cost(model, Blocks(size=4), text.cut(kept), length, draws=1)
        counted = kept - kept % 4
        assert int(found.tokens.sum()) == counted and int(found.characters.sum()) == counted
        assert int(found.bytes.sum()) == len(TEXT[:counted].encode())
