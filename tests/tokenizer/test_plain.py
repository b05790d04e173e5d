from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.text.corpus import tokenise
from tokenizer import plain
from tokenizer.plain import SMALLEST, UNKNOWN, PlainTokenizer

TEXT = "The old stories are gone.\n\nÆther, naïve, 日本語 and 👩‍👩‍👧 remain:\r\n\ttwo  spaces, don't they?\n" * 5
BPE = PlainTokenizer.train(TEXT, "bpe", 300)
TEXTS = st.text(st.one_of(st.sampled_from(" \n\r\t'ae<>é日👧\u0301\u200d\x00\ufeff"), st.characters(codec="utf-8")))


def lossless(tokenizer: PlainTokenizer, text: str) -> None:
    ids, ends = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.dtype == np.int32 and ends.dtype == np.int64 and len(ids) == len(ends)
    assert (ids >= 0).all() and (ids < tokenizer.vocab_size).all()
    assert (np.diff(ends, prepend=0) >= 0).all() and (ends[-1] if len(ends) else 0) == len(text)


def counted(tokenizer: PlainTokenizer, text: str) -> None:
    made = tokenise(tokenizer, text)
    assert (made.characters >= 0).all() and (made.bytes >= 0).all()
    assert int(made.characters.sum()) == len(text)
    assert int(made.bytes.sum()) == len(text.encode())


@pytest.mark.parametrize(("unit", "size"), [("bpe", 300), ("characters", None)])
@pytest.mark.parametrize("separator", ["\n\n", "<|endoftext|>", "--"])
@pytest.mark.parametrize("piece", [1, 7, 1 << 18])
def test_a_separator_is_one_token_wherever_a_text_is_cut(unit, size, separator: str, piece: int, tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "PIECE", piece)
    documents = ["two old stories", "", "gone.", "\t- they remain", "-", "<unk>"]
    text = separator.join(documents)
    PlainTokenizer.train(text, unit, size, separator).save(tmp_path / "tokenizer.json")
    tokenizer = PlainTokenizer.load(tmp_path / "tokenizer.json")
    lossless(tokenizer, text)
    counted(tokenizer, text)
    assert tokenizer.separator == separator and tokenizer.end_id == tokenizer.vocab_size - 1
    assert size is None or tokenizer.vocab_size <= size
    ids = tokenizer.encode(text).ids
    found = [tokenizer.decode(part) for part in np.split(ids, np.flatnonzero(ids == tokenizer.end_id) + 1)]
    assert found == text.replace(separator, separator + "\0").split("\0")


def test_a_separator_that_can_not_be_a_token_is_refused_and_none_is_needed():
    with pytest.raises(ValueError, match="can not be one token"):
        PlainTokenizer.train("a é b", "bpe", 300, "é")
    assert BPE.end_id is None and BPE.separator == ""


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_byte_pairs_read_any_text_without_loss_and_count_its_characters_and_bytes(text: str):
    lossless(BPE, text)
    counted(BPE, text)


@settings(deadline=None, max_examples=200)
@given(TEXTS.filter(bool))
def test_characters_read_what_they_were_learned_from_one_token_each(text: str):
    tokenizer = PlainTokenizer.train(text, "characters")
    assert tokenizer.vocab_size == 1 + len(set(text))
    lossless(tokenizer, text)
    counted(tokenizer, text)
    ids, ends = tokenizer.encode(text)
    assert ends.tolist() == list(range(1, len(text) + 1))
    assert len(set(zip(ids.tolist(), text, strict=True))) == len(set(text))  # one id for each character


@settings(deadline=None, max_examples=100)
@given(TEXTS)
def test_the_tokens_before_an_end_hold_the_text_before_it_up_to_a_broken_character(text: str):
    ids, ends = BPE.encode(text)
    for i, end in enumerate(ends.tolist()):
        whole = BPE.decode(ids[: i + 1]).rstrip("\ufffd")  # bytes of a character that has not ended
        assert text[:end].startswith(whole) and end - len(whole) <= 1 + text[:end].count("\ufffd")


def test_a_character_of_many_tokens_is_counted_once_and_with_all_its_bytes():
    made = tokenise(PlainTokenizer.train("plain", "bpe", SMALLEST), "a👧é")
    assert len(made.ids) == 1 + 4 + 2
    assert made.characters.tolist() == [1, 1, 0, 0, 0, 1, 0]
    assert made.bytes.tolist() == [1, 4, 0, 0, 0, 2, 0]


