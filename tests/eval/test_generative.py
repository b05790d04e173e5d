import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from backbone.clip import cure_torchvision
from eval.generative import GenerativeText, Scores, comparable, generative_text, self_bleu
from eval.interval import Interval
from eval.text import Corpus, sequence_entropy

cure_torchvision()
TRAIN = Corpus([tuple("abcdefgh")])


def scored(texts, nats=None, scorer="own-ar", characters=None):
    lengths = [len(text) + 1 for text in texts]
    return Scores(
        scorer=scorer, nats=lengths if nats is None else nats, tokens=lengths, characters=characters or lengths,
        entropies=[sequence_entropy(text) for text in texts],
    )  # fmt: skip


def figures(texts, **given) -> GenerativeText:
    return generative_text(scored(texts, **given), texts, TRAIN)


def random_texts(rng, n, vocabulary=6, longest=12):
    return [tuple(rng.randint(0, vocabulary, rng.randint(1, longest + 1)).tolist()) for _ in range(n)]


@pytest.mark.parametrize("vocabulary", [2, 50, 50257])
def test_uniform_scorer_has_the_perplexity_of_its_vocabulary(vocabulary):
    texts = random_texts(np.random.RandomState(0), 37)  # no batch size divides 37
    nats = [(len(text) + 1) * math.log(vocabulary) for text in texts]
    found = figures(texts, nats=nats).perplexity
    assert (found.value, found.low, found.high) == pytest.approx((vocabulary,) * 3, rel=1e-12)
    assert found.n == 37


def test_every_text_counts_the_last_one_too():
    texts = random_texts(np.random.RandomState(1), 33)
    nats = [0.0] * 32 + [5.0]
    total = sum(len(text) + 1 for text in texts)
    assert figures(texts, nats=nats).perplexity.value == pytest.approx(math.exp(5 / total))


def test_totals_over_totals_are_not_a_mean_over_texts():
    found = generative_text(
        Scores(scorer="s", nats=[1, 90], tokens=[1, 10], characters=[4, 41], entropies=[0, 0]), ["a", "b"], TRAIN
    )
    assert found.perplexity.value == pytest.approx(math.exp(91 / 11))
    assert found.nats_per_character.value == pytest.approx(91 / 45)


def test_nats_per_character_do_not_hang_on_the_tokens_of_the_scorer():
    """One model over characters, its tokens cut anew into pairs: the perplexity moves, the cost of a character not."""
    texts, nats, characters = ["abab", "bbbb", "abcdef"], [4.0, 2.0, 9.0], [4, 4, 6]
    common = {"scorer": "s", "nats": nats, "characters": characters, "entropies": [0.5] * 3}
    fine = generative_text(Scores(tokens=[4, 4, 6], **common), texts, TRAIN)
    coarse = generative_text(Scores(tokens=[2, 2, 3], **common), texts, TRAIN)
    assert coarse.nats_per_character == fine.nats_per_character
    assert coarse.perplexity.value == pytest.approx(fine.perplexity.value**2)


def test_half_and_half_has_the_entropy_of_a_coin():
    found = figures([(0, 1), (1, 0), (0, 1, 1, 0)])
    assert (found.entropy.value, found.entropy.low) == pytest.approx((math.log(2),) * 2)
    assert figures(["aaaa", "bbb"]).entropy.value == 0


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, hits, runs = np.random.RandomState(2), Counter(), 150
    rate = 1 + np.log(8) / 8  # mean nats per token: length and difficulty of a text go together
    for _ in range(runs):
        lengths = rng.randint(1, 16, 120)
        nats = lengths * rng.gamma(4, rate / 4, 120)
        texts = [tuple(row) for row in rng.randint(0, 2, (120, 2))]  # one in two has entropy ln 2
        scores = Scores(scorer="s", nats=nats, tokens=lengths, characters=3 * lengths, entropies=lengths)
        found = generative_text(scores, texts, TRAIN, bleu_texts=2)
        truths = math.exp(rate), rate / 3, math.log(2) / 2
        for name, truth in zip(("perplexity", "nats_per_character", "entropy"), truths, strict=True):
            hits[name] += getattr(found, name).low <= truth <= getattr(found, name).high
            hits[name, "wrong"] += getattr(found, name).low <= 1.3 * truth <= getattr(found, name).high
    for name in ("perplexity", "nats_per_character", "entropy"):
        assert 0.88 * runs <= hits[name] <= runs
        assert hits[name, "wrong"] < 0.5 * runs


def test_self_bleu_of_identical_texts_is_one():
    for text in ("abcdefg", "abc", "a", ""):
        found = self_bleu([text] * 5)
        assert (found.value, found.low, found.high, found.n) == (1, 1, 1, 5)


def test_self_bleu_of_disjoint_texts_is_nought():
    assert self_bleu(["abcde", "fghij", "klmno", ""]).value == 0


def test_self_bleu_agrees_with_a_hand_computation():
    """p = 2/4, 1/3, 0.1/2, 0.1/1: no common run of three; both texts alike."""
    assert self_bleu(["abcd", "abxy"]).value == pytest.approx((2 / 4 * 1 / 3 * 0.1 / 2 * 0.1 / 1) ** 0.25)


