"""`palimpsest eval --texts`: texts of any system beside real ones, in one report."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.blocks import Report, RowKind, Section
from eval.figure import Figure, Known, attempted, missing
from eval.generative import BLEU_TEXTS, GenerativeText, generative_text, self_bleu
from eval.interval import Interval, mean_interval, share_interval
from eval.mauve import mauve
from eval.report import write_report
from eval.text import Corpus, distinct, duplicates, sequence_entropy, whole_share
from pipelines.artefact import digest
from pipelines.beside import NOTHING, Beside
from pipelines.errors import PalimpsestError
from pipelines.provenance import made_by
from pipelines.runs import reopen_run
from pipelines.scoring.text_files import TextSet, open_texts
from pipelines.scoring.text_sections import SCORED, Judged, charts, lead, samples, tables
from pipelines.scoring.titles import titles_of
from pipelines.text.scorer import Scorer

MAUVES = ("mauve", "mauve_star", "frontier_integral")
HELD = "other real texts"
log = logging.getLogger("palimpsest")


@dataclass(frozen=True, kw_only=True)
class TextsAsked:
    """What is to be judged: files of texts, real ones to hold them against, the training text, and a scorer.

    scorer: RUN/STAGE, an autoregressive text model of a finished run. words: every text is cut to so many.
    """

    texts: tuple[str, ...]
    reference: str
    out: Path
    train: Path | None = None
    scorer: Path | None = None
    count: int | None = None
    words: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that judge nothing."""
        for name, value, least in (("count", self.count, 2), ("words", self.words, 1)):
            if value is not None and value < least:
                raise PalimpsestError(f"--{name} is {value}, expected at least {least}.")


@dataclass
class TextScoring:
    """One scoring while it is being made."""

    asked: TextsAsked
    corpus: Corpus | None
    scorer: Scorer | None
    names: dict[str, str] = field(default_factory=dict)  # metric -> what stands in brackets behind it

    def judge(self, texts: TextSet, kind: RowKind) -> Judged:
        """All figures of a set but those that need another one."""
        words, seed = [text.split() for text in texts.texts], self.asked.seed
        scored, states = self._scored(texts, words)
        measures: dict[str, Callable[[], Interval]] = {
            "entropy": lambda: mean_interval([sequence_entropy(row) for row in words]),
            **{f"distinct_{n}": lambda n=n: whole_share(lambda rows: distinct(rows, n), words) for n in (1, 2, 4)},
            "duplicates": lambda: whole_share(duplicates, texts.texts),
            "self_bleu_4": lambda: self_bleu(words, seed=seed) if scored is None else scored.self_bleu_4,
        }
        figures = {name: attempted(measure, "words between spaces") for name, measure in measures.items()}
        if self.corpus is not None:
            figures |= copied(self.corpus, words)
        if scored is not None:
            costs = {"genppl": scored.perplexity, "nats_per_character": scored.nats_per_character}
            costs |= {"token_entropy": scored.token_entropy}
            figures |= {name: Figure.of(found, f"under {scored.scorer}") for name, found in costs.items()}
        return Judged(texts, kind, figures, scored, states)

    def _scored(
        self, texts: TextSet, words: Sequence[Sequence[str]]
    ) -> tuple[GenerativeText | None, NDArray[np.float32] | None]:
        """What the scorer says, and its states (n, dim); copies of the training text are no matter of its own."""
        if self.scorer is None:
            return None, None
        end = self.scorer.model.tokenizer.separator  # the end of a text has its price as well
        scores, states = self.scorer.read([text + end for text in texts.texts])
        return generative_text(scores, words, Corpus([]), seed=self.asked.seed), states

    def overlap(self, one: Judged, real: Judged) -> None:
        """Add how far a set overlaps with real texts, by the scorer's features."""
        if self.scorer is None or one.states is None or real.states is None:
            return
        try:
            found = mauve(one.states, real.states, embedder=self.scorer.name)
        except ValueError as error:
            one.figures.update(dict.fromkeys(MAUVES, missing(str(error))))
            return
        for name, spread in zip(MAUVES, (found.mauve, found.smoothed, found.frontier_integral), strict=True):
            one.figures[name] = Figure.of(spread.interval(), "the range over seeds of the clustering")
            self.names[name] = found.label()[len("mauve") :]


