"""Likelihood bounds of text, and how generated text looks: entropy, variety, duplicates, copies of the training set."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.interval import Clusters, Interval, cluster_bootstrap, jackknife, wilson

Tokens = Sequence[Hashable]
LN2 = math.log(2)
KEPT = 12  # length of n-grams up to which they are kept
TOGETHER = 16  # windows of one text that are resampled together
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, of the hashes of n-grams


@dataclass(frozen=True, kw_only=True)
class TextBound:
    """Upper bounds on the cost of text (print "<="); intervals are over texts, `monte_carlo_se` over a text's draws."""

    nats_per_token: Interval
    bits_per_character: Interval
    bits_per_byte: Interval
    perplexity: float  # exp(nats per token): never compared across tokenizers
    monte_carlo_se: float  # of nats per token; NaN with a single draw per text


def text_bound(nats: ArrayLike, tokens: ArrayLike, texts: Sequence[str], *, seed: int = 0) -> TextBound:
    """Cost per token, character and UTF-8 byte over a set of texts: totals over totals, not a mean of ratios.

    Equal texts are resampled together (some data repeats ten captions a thousand times), and n counts distinct texts.

    nats: (n,) or (n, draws), bound of each text in nats; tokens: (n,), end token included and padding not. Draws at
    fixed strata of the mask count give no standard error of a single draw: average them first and pass (n,).
    """
    draws = np.asarray(nats, np.float64)
    draws = draws[:, None] if draws.ndim == 1 else draws  # (n, draws)
    sizes = ([len(text) for text in texts], [len(text.encode("utf-8", "surrogatepass")) for text in texts])
    return _bound(draws, tokens, *sizes, texts, seed)