def test_merges_shorten_a_text_and_stay_within_the_vocabulary():
    small, large = (PlainTokenizer.train(TEXT, "bpe", size) for size in (SMALLEST, 300))
    assert (small.vocab_size, large.vocab_size) == (SMALLEST, 300)
    assert len(small.encode(TEXT).ids) == len(TEXT.encode()) > 1.2 * len(large.encode(TEXT).ids)


def test_unknown_characters_are_one_token_each_and_nothing_else_is():
    tokenizer = PlainTokenizer.train("abc", "characters")
    ids, ends = tokenizer.encode("axb日c")
    assert ids.tolist() == [1, 0, 2, 0, 3] and ends.tolist() == [1, 2, 3, 4, 5]
    assert tokenizer.decode(ids) == f"a{UNKNOWN}b{UNKNOWN}c"
    counted(tokenizer, "axb日c")


@pytest.mark.parametrize("unit", ["characters", "bpe"])
def test_the_name_of_the_unknown_token_is_plain_text_where_it_is_written(unit: str):
    tokenizer = PlainTokenizer.train(f"{UNKNOWN} [MASK] </s>", unit, 300 if unit == "bpe" else None)  # type: ignore[arg-type]
    lossless(tokenizer, f"{UNKNOWN} </s>")
    if unit == "characters":
        assert len(tokenizer.encode(UNKNOWN).ids) == len(UNKNOWN) and 0 not in tokenizer.encode(UNKNOWN).ids


@pytest.mark.parametrize("unit", ["characters", "bpe"])
def test_an_empty_text_has_no_tokens(unit: str):
    tokenizer = PlainTokenizer.train(TEXT, unit, 300 if unit == "bpe" else None)  # type: ignore[arg-type]
    lossless(tokenizer, "")
    assert tokenizer.decode([]) == ""


def test_lone_surrogates_become_question_marks_of_one_byte():
    text = "a\ud800b"
    for tokenizer in (BPE, PlainTokenizer.train(text, "characters")):
        assert tokenizer.decode(tokenizer.encode(text).ids) == "a?b"
        made = tokenise(tokenizer, text)
        assert (int(made.characters.sum()), int(made.bytes.sum())) == (3, 3)


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_a_long_text_is_cut_for_speed_and_no_word_is_cut_in_two(piece: int, monkeypatch: pytest.MonkeyPatch):
    text = "one two  three,\nfour's five\nsix" * 30
    whole = BPE.encode(text)
    monkeypatch.setattr(plain, "PIECE", piece)
    ids, ends = BPE.encode(text)
    assert ids.tolist() == whole.ids.tolist() and ends.tolist() == whole.ends.tolist()
    lossless(BPE, TEXT + text)
    counted(BPE, TEXT + text)


@pytest.mark.parametrize("unit", ["characters", "bpe"])
def test_a_tokenizer_survives_its_file_and_another_text_gives_another_hash(unit: str, tmp_path: Path):
    size = 300 if unit == "bpe" else None
    first, again, other = (PlainTokenizer.train(text, unit, size) for text in (TEXT, TEXT, TEXT[::-1]))  # type: ignore[arg-type]
    first.save(tmp_path / "tokenizer.json")
    read = PlainTokenizer.load(tmp_path / "tokenizer.json")
    assert read.hash == first.hash == again.hash and read.vocab_size == first.vocab_size
    assert read.encode(TEXT).ids.tolist() == first.encode(TEXT).ids.tolist()
    lossless(read, TEXT)
    changed = PlainTokenizer.train(TEXT + "Ω", unit, size)  # type: ignore[arg-type]
    assert (changed.hash != first.hash) == (unit == "characters")
    assert (other.hash != first.hash) == (unit == "bpe")  # characters have no order, merges have


@pytest.mark.parametrize(
    ("unit", "size", "sentence"),
    [("characters", 100, "vocab_size is 100.*leave it out"), ("bpe", None, f"vocab_size is None.*at least {SMALLEST}"),
     ("bpe", 255, f"vocab_size is 255.*at least {SMALLEST}")],
)  # fmt: skip
def test_a_vocabulary_that_does_not_fit_its_unit_is_refused(unit: str, size: int | None, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        PlainTokenizer.train(TEXT, unit, size)  # type: ignore[arg-type]
