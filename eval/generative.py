"""Generative perplexity and what must stand beside it: a model that repeats itself has a low one and a low entropy."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.interval import Interval, cluster_bootstrap, mean_interval
from eval.text import Corpus, TextVariety, Tokens, ngrams, sequence_entropy, variety

ENTROPY_MARGIN = 0.2  # nats below real text from which on a generative perplexity ranks nothing
EPSILON = 0.1  # matches counted for an order that has none: Chen and Cherry (2014), smoothing 1
BLEU_TEXTS = 500  # texts of self-BLEU at most
ORDER = 4  # longest n-gram of BLEU


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a frozen autoregressive scorer gives n texts, in its own tokens, which need not be the generator's."""

    scorer: str  # its name and hash: the figures compare under one scorer only
    nats: ArrayLike  # (n,), total -ln p of each text
    tokens: ArrayLike  # (n,), tokens scored in each text, its end token included and padding not
    characters: ArrayLike  # (n,), of the text that was scored
    entropies: ArrayLike  # (n,), in nats, of the token frequencies inside each text

    def __post_init__(self) -> None:
        nats, tokens, characters = self.columns()
        if nats.ndim != 1 or not nats.shape == tokens.shape == characters.shape or len(nats) < 2:
            raise ValueError(
                f"nats, tokens and characters have shapes {nats.shape}, {tokens.shape} and {characters.shape}: they "
                "need one shape (n,) with n >= 2, an entry for every text"
            )
        if nats.min() < 0:
            raise ValueError(f"nats must be >= 0, got {nats.min()}: pass -ln p, not ln p")
        if tokens.min() < 1:
            raise ValueError(f"every text needs a scored token, got {tokens.min()}: score its end token, too")
        if characters.min() < 0 or not characters.any():
            raise ValueError(f"characters must be >= 0 with a sum above 0, got {characters.sum()}: decode the texts")

    def columns(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Nats, tokens and characters as float64 (n,)."""
        nats, tokens, characters = (np.asarray(x, np.float64) for x in (self.nats, self.tokens, self.characters))
        return nats, tokens, characters


@dataclass(frozen=True, kw_only=True)
class GenerativeText:
    """Figures of a set of generated (or real) texts; intervals are over texts."""

    perplexity: Interval  # exp(total nats / total tokens) under the scorer
    nats_per_character: Interval  # the same cost whatever the scorer's tokens are
    entropy: Interval  # nats, of the word frequencies inside a text, mean over texts
    token_entropy: Interval  # nats, of the frequencies of the scorer's tokens
    self_bleu_4: Interval  # in [0, 1], 1 where every text repeats another; n is the subsample
    variety: TextVariety  # distinct-1/2/4, duplicates, what is copied from the training set
    scorer: str
    n: int

    def label(self) -> str:
        """Name of the perplexity with its scorer, as in `genppl[own-ar|n=500]`."""
        return f"genppl[{self.scorer}|n={self.n}]"


@dataclass(frozen=True)
class Verdict:
    """Whether two perplexities may be ranked, and why, in a sentence; true or false as a condition."""

    comparable: bool
    reason: str

    def __bool__(self) -> bool:
        return self.comparable


def generative_text(
    scores: Scores, texts: Sequence[Tokens], train: Corpus, *, bleu_texts: int = BLEU_TEXTS, seed: int = 0
) -> GenerativeText:
    """Perplexity of generated texts under a scorer, with the entropy and variety that show whether it was gamed.

    texts: n sequences of words or token ids in one vocabulary for all sets that are compared; every text counts. Equal
    texts are separate draws of the generator. Self-BLEU is that of at most `bleu_texts` texts. Raises ValueError where
    the texts and the scores differ in number.
    """
    nats, tokens, characters = scores.columns()
    if len(texts) != len(nats):
        raise ValueError(f"{len(texts)} texts but {len(nats)} scores: score every text, the last partial batch, too")
    per_token = cluster_bootstrap(nats, range(len(nats)), seed=seed, weights=tokens)
    return GenerativeText(
        perplexity=Interval(math.exp(per_token.value), math.exp(per_token.low), math.exp(per_token.high), len(texts)),
        nats_per_character=cluster_bootstrap(nats, range(len(nats)), seed=seed, weights=characters),
        entropy=mean_interval([sequence_entropy(text) for text in texts]),
        token_entropy=mean_interval(np.asarray(scores.entropies, np.float64)),
        self_bleu_4=self_bleu(texts, most=bleu_texts, seed=seed),
        variety=variety(texts, train),
        scorer=scores.scorer,
        n=len(texts),
    )


def comparable(generated: GenerativeText, real: GenerativeText) -> Verdict:
    """Whether a generative perplexity may be ranked: with one scorer, and at most 0.2 nats below real text in entropy.

    Low entropy flatters the perplexity (arXiv:2409.02908). Entropy grows with length: cut real texts to the same one.
    """
    if generated.scorer != real.scorer:
        return Verdict(
            False, f"The scorers differ ({generated.scorer} and {real.scorer}): score both sets with the same one."
        )
    pairs = {
        "words": (generated.entropy.value, real.entropy.value),
        "tokens": (generated.token_entropy.value, real.token_entropy.value),
    }
    for of, (found, mark) in pairs.items():
        if found < mark - ENTROPY_MARGIN:
            return Verdict(
                False,
                f"The entropy of {of} within a text is {found:.2f} nats, real texts have {mark:.2f}: more than "
                f"{ENTROPY_MARGIN} below, where a low perplexity means repetition. Sample at a higher temperature.",
            )
    found, mark = pairs["words"]
    return Verdict(True, f"The entropy of words within a text is {found:.2f} nats, real texts have {mark:.2f}.")


def self_bleu(texts: Sequence[Tokens], *, most: int = BLEU_TEXTS, seed: int = 0) -> Interval:
    """Mean BLEU-4 of each text with all others as its references (arXiv:1802.01886): near 1 for a collapsed generator.

    Of more than `most` texts a seeded subsample is taken. The value grows with the number of texts, so compare at equal
    n. The interval is over texts, the references held fixed. Raises ValueError for fewer than two texts.
    """
    if min(len(texts), most) < 2:
        raise ValueError(f"self-BLEU got {len(texts)} texts and most={most}, each must be at least 2: sample more")
    index = range(len(texts))
    if len(texts) > most:
        index = np.sort(np.random.default_rng(seed).choice(len(texts), most, replace=False))
    rows = [tuple(texts[i]) for i in index]
    others = _Others(rows)
    return mean_interval([others.bleu(row) for row in rows])


class _Others:
    """BLEU of a row against all other rows, in time linear in the tokens: two largest counts per n-gram suffice."""

    def __init__(self, rows: Sequence[Tokens]) -> None:
        self.lengths = Counter(len(row) for row in rows)
        self.largest: dict[Tokens, tuple[int, int]] = {}  # in one row, and in another one
        for row in rows:
            for n in range(1, ORDER + 1):
                for gram, count in Counter(ngrams(row, n)).items():
                    first, second = self.largest.get(gram, (0, 0))
                    self.largest[gram] = (max(first, count), max(second, min(first, count)))

    def bleu(self, row: Tokens) -> float:
        """Sentence BLEU (Papineni et al. 2002) of one of the rows, smoothing 1 of Chen and Cherry (2014).

            exp(min(0, 1 - r / c)) (prod_n p_n)^(1/N),   p_n = clipped matches / n-grams, or 0.1 / n-grams without any

        c: length; r: the closest length among the others, the shorter of two. N = min(4, c), so that a repeated short
        text scores 1. No common token: 0. Empty: 1 where another row is empty, else 0.
        """
        if not row:
            return float(self.lengths[0] > 1)
        logs = []
        for n in range(1, min(ORDER, len(row)) + 1):
            counts = Counter(ngrams(row, n))
            matches = sum(self._clipped(gram, count) for gram, count in counts.items())
            if n == 1 and not matches:
                return 0.0
            logs.append(math.log((matches or EPSILON) / counts.total()))
        return math.exp(min(0.0, 1 - self._closest(len(row)) / len(row)) + sum(logs) / len(logs))

    def _clipped(self, gram: Tokens, count: int) -> int:
        first, second = self.largest[gram]
        return count if count < first else second  # the row that holds the largest count leaves the second

    def _closest(self, length: int) -> int:
        rest = [other for other, rows in self.lengths.items() if rows > (other == length)]
        return min(rest, key=lambda other: (abs(other - length), other))
