"""Byte-pair encoding: an inverse on normalised text, whatever the text."""

import hashlib
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.text import BPE, SMALLEST

WORDS = ("red", "blue", "star", "ring", "above", "left", "background")
CAPTIONS = [
    f"a large {colour} {shape} on a {place} background" for colour in WORDS for shape in WORDS for place in WORDS
]
LENGTH = 16


@pytest.fixture(scope="module")
def bpe() -> BPE:
    return BPE.train(CAPTIONS, 1024, LENGTH)


def test_words_of_a_small_grammar_are_single_tokens_wherever_they_stand(bpe):
    for text in (*WORDS, *(f"{a} {b}" for a in WORDS for b in WORDS)):
        assert bpe.encode([text]).lengths.item() == len(text.split()) + 1


def test_row_is_tokens_then_one_end_then_padding(bpe):
    tokens, lengths, truncated = bpe.encode(["a red star", "", "a large blue ring on a red background"])
    assert tokens.shape == (3, LENGTH) and tokens.dtype == torch.int64
    assert lengths.tolist() == [4, 1, 9] and not truncated.any()
    for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        assert row.index(bpe.end_id) == length - 1
        assert set(row[length:]) <= {bpe.pad_id} and bpe.pad_id not in row[:length]


def test_mask_covers_the_caption_and_its_end_token(bpe):
    encoded = bpe.encode(["a red star", ""])
    torch.testing.assert_close(encoded.mask, encoded.tokens != bpe.pad_id)


def test_case_spacing_and_compatibility_forms_do_not_matter(bpe):
    forms = ["a red star", "  A  Red\tSTAR\n", "a red star", "a red ｓｔａｒ"]
    assert len(torch.unique(bpe.encode(forms).tokens, dim=0)) == 1


HOSTILE = [
    "<end>",
    "<pad><end> a",
    "\x00\x01",
    "\ud800 lone",
    "🙂👩‍👩‍👧",
    "İstanbul ﷽",
    "‮rtl",
    "'; DROP TABLE--",
    "  ",
    "a\u0300\u0301",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_decode_inverts_encode_on_hostile_text(bpe, text):
    long = BPE.train(CAPTIONS, 1024, 128)
    encoded = long.encode([text])
    assert not encoded.truncated.any()
    assert (encoded.tokens == long.end_id).sum() == 1
    assert long.decode(encoded.tokens) == [long.normalise(text)]


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_decode_inverts_encode_on_any_text(text):
    assert LONG.decode(LONG.encode([text]).tokens) == [LONG.normalise(text)]


LONG = BPE.train(CAPTIONS, 512, 1024)


def test_ten_thousand_characters_are_cut_counted_and_fast(bpe):
    start = time.perf_counter()
    encoded = bpe.encode(["a red star " * 910, "x" * 10_000, "a red star", "é " * 5_000])
    assert time.perf_counter() - start < 2
    assert encoded.truncated.tolist() == [True, True, False, True]
    assert encoded.lengths.tolist() == [LENGTH, LENGTH, 4, LENGTH]
    assert (encoded.tokens[[0, 1, 3], -1] == bpe.end_id).all()


def test_caption_that_just_fits_is_not_truncated(bpe):
    encoded = bpe.encode(["red " * (LENGTH - 1), "red " * LENGTH])
    assert encoded.truncated.tolist() == [False, True]
    torch.testing.assert_close(encoded.tokens[0], encoded.tokens[1])


def test_prompts_with_equal_first_fifty_characters_differ():
    head = "a large red star on a blue background left of a ring "
    assert len(head) >= 50
    tokens = LONG.encode([head + "red", head + "blue"]).tokens
    assert not torch.equal(tokens[0], tokens[1])


def test_saved_tokenizer_is_the_same_tokenizer(bpe, tmp_path):
    bpe.save(tmp_path / "bpe.json")
    again = BPE.load(tmp_path / "bpe.json")
    assert (again.hash, again.length, again.vocab_size) == (bpe.hash, bpe.length, bpe.vocab_size)
    texts = [*CAPTIONS[:20], *HOSTILE]
    assert torch.equal(again.encode(texts).tokens, bpe.encode(texts).tokens)
    assert bpe.hash == hashlib.sha256((tmp_path / "bpe.json").read_bytes()).hexdigest()


def test_training_repeats_and_other_captions_give_another_hash(bpe):
    assert BPE.train(CAPTIONS, 1024, LENGTH).hash == bpe.hash
    assert BPE.train(CAPTIONS[:30], 1024, LENGTH).hash != bpe.hash
    assert BPE.train(CAPTIONS, 1024, LENGTH + 1).hash != bpe.hash


def test_no_captions_at_encode_give_no_rows(bpe):
    assert bpe.encode([]).tokens.shape == (0, LENGTH)
    assert bpe.decode(torch.empty(0, LENGTH, dtype=torch.int64)) == []


@pytest.mark.parametrize(
    ("captions", "vocab_size", "length", "words"),
    [
        (CAPTIONS, SMALLEST - 1, 16, "at least 258"),
        (CAPTIONS, 512, 1, "length is 1"),
        ([], 512, 16, "check that the captions are there"),
        (["", "  "], 512, 16, "check that the captions are there"),
    ],
)
def test_impossible_training_is_refused_in_a_sentence(captions, vocab_size, length, words):
    with pytest.raises(ValueError, match=words):
        BPE.train(captions, vocab_size, length)


def test_missing_broken_and_foreign_files_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="train the text tokenizer first"):
        BPE.load(tmp_path / "no.json")
    (tmp_path / "half.json").write_text(LONG.json()[:200], encoding="utf-8")
    with pytest.raises(ValueError, match="is not a tokenizers JSON"):
        BPE.load(tmp_path / "half.json")
    foreign = LONG.json().replace("<end>", "</s>")
    (tmp_path / "foreign.json").write_text(foreign, encoding="utf-8")
    with pytest.raises(ValueError, match="was not written by"):
        BPE.load(tmp_path / "foreign.json")