def neighbours(count: int) -> list[int]:
    """Cluster of each window of one text: neighbours share what they are about, so they are no independent draws."""
    size = max(1, min(TOGETHER, count // 10))
    return [number // size for number in range(count)]


def window_bound(
    nats: ArrayLike, tokens: ArrayLike, characters: ArrayLike, sizes: ArrayLike, *, seed: int = 0
) -> TextBound:
    """The same for windows of one long text, whose characters and bytes (`sizes`) are counted exactly: (n,) each.

    nats: (n, repeats), independent estimates of each window's cost; equal ones where the cost is exact. n counts runs
    of neighbouring windows.
    """
    draws = np.asarray(nats, np.float64)
    return _bound(draws, tokens, characters, sizes, neighbours(len(draws)), seed)


def _bound(
    draws: NDArray[np.float64],
    tokens: ArrayLike,
    characters: ArrayLike,
    sizes: ArrayLike,
    clusters: Clusters,
    seed: int,
) -> TextBound:
    """Costs (n, draws) over tokens, characters and bytes; with a single cluster there is no interval."""
    costs, repeats = draws.mean(1), draws.shape[1]
    per = [cluster_bootstrap(costs, clusters, seed=seed, weights=units) for units in (tokens, characters, sizes)]
    bits = [Interval(one.value / LN2, one.low / LN2, one.high / LN2, one.n) for one in per]
    spread = draws.var(1, ddof=1).sum() / repeats if repeats > 1 else math.nan
    return TextBound(
        nats_per_token=per[0],
        bits_per_character=bits[1],
        bits_per_byte=bits[2],
        perplexity=math.exp(per[0].value),
        monte_carlo_se=float(np.sqrt(spread) / np.asarray(tokens, np.float64).sum()),
    )


def sequence_entropy(tokens: Tokens) -> float:
    """Entropy of the token frequencies inside one text in nats, at most ln length; low ones flatter a perplexity."""
    counts = np.array(list(Counter(tokens).values()), dtype=np.float64)
    if not len(counts):
        return 0.0
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum()) + 0.0  # + 0.0: never "-0.0"


def distinct(texts: Iterable[Tokens], n: int) -> float:
    """Distinct n-grams over all n-grams of all texts (arXiv:1510.03055); NaN where no text has n tokens."""
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def duplicates(texts: Sequence[Hashable]) -> float:
    """Share of texts that repeat an earlier one."""
    return 1 - len(set(texts)) / len(texts)


def whole_share(statistic: Callable[[Sequence], float], texts: Sequence, *, blocks: int = 10) -> Interval:
    """A share in [0, 1] of a whole set with its interval, from its values without each of some disjoint parts of it.

    For what grows or falls with the number of texts, such as distinct n-grams: a bootstrap would draw texts twice.
    n counts texts. Raises ValueError for fewer than two texts, or a figure that is not finite.
    """
    count = min(blocks, len(texts))
    if count < 2:
        raise ValueError(f"{len(texts)} texts have no spread, at least 2 are needed: judge more texts")
    without = [statistic([text for i, text in enumerate(texts) if i % count != block]) for block in range(count)]
    found = jackknife(statistic(texts), without)
    if found.low == found.high:  # no copy among so few texts does not mean that there never is one
        return wilson(found.value * len(texts), len(texts))
    return Interval(found.value, max(0.0, found.low), min(1.0, found.high), len(texts))


class Corpus:
    """The n-grams of a training set, made once per length, as sorted hashes of 64 bits: a large set fits in memory.

    Two of m n-grams are mistaken for each other with a probability of about m^2 / 2^65.
    """

    def __init__(self, texts: Iterable[Tokens]) -> None:
        self.texts = {tuple(text) for text in texts}
        words = dict.fromkeys(word for text in self.texts for word in text)
        drawn = np.random.default_rng(0).integers(0, 1 << 64, len(words), np.uint64)
        self._codes = dict(zip(words, drawn, strict=True))
        self._coded = [np.array([self._codes[word] for word in text], np.uint64) for text in self.texts]
        self._ngrams: dict[int, NDArray[np.uint64]] = {}

    def holds(self, gram: Tokens) -> bool:
        """Whether the tokens stand side by side somewhere in the set."""
        n = len(gram)
        if n not in self._ngrams:
            self._ngrams[n] = np.unique(np.concatenate([np.zeros(0, np.uint64), *(_rolled(x, n) for x in self._coded)]))
        if any(word not in self._codes for word in gram):
            return False
        found, wanted = self._ngrams[n], _rolled(np.array([self._codes[word] for word in gram], np.uint64), n)
        place = np.searchsorted(found, wanted)[0]
        return bool(place < len(found) and found[place] == wanted[0])

    def longest_copied(self, texts: Sequence[Tokens]) -> list[int]:
        """Length of the longest run of tokens in each text that the set holds.

        A run that is held has every shorter run inside it, so lengths are tried from 1 on, for all texts at once.
        """
        longest, n = [0] * len(texts), 1
        alive = list(range(len(texts)))
        while alive:
            alive = [i for i in alive if any(self.holds(gram) for gram in ngrams(texts[i], n))]
            for i in alive:
                longest[i] = n
            if n > KEPT:
                self._ngrams.pop(n, None)
            n += 1
        return longest


@dataclass(frozen=True, kw_only=True)
class TextVariety:
    """How varied generated texts are, and how much of them stands in the training set word by word."""

    entropy: float  # nats, mean over texts
    distinct_1: float
    distinct_2: float
    distinct_4: float
    duplicates: float  # share of texts equal to an earlier one
    copied: float  # share of texts that stand in the training set as they are
    longest_copied: int  # longest run of tokens that the training set holds
    longest_copied_share: float  # mean over texts of (longest copied run / length)


def variety(texts: Sequence[Tokens], train: Corpus) -> TextVariety:
    """Figures of a set of texts, each a sequence of words or tokens, empty ones included."""
    if not texts:
        raise ValueError("variety needs at least one text")
    rows = [tuple(text) for text in texts]
    runs = train.longest_copied(rows)
    return TextVariety(
        entropy=float(np.mean([sequence_entropy(row) for row in rows])),
        distinct_1=distinct(rows, 1),
        distinct_2=distinct(rows, 2),
        distinct_4=distinct(rows, 4),
        duplicates=duplicates(rows),
        copied=float(np.mean([row in train.texts for row in rows])),
        longest_copied=max(runs),
        longest_copied_share=float(np.mean([run / max(1, len(row)) for run, row in zip(runs, rows, strict=True)])),
    )


def _rolled(codes: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Hashes of all runs of n codes: a polynomial in an odd base modulo 2^64."""
    count = max(0, len(codes) - n + 1)
    found = np.zeros(count, np.uint64)
    for k in range(n):
        found = found * BASE + codes[k : k + count]
    return found


def ngrams(text: Tokens, n: int) -> list[Tokens]:
    """All runs of n tokens of a text, in order."""
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
