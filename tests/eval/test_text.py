import math

import numpy as np
import pytest

from eval.text import Corpus, distinct, duplicates, sequence_entropy, text_bound, variety


def exact_count(costs: np.ndarray, rng: np.random.RandomState) -> float:
    """One draw of L / l times the costs of l masked positions; the denoiser ignores what is visible."""
    count = rng.randint(1, len(costs) + 1)
    return len(costs) / count * rng.permutation(costs)[:count].sum()


def uniform_time(costs: np.ndarray, rng: np.random.RandomState) -> float:
    t = 1 - rng.rand()
    return costs[rng.rand(len(costs)) < t].sum() / t


@pytest.fixture(scope="module")
def unigram():
    rng = np.random.RandomState(0)
    q = rng.dirichlet(np.ones(6))
    tokens = [rng.choice(6, size=rng.randint(3, 12), p=q) for _ in range(200)]
    return [-np.log(q)[t] for t in tokens]


@pytest.mark.parametrize("draw", [exact_count, uniform_time])
def test_bound_of_a_unigram_denoiser_is_its_cross_entropy(unigram, draw):
    rng = np.random.RandomState(1)
    lengths = [len(c) for c in unigram]
    nats = [[draw(c, rng) for _ in range(64)] for c in unigram]
    found = text_bound(nats, lengths, ["x" * n for n in lengths])
    truth = sum(c.sum() for c in unigram) / sum(lengths)
    assert abs(found.nats_per_token.value - truth) < 3 * found.monte_carlo_se
    assert abs(found.nats_per_token.value + 0.1 - truth) > 3 * found.monte_carlo_se  # a bias of 0.1 is seen


def test_exact_count_has_far_less_variance_than_a_random_time(unigram):
    rng = np.random.RandomState(2)
    lengths = [len(c) for c in unigram]
    errors = {
        draw: text_bound(
            [[draw(c, rng) for _ in range(64)] for c in unigram], lengths, ["x"] * len(lengths)
        ).monte_carlo_se
        for draw in (exact_count, uniform_time)
    }
    assert 2 * errors[exact_count] < errors[uniform_time]


def test_uniform_denoiser_costs_the_logarithm_of_the_vocabulary():
    rng = np.random.RandomState(3)
    costs = [np.full(n, math.log(50)) for n in (1, 4, 9)]
    found = text_bound([exact_count(c, rng) for c in costs], [1, 4, 9], ["a", "b", "c"])
    assert found.nats_per_token.value == pytest.approx(math.log(50), abs=1e-12)
    assert found.perplexity == pytest.approx(50)


def test_one_token_costs_its_cross_entropy():
    assert exact_count(np.array([1.7]), np.random.RandomState(0)) == pytest.approx(1.7)


def test_bits_count_characters_and_bytes_of_the_text():
    found = text_bound([8 * math.log(2), 4 * math.log(2)], [2, 1], ["größe", "abc"])  # 8 characters, 10 bytes
    assert found.bits_per_character.value == pytest.approx(12 / 8)
    assert found.bits_per_byte.value == pytest.approx(12 / 10)
    assert found.nats_per_token.value == pytest.approx(4 * math.log(2))
    assert math.isnan(found.monte_carlo_se)


def test_totals_over_totals_are_not_a_mean_of_ratios():
    found = text_bound([1.0, 90.0], [1, 10], ["a", "b"])
    assert found.nats_per_token.value == pytest.approx(91 / 11)
    assert found.nats_per_token.value != pytest.approx((1 + 9) / 2)


def test_repeated_texts_are_not_counted_as_independent():
    rng = np.random.RandomState(5)
    once = text_bound(costs := rng.rand(10) + 1, [2] * 10, texts := [f"text {i}" for i in range(10)])
    often = text_bound(np.tile(costs, 50), [2] * 500, texts * 50)
    assert often.nats_per_token.n == 10
    assert often.nats_per_token.value == pytest.approx(once.nats_per_token.value)
    width = [found.nats_per_token.high - found.nats_per_token.low for found in (once, often)]
    assert width[1] == pytest.approx(width[0], rel=0.05)


def test_entropy_of_half_and_half_is_the_logarithm_of_two():
    assert sequence_entropy([0, 1, 1, 0]) == pytest.approx(math.log(2))
    assert sequence_entropy("aaaa") == 0
    assert sequence_entropy([]) == 0


def test_distinct_counts_different_ngrams():
    texts = [["a", "b", "a", "b"], ["a", "b"]]
    assert distinct(texts, 1) == 2 / 6
    assert distinct(texts, 2) == 2 / 4
    assert distinct(texts, 4) == 1
    assert math.isnan(distinct(texts, 5))


def test_duplicates_are_repeats_of_an_earlier_text():
    assert duplicates(["a", "b", "a", "a"]) == 0.5


def brute_force(text: str, train: list[str]) -> int:
    runs = [text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)]
    return max((len(run) for run in runs if any(run in t for t in train)), default=0)


def test_longest_copy_agrees_with_brute_force():
    rng = np.random.RandomState(4)
    train = ["".join(rng.choice(list("abc"), 12)) for _ in range(5)]
    corpus = Corpus(train)
    for _ in range(50):
        text = "".join(rng.choice(list("abcd"), rng.randint(0, 12)))
        assert corpus.longest_copied([text]) == [brute_force(text, train)]


def test_variety_tells_copies_from_new_texts():
    train = ["a red star on sand".split(), "a blue ring on grass".split()]
    copies = variety([train[0], train[0]], Corpus(train))
    fresh = variety(["two owls sang".split(), "a red ring on sand".split(), []], Corpus(train))
    assert (copies.copied, copies.longest_copied, copies.longest_copied_share, copies.duplicates) == (1, 5, 1, 0.5)
    assert (fresh.copied, fresh.longest_copied, fresh.duplicates) == (0, 2, 0)
    assert fresh.distinct_1 == 1
    with pytest.raises(ValueError, match="at least one"):
        variety([], Corpus(train))
