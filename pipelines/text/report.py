"""Stage three of text: what held-out text costs under each model, and how texts look against evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from discrete.autoregressive import next_token_nll
from discrete.objective import Autoregressive, Masked
from discrete.text_model import TextTransformer
from eval.blocks import Column, Row, Section, Table
from eval.figure import Figure, Known
from eval.interval import Interval, cluster_bootstrap, mean_interval
from eval.report import write_report
from eval.text import TextBound, neighbours, window_bound
from pipelines.evaluate import curves, report_of
from pipelines.hardware import device_of
from pipelines.runs import Run
from pipelines.sweep_csv import write_csv
from pipelines.sweep_report import apart
from pipelines.sweep_rows import ROWS, read_rows
from pipelines.text.config import TextEvalStage, TextModelStage, TextSweepStage
from pipelines.text.corpus import Corpus, TokenText, read_text, tokenise
from pipelines.text.detokenise import detokenise
from pipelines.text.likelihood import TextCost, cost, exact_cost, pieces
from pipelines.text.sampler import TextSampler
from pipelines.text.sweep_report import sweep_sections

PROTOCOL = (
    "Windows of {length} tokens that do not overlap, the last one being as short as what is left; nothing is read "
    "before a window and each of its tokens is counted once. Bounds are means over {draws} masks of each window, one "
    "from each stratum of the masked share, {repeats} times; they stand with <=. Intervals are over runs of "
    "neighbouring windows."
)
DOCUMENTS = (
    "Each document is read on its own. Masked models see where documents end, so that theirs are costs given the "
    "lengths."
)


@dataclass
class TextEvaluation:
    """One evaluation while it is being made."""

    run: Run
    name: str
    stage: TextEvalStage
    figures: dict[str, Known] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    samplers: dict[str, TextSampler] = field(default_factory=dict)

    def network(self, model: str) -> TextTransformer:
        """The network of a model, loaded once."""
        if model not in self.samplers:
            self.samplers[model] = TextSampler.load(self.run, model)
        return self.samplers[model].network

    @property
    def models(self) -> dict[str, TextModelStage]:
        """The text models that the report is about: those that the stage names."""
        found = {name: self.run.recipe.stage[name] for name in self.stage.needs}
        return {n: s for n, s in found.items() if isinstance(s, TextModelStage)}

    def separated(self, model: str) -> bool:
        """Whether the model reads each document of a text on its own."""
        return self.samplers[model].tokenizer.end_id is not None

    def note(self, name: str, interval: Interval, source: str) -> Figure:
        """Keep a figure."""
        made = self.figures[name] = Figure.of(interval, source)
        return made


def evaluate_text(run: Run, name: str, stage: TextEvalStage) -> dict[str, Any]:
    """Compute all figures and write report.html and report.json beside the manifest."""
    e = TextEvaluation(run, name, stage)
    corpora = {model: Corpus.load(run, model) for model in e.models}
    test = {model: corpus.splits["test"] for model, corpus in corpora.items()}
    e.sections.append(_costs(e, "test", test, "Cost of the held-out text"))
    for other in stage.other:
        text = detokenise(read_text(run.data / other.file), other.detokenise)
        found = {model: tokenise(corpus.tokenizer, text) for model, corpus in corpora.items()}
        e.sections.append(_costs(e, f"{other.file}|{other.detokenise}", found, f"Zero-shot: {other.file}"))
    e.sections += _short(e, test)
    rows, swept_figures = {}, {}
    for sweep in run.recipe.forerunners(name):
        if isinstance(swept := run.recipe.stage[sweep], TextSweepStage):
            rows[sweep] = list(read_rows(run.stage_folder(sweep) / ROWS).values())
            swept_figures[sweep], sections = sweep_sections(sweep, swept, rows[sweep])
            e.sections += sections
    e.figures |= apart(swept_figures)
    write_csv(run.stage_folder(name), rows)
    e.sections.append(curves(run))
    characters = int(next(iter(test.values())).characters.sum())
    summary = f"files; {len(e.models)} models, judged on text of {characters} held-out characters. "
    page, figures = write_report(
        report_of(run, name, e.figures, e.sections, summary + getattr(run.recipe.data, "credit", "")),
        run.stage_folder(name),
    )
    return {"report": page.name, "figures": figures.name, "count": len(e.figures)}


def _costs(e: TextEvaluation, key: str, texts: Mapping[str, TokenText], title: str) -> Section:
    """What a text, as each model's tokens, costs under every model, and how far each is from the autoregressive one."""
    found = dict[str, TextCost]()
    for name, stage in e.models.items():
        network, end_id = e.network(name), e.samplers[name].tokenizer.end_id
        options = {"draws": e.stage.draws, "repeats": e.stage.repeats, "end_id": end_id}
        label = f"{name} on {key}"
        text = texts[name] if e.stage.windows is None else texts[name].cut(e.stage.windows * stage.length)
        found[name] = cost(network, stage.objective, text, stage.length, name=label, **options)
    exact = [name for name, stage in e.models.items() if isinstance(stage.objective, Autoregressive)]
    missed = {name: _unknown(e, name, text) for name, text in texts.items()}
    rows = [_cost_row(e, name, key, found, exact, whole=not missed[name]) for name in e.models]
    columns = ["model", "objective", "parameters", "tokens trained on", "tokens read",
               Column("bits per character", "plain", "lower"),
               Column("above the autoregressive model", "share", "lower"),
               Column("perplexity per token", "plain", "lower"), Column("bits per byte", "plain", "lower"),
               "Monte-Carlo error of the bound"]  # fmt: skip
    lengths = sorted({stage.length for stage in e.models.values()})
    how = PROTOCOL.format(length=" or ".join(map(str, lengths)), draws=e.stage.draws, repeats=e.stage.repeats)
    if e.stage.windows is not None:
        how += f" Counted are the first {e.stage.windows} windows of the text."
    if any(e.separated(name) for name in e.models):
        how += " " + DOCUMENTS
    for count in sorted({*missed.values()} - {0}):
        names = ", ".join(name for name, unknown in missed.items() if unknown == count)
        how += f" Unknown to the tokenizer of {names} are {count} characters of the text, each of which costs as one "
        how += "unknown token: such a cost is no bound on that of the text."
    if key != "test":
        how += f" The text is no part of the recipe's training; it is {key.split('|')[0]}, detokenised by the rule "
        how += f"{key.split('|')[1]!r}."
    return Section(title, [Table("Cost by model", columns, rows)], lead=how)


