"""The sections of a report on texts from anywhere: how they look, what a scorer says of them, and some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.blocks import Column, Curve, Row, RowKind, Series, Table, Texts
from eval.figure import Known
from eval.generative import ENTROPY_MARGIN, GenerativeText, comparable
from eval.text import Corpus, ngrams, sequence_entropy
from pipelines.scoring.text_files import TextSet

SHOWN = 24  # texts of each set in the report
BINS = 20
LONGEST = 8  # of the runs whose share in the training text is drawn
LENGTHS_APART = 0.2  # of mean lengths, from which on entropies say little
WORDS = (
    ("entropy", Column("entropy of words", "plain")),
    ("distinct_1", Column("distinct 1", "share")),
    ("distinct_2", Column("distinct 2", "share")),
    ("distinct_4", Column("distinct 4", "share")),
    ("duplicates", Column("duplicates", "share", "lower")),
    ("self_bleu_4", Column("self-BLEU", "plain", "lower")),
)
COPIED = (
    ("copied", Column("whole texts copied", "share", "lower")),
    ("longest_copied_share", Column("longest copied run over length", "share", "lower")),
    ("longest_copied", Column("longest copied run, words", "plain", "lower")),
)
SCORED = (
    ("genppl", Column("perplexity", "plain")),
    ("nats_per_character", Column("nats per character", "plain")),
    ("token_entropy", Column("entropy of tokens", "plain")),
    ("mauve", Column("MAUVE", "plain", "higher")),
    ("mauve_star", Column("MAUVE*", "plain", "higher")),
    ("frontier_integral", Column("frontier integral", "plain", "lower")),
)


@dataclass(frozen=True)
class Judged:
    """A set with its figures by metric; scored and states (n, d) where there is a scorer."""

    texts: TextSet
    kind: RowKind
    figures: dict[str, Known]
    scored: GenerativeText | None = None
    states: NDArray[np.float32] | None = None

    @property
    def words(self) -> list[list[str]]:
        """The words of every text."""
        return [text.split() for text in self.texts.texts]


def tables(scorer: str, judged: Sequence[Judged], real: Judged) -> list[Table]:
    """The figures of all sets; of those of the scorer also whether they rank."""
    every = [*judged, real]
    shown = [*WORDS, *(one for one in COPIED if one[0] in real.figures)]
    note = "Distinct runs, self-BLEU and entropies depend on the number and the length of texts: compare at equal ones."
    rows = [
        Row([one.texts.title, mean_length(one), *(one.figures.get(name) for name, _ in shown)], one.kind)
        for one in every
    ]
    columns = ["texts", Column("words of a text"), *(column for _, column in shown)]
    found = [Table("How texts look", columns, rows, note=note)]
    if not scorer:
        return found
    rows, why = [], list[str]()
    for one in every:
        verdict = comparable(one.scored, real.scored) if one.scored and real.scored and one is not real else None
        cells = [one.figures.get(name) for name, _ in SCORED]
        rows.append(Row([one.texts.title, *cells, "" if verdict is None else "yes" if verdict else "no"], one.kind))
        why += [f"{one.texts.title}: {verdict.reason}"] if verdict is not None and not verdict else []
    note = " ".join((
        f"The scorer is {scorer}, an autoregressive model of that run and no published one. An entropy more than "
        f"{ENTROPY_MARGIN:g} nats below that of real texts makes a perplexity rank nothing.", *why,
    ))  # fmt: skip
    columns = ["texts", *(column for _, column in SCORED), "may be ranked"]
    return [*found, Table(f"Under {scorer}", columns, rows, note=note)]


def charts(corpus: Corpus | None, judged: Sequence[Judged], real: Judged) -> list[Curve]:
    """Lengths and entropies of texts, and how much of their runs the training text holds."""
    every = [*judged, real]
    blocks: list[Curve] = [
        histogram("Lengths", {one.texts.title: [len(row) for row in one.words] for one in every}, "words"),
        histogram(
            "Entropies", {one.texts.title: [sequence_entropy(row) for row in one.words] for one in every}, "nats"
        ),
    ]
    if corpus is not None:
        lengths = range(1, LONGEST + 1)
        series = [Series(one.texts.title, list(lengths), held(corpus, one.words, LONGEST)) for one in every]
        blocks.append(
            Curve("Runs of words that the training text holds", series, x_label="words", y_label="share of runs",
                  note="Over the different runs of a set. Above real texts means copying.")
        )  # fmt: skip
    return blocks


def histogram(title: str, values: Mapping[str, Sequence[float]], unit: str) -> Curve:
    """Several histograms in one chart, on the same bins."""
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(found, np.float64) for found in values.values()]), BINS)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    series = [Series(name, middles, (np.histogram(found, edges)[0] / len(found)).tolist())
              for name, found in values.items()]  # fmt: skip
    return Curve(title, series, x_label=unit, y_label="share of texts")


def held(train: Corpus, words: Sequence[Sequence[str]], longest: int) -> list[float]:
    """Share of the different runs of 1, 2, ... words that the training set holds; NaN where there are none."""
    shares = []
    for n in range(1, longest + 1):
        runs = {gram for row in words for gram in ngrams(row, n)}
        shares.append(sum(map(train.holds, runs)) / len(runs) if runs else float("nan"))
    return shares


def samples(one: Judged) -> Texts:
    """The first texts of a set."""
    shown = one.texts.texts[:SHOWN]
    return Texts(one.texts.title, shown, note=f"The first {len(shown)} of {len(one.texts)}, none picked.")


def lead(judged: Sequence[Judged], real: Judged) -> str:
    """Say where texts are so much shorter or longer than real ones that entropies do not compare."""
    mark = mean_length(real)
    apart = [one.texts.title for one in judged if abs(mean_length(one) / mark - 1) > LENGTHS_APART]
    if not apart:
        return ""
    return (
        f"Texts of {', '.join(apart)} differ by more than {LENGTHS_APART:.0%} in length from real ones, which have "
        f"{mark:.0f} words: entropy, distinct runs and self-BLEU do not compare. --words N cuts all to N words."
    )


def mean_length(one: Judged) -> float:
    """Words of a text, on average."""
    return round(float(np.mean([len(row) for row in one.words])), 1)