def test_self_bleu_clips_counts_and_punishes_brevity():
    """aaaa: 2/4, 1/3, .1/2, .1/1. aa: 2/2, 1/1 and the shorter text pays exp(1 - 4/2)."""
    long, short = (2 / 4 * 1 / 3 * 0.1 / 2 * 0.1) ** 0.25, math.exp(1 - 4 / 2)
    assert self_bleu(["aaaa", "aa"]).value == pytest.approx((long + short) / 2)


def test_self_bleu_agrees_with_torchmetrics_where_every_order_matches():
    bleu_score = pytest.importorskip("torchmetrics.functional.text").bleu_score
    rng = np.random.RandomState(3)
    for _ in range(20):
        texts = [tuple("ab"[i] for i in rng.randint(0, 2, rng.randint(6, 12))) for _ in range(8)]
        oracle = []
        for i, text in enumerate(texts):
            others = sorted((" ".join(t) for j, t in enumerate(texts) if j != i), key=len)  # of two lengths the shorter
            oracle.append(float(bleu_score([" ".join(text)], [others], n_gram=4)))
        assert min(oracle) > 0  # nothing to smooth
        assert self_bleu(texts).value == pytest.approx(np.mean(oracle), abs=1e-6)


def test_self_bleu_of_a_subsample_is_seeded_and_near_that_of_all():
    texts = random_texts(np.random.RandomState(4), 400, longest=8)
    some = self_bleu(texts, most=200, seed=1)
    assert some == self_bleu(texts, most=200, seed=1)
    assert some != self_bleu(texts, most=200, seed=2)
    assert some.n == 200
    assert some.value < self_bleu(texts, most=400).value < some.value + 0.15  # more references, more matches


def test_variety_stands_beside_the_perplexity():
    found = figures(["abcdxy", "abcdxy", "qrst"])
    assert found.variety.duplicates == pytest.approx(1 / 3)
    assert found.variety.longest_copied == 4
    assert found.variety.distinct_1 == 10 / 16
    assert found.variety.distinct_4 == 4 / 7
    assert found.label() == "genppl[own-ar|n=3]"


def test_text_that_repeats_itself_is_not_ranked():
    """The perplexity of the loop is the better one, and that is why it must not count."""
    real = figures(["abcdefgh", "hgfedcba", "badcfehg"], nats=[18.0, 18.0, 18.0])
    loop = figures(["abababab", "babababa", "abababab"], nats=[9.0, 9.0, 9.0])
    fresh = figures(["abcdefga", "bcdefghb", "cdefghac"], nats=[20.0, 20.0, 20.0])
    assert loop.perplexity.value < real.perplexity.value < fresh.perplexity.value
    verdict = comparable(loop, real)
    assert not verdict
    assert "0.69 nats" in verdict.reason and "2.08" in verdict.reason and "temperature" in verdict.reason
    assert comparable(fresh, real)
    assert comparable(real, loop)  # more entropy than real text is no flattery


@pytest.mark.parametrize("field", ["entropy", "token_entropy"])
@pytest.mark.parametrize(("gap", "allowed"), [(0.19, True), (0.21, False)])
def test_the_margin_is_a_fifth_of_a_nat_of_words_and_of_tokens(gap, allowed, field):
    real = figures(["abcdefgh", "abcdefgh"])
    near = replace(real, **{field: Interval(getattr(real, field).value - gap, 0, 9, 2)})
    verdict = comparable(near, real)
    assert bool(verdict) is allowed
    assert allowed or ("words" if field == "entropy" else "tokens") in verdict.reason


def test_two_scorers_are_not_compared():
    verdict = comparable(figures(["abcd", "efgh"], scorer="one"), figures(["abcd", "efgh"], scorer="two"))
    assert not verdict
    assert "one" in verdict.reason and "two" in verdict.reason


def test_refusals_say_value_expectation_and_remedy():
    good = {"scorer": "s", "nats": [1, 2], "tokens": [1, 2], "characters": [3, 4], "entropies": [0, 1]}
    with pytest.raises(ValueError, match=r"got -2.0: pass -ln p"):
        Scores(**{**good, "nats": [1, -2]})
    with pytest.raises(ValueError, match=r"got 0.0: score its end token"):
        Scores(**{**good, "tokens": [1, 0]})
    with pytest.raises(ValueError, match=r"\(2,\), \(2,\) and \(3,\).*one shape"):
        Scores(**{**good, "characters": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"sum above 0, got 0.0"):
        Scores(**{**good, "characters": [0, 0]})
    with pytest.raises(ValueError, match=r"3 texts but 2 scores.*last partial batch"):
        generative_text(Scores(**good), ["a", "b", "c"], TRAIN)
    with pytest.raises(ValueError, match=r"self-BLEU got 1 texts"):
        self_bleu(["a"])
    with pytest.raises(ValueError, match=r"1 of 2 values are not finite"):
        generative_text(Scores(**{**good, "nats": [1, math.nan]}), ["a", "b"], TRAIN)