def score_texts(asked: TextsAsked, command: str, beside: Beside = NOTHING) -> tuple[Path, Path]:
    """Judge texts; returns the paths of report.html and report.json in `asked.out`.

    beside: what the report holds beside its figures.
    Raises PalimpsestError for files that hold no texts and for a scorer that is none.
    """
    began = time.monotonic()
    sets = [open_texts(Path(path), title) for path, title in titles_of("--texts", asked.texts).items()]
    reference = open_texts(Path(asked.reference), "reference")
    beside.check_data(reference.sha256[:16])
    train = None if asked.train is None else open_texts(asked.train, "train", gaps=True)
    scorer = None if asked.scorer is None else Scorer.load(reopen_run(asked.scorer.parent), asked.scorer.name)
    n = min(asked.count or len(reference), len(reference), *map(len, sets))
    for one in (*sets, reference):
        if len(one) > n:
            log.warning("%s: %d of %d texts are judged, as many as of all sets.", one.title, n, len(one))
    corpus = None if train is None else Corpus([text.split() for text in train.texts])
    work = TextScoring(asked, corpus, scorer)
    first, second = reference.halves(n, asked.seed)
    real = work.judge(first.cut(asked.words), "ceiling")
    judged = [work.judge(one.some(n, asked.seed).cut(asked.words), "model") for one in sets]
    if second is not None:
        judged.append(work.judge(dataclasses.replace(second, title=HELD).cut(asked.words), "ceiling"))
    for one in judged:
        work.overlap(one, real)
    hashes = {one.title: one.sha256[:16] for one in (*sets, *([] if train is None else [train]))}
    report = _report(work, judged, real, reference, hashes, command, time.monotonic() - began)
    return write_report(beside.added_to(report), asked.out)


def _report(
    work: TextScoring, judged: Sequence[Judged], real: Judged, reference: TextSet, hashes: Mapping[str, str],
    command: str, seconds: float,
) -> Report:  # fmt: skip
    asked, scorer = work.asked, "" if work.scorer is None else work.scorer.name
    n, titles = len(real.texts), [one.texts.title for one in judged if one.kind == "model"]
    figures = named_figures(work, [*judged, real], n)
    return Report(
        title="Palimpsest: " + ", ".join(titles),
        summary=f"{n} texts of each set beside {n} of {asked.reference}",
        provenance=made_by(
            recipe="texts from anywhere",
            recipe_hash=digest([dict(hashes), reference.sha256])[:16],
            command=command,
            resolved={key: value and str(value) for key, value in dataclasses.asdict(asked).items()},
            seeds={"scoring": asked.seed},
            artefacts=dict([scorer.split(":")]) if scorer else {},
            data={**hashes, "hash": reference.sha256[:16], "reference": asked.reference},
            wall_time={"scoring": seconds},
        ),
        sections=[
            Section("Texts", tables(scorer, judged, real), lead=lead(judged, real)),
            Section("Distributions", charts(work.corpus, judged, real)),
            Section("Samples", [samples(one) for one in (*judged, real)]),
        ],
        figures=figures,
        highlights=[name for name in figures if len(titles) == 1 and name.startswith(f"{titles[0]}.")][:8],
    )


def copied(train: Corpus, words: Sequence[Sequence[str]]) -> dict[str, Known]:
    """How much of texts stands in the training set word by word."""
    runs = train.longest_copied(words)
    shares = [run / max(1, len(row)) for run, row in zip(runs, words, strict=True)]
    source = "of the training text"
    return {
        "copied": attempted(lambda: share_interval([tuple(row) in train.texts for row in words]), source),
        "longest_copied_share": attempted(lambda: mean_interval(shares), source),
        "longest_copied": Figure(max(runs), len(runs), source=f"{source}; the largest of all, no interval"),
    }


def named_figures(work: TextScoring, judged: Sequence[Judged], n: int) -> dict[str, Known]:
    """Figures under the names that report.json has for them: SET.METRIC[what it hangs on]."""
    cut = "" if work.asked.words is None else f"|cut={work.asked.words}"
    found = dict[str, Known]()
    for one in judged:
        subject = "real" if one.kind == "ceiling" and one.texts.title == HELD else one.texts.title
        for metric, figure in one.figures.items():
            by = work.scorer.name if work.scorer and metric in dict(SCORED) else "words"
            size = min(n, BLEU_TEXTS) if metric == "self_bleu_4" else n
            brackets = work.names.get(metric, f"[{by}|n={size}]")
            found[f"{subject}.{metric}{brackets[:-1]}{cut}]"] = figure
    return found