def _short(e: TextEvaluation, texts: Mapping[str, TokenText]) -> list[Section]:
    """The likelihood of short pieces over all orders, beside the bound on it and the autoregressive cost.

    Not of models that read documents apart: a piece of one is none.
    """
    length, count, rows = e.stage.short, e.stage.short_count, list[Row]()
    source = f"{count} pieces of {length} tokens, each alone"
    for name, stage in e.models.items():
        network = e.network(name)
        if e.separated(name):
            continue
        cells: list[Figure | None] = []
        if isinstance(stage.objective, Autoregressive):
            x = pieces(texts[name], length, count).to(device_of(network))
            costs = [next_token_nll(network, x).double().sum(-1).cpu()]
        elif isinstance(stage.objective, Masked):
            costs = list(exact_cost(network, stage.objective, texts[name], length, count))
        else:
            continue
        for what, values in zip(("nats", "bound"), costs, strict=False):
            interval = mean_interval(values.numpy() / length)
            cells.append(e.note(f"{name}.text[short].{what}_per_token", interval, source))
        rows.append(Row([name, *cells, *[None] * (2 - len(cells))]))
    columns = ["model", Column("exact nats per token", "plain", "lower"), Column("its bound", "plain", "lower")]
    lead = f"{source}: the mean over all orders of revealing tokens, from all {2**length} maskings, without chance."
    return (
        [Section("Exact likelihood of short pieces", [Table("All orders", columns, rows)], lead=lead)] if rows else []
    )


def _unknown(e: TextEvaluation, model: str, text: TokenText) -> int:
    """How many characters of a text the model's tokenizer does not know."""
    unknown = e.samplers[model].tokenizer.unknown_id
    return 0 if unknown is None else int((text.ids == unknown).sum())


def _cost_row(
    e: TextEvaluation, name: str, text: str, found: Mapping[str, TextCost], exact: Sequence[str], *, whole: bool
) -> Row:
    """What one model says of a text. whole: whether its tokens are all of the text."""
    stage, mine, is_exact = e.models[name], found[name], name in exact
    given = e.separated(name) and not is_exact  # where the documents end costs it nothing
    key, bound = f"{name}.text[{text}{'|given lengths' if given else ''}]", _bound(mine)
    what = "given where documents end" if given else "exact" if is_exact else "upper bound"
    what = what if whole else f"{what}, unknown characters as one token"
    source = f"{what}, {len(mine.tokens)} windows of {stage.length} tokens, in float32"
    bits = e.note(f"{key}.bits_per_character", bound.bits_per_character, source)
    gap = None
    if exact and not is_exact and not given and (above := gap_to(found[exact[0]], mine)) is not None:
        gap = e.note(f"{key}.above_{exact[0]}", above, f"{source}; paired by windows with {exact[0]}")
    others = [
        e.note(f"{key}.perplexity", _exp(bound.nats_per_token), source),
        e.note(f"{key}.bits_per_byte", bound.bits_per_byte, source),
    ]
    made = e.run.manifest(name)
    read = made["tokens"] * stage.objective.readings
    error = "" if is_exact else f"{bound.monte_carlo_se / bound.nats_per_token.value:.2%}"
    label = f"{name}, lengths given" if given else name if is_exact or not whole else f"<= {name}"
    return Row([label, stage.objective.kind, made["parameters"], made["tokens"], read, bits, gap, *others, error])


def gap_to(exact: TextCost, bound: TextCost) -> Interval | None:
    """A bound over the exact cost of the same windows, less one; None where the windows are not the same.

    A last window that one of them could not count whole is left out.
    """
    count = min(len(exact.tokens), len(bound.tokens))
    same = (exact.tokens[:count] == bound.tokens[:count]) & (exact.characters[:count] == bound.characters[:count])
    if not bool(same[:-1].all()) or max(len(exact.tokens), len(bound.tokens)) - count > 1:
        return None
    costs = [_mean(one)[:count][same.numpy()] for one in (bound, exact)]
    ratio = cluster_bootstrap(costs[0], neighbours(len(costs[0])), weights=costs[1])
    return Interval(ratio.value - 1, ratio.low - 1, ratio.high - 1, ratio.n)


def _mean(found: TextCost) -> NDArray[np.float64]:
    return found.nats.mean(1).numpy()


def _exp(found: Interval) -> Interval:
    return Interval(math.exp(found.value), math.exp(found.low), math.exp(found.high), found.n)


def _bound(found: TextCost) -> TextBound:
    columns = (column.numpy() for column in (found.nats, found.tokens, found.characters, found.bytes))
    return window_bound(*columns)
