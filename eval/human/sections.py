"""The sections of a study's report as plain blocks."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from eval.blocks import Bars, Block, Cell, Column, Dots, Section, Table, Texts
from eval.figure import Figure, Known, Missing
from eval.human.analysis import Results, View
from eval.human.audit import Rater
from eval.human.criteria import CRITERIA
from eval.human.metrics import Fit
from eval.human.outcomes import Outcome, Standing
from eval.human.power import design_effect, sign_test_power, votes_needed
from eval.human.study import Study
from eval.human.votes import Vote
from eval.interval import Interval

NONE = "–"
GLANCE = 6  # pairs that one chart shows


def outcome_section(study: Study, results: Results) -> Section:
    """What people preferred: win rates with and without the excluded raters, and the sign test."""
    main, all_of = results.main, {_pair(o): o for o in results.everyone.outcomes}
    both = results.kept is not None and results.kept is not results.everyone
    likert = study.mode == "likert"
    names: list[Column | str] = ["criterion", "pair", Column("win rate", "share")]
    names += [Column("of all raters", "share")] if both else []
    names += ["mean difference"] if likert else []
    names += ["wins", "ties", *(["both bad"] if study.both_bad and not likert else []), "losses"]
    names += ["prompts won / tied / lost", "sign test p", "p (Holm)"]
    rows: list[list[Cell]] = []
    for one in main.outcomes:
        row: list[Cell] = [one.criterion, f"{one.model_a} over {one.model_b}", _cell(one.win_rate)]
        row += [_cell(all_of[_pair(one)].win_rate)] if both else []
        row += [_cell(one.difference)] if likert else []
        row += [one.wins, one.ties, *([one.both_bad] if study.both_bad and not likert else []), one.losses]
        rows.append([*row, f"{one.prompts_won} / {one.prompts_tied} / {one.prompts_lost}", one.p, one.p_holm])
    drawn = "prompts and raters are" if study.resample == "prompts and raters" else "whole prompts are"
    note = (
        f"A tie counts half. For intervals {drawn} resampled. The exact sign test counts a prompt once, by its "
        f"majority, and drops tied prompts; Holm's correction is over all {len(main.outcomes)} rows."
    )
    blocks: list[Block] = [*_rate_charts(main.outcomes), Table("Every pair on every criterion", names, rows, note)]
    lead = " ".join(note[0].upper() + note[1:] + "." for note in results.notes)
    return Section("What people prefer", blocks, lead)


def strength_section(study: Study, shown: View) -> Section | None:
    """Bradley-Terry strengths, or mean grades."""
    if study.mode == "likert":
        rows: list[list[Cell]] = [[grade.criterion, grade.model, _cell(grade.mean)] for grade in shown.grades]
        chart = {m: {g.criterion: _known(g.mean) for g in shown.grades if g.model == m} for m in study.models}
        table = Table(
            "Mean grades", ["criterion", "model", "grade"], rows, "1 is worst and 5 is best on every criterion."
        )
        return Section("Grades", [Dots("Mean grades", chart, unit="plain"), table])
    if len(study.models) < 3 or not shown.standings:
        return None
    chart = {model: {s.criterion: _points(s, model) for s in shown.standings} for model in study.models}
    anchor = shown.standings[0].anchor
    dots = Dots(f"Strength in points above {anchor}", chart, unit="plain", reference=0.0,
                note="400 points are odds of ten to one (400 / ln 10 times the strength in nats).")  # fmt: skip
    return Section(
        "Strengths", [dots, _strength_table(shown, anchor), *(_win_matrix(s, study) for s in shown.standings)]
    )


def agreement_section(shown: View) -> Section:
    """How far raters agree."""
    rows: list[list[Cell]] = [
        [one.criterion, _cell(one.alpha) if one.alpha else Missing("every answer was the same"), one.level,
         Figure(one.raw, one.items), one.items]
        for one in shown.agreement
    ]  # fmt: skip
    names = ["criterion", "Krippendorff's alpha", "level", Column("equal answers", "share"), "judged by two or more"]
    note = (
        "Alpha is 1 for perfect agreement and 0 for what chance gives. Tastes differ, so low values are normal where "
        "people are asked what they prefer; .667 and .8 are guides for codings of facts. Intervals resample pairs."
    )
    return Section("Agreement", [Table("Agreement of raters", names, rows, note)] if rows else [],
                   empty="No pair was judged by two raters, so their agreement is unknown.")  # fmt: skip


def defect_section(study: Study, shown: View) -> Section | None:
    """Which defects were named."""
    if not shown.tags:
        return None
    tags = list(dict.fromkeys(one.tag for one in shown.tags))
    rows: list[list[Cell]] = []
    for model in study.models:
        own = {one.tag: one.share for one in shown.tags if one.model == model}
        rows.append([model, *(_cell(own.get(tag)) for tag in tags)])
    note = "Share of judged pictures in which the rater named the defect; naming was free, so these are lower bounds."
    return Section(
        "Defects", [Table("Defects by kind", ["model", *(Column(tag, "share") for tag in tags)], rows, note)]
    )


def rater_section(study: Study, results: Results, votes: Sequence[Vote]) -> Section:
    """The audit of the raters and who was excluded."""
    names: list[Column | str] = [
        "rater", "answers", Column("controls as expected", "share"), Column("repeats alike", "share"), "median seconds",
        Column("left", "share"), Column("commonest answer", "share"), Column("ties", "share"), "excluded because",
    ]  # fmt: skip
    rows = [_rater_row(rater) for rater in results.raters]
    rules = study.exclude
    note = (
        f"Registered rules: at least {rules.min_gold:.0%} of controls as expected (one failure excludes nobody), "
        f"median time of at least {rules.min_median_ms / 1000:g} s"
        + (f", at least {rules.min_consistency:.0%} of repeats alike" if rules.min_consistency else "")
        + (f", at most {rules.max_side:.0%} of answers for one side" if rules.max_side else "")
        + "."
    )
    shown = results.main
    checks: list[list[Cell]] = [
        ["repeated pairs answered alike with sides swapped", _cell(shown.consistency)],
        ["answers for the left picture (ties left out)", _cell(shown.left)],
    ]
    blocks: list[Block] = [Table("Every rater", names, rows, note),
                           Table("All raters that count", ["check", Column("share", "share")], checks)]  # fmt: skip
    return Section("Raters", [*blocks, *_times(votes)])


def metric_section(study: Study, fits: Sequence[Fit]) -> Section | None:
    """Automatic metrics beside people."""
    if not fits:
        return None
    names = ["metric", "criterion", "over", Column("orders as people do", "share"), "Kendall's tau", "pairs"]
    rows: list[list[Cell]] = [[f.metric, f.criterion, f.over, _cell(f.accuracy), f.tau, f.accuracy.n] for f in fits]
    note = (
        "Over models: pairs of models that the metric orders as the strengths do; the interval is that of the "
        "strengths. Over prompts: pairs of pictures on which most people agree; prompts are resampled. 50 % is chance. "
        "With few models a metric can agree by luck."
    )
    return Section("Metrics and people", [Table("Which metric to trust here", names, rows, note)])


def design_section(study: Study, registered: Mapping[str, Any]) -> Section:
    """What was fixed before the first vote, what it could find, and what raters were told."""
    prompts = len(registered["prompts"])
    least = next((d / 200 for d in range(2, 100) if votes_needed(0.5 + d / 200) <= prompts), None)
    rows: list[list[Cell]] = [
        ["registered as", registered["hash"]],
        ["prompts", prompts],
        ["raters for every pair", study.raters],
        ["design effect of that many raters, at rho .3", design_effect(study.raters, 0.3)],
        ["criteria", ", ".join(study.criteria)],
        ["win rate found with 80 % power (one vote a prompt)", NONE if least is None else f"{0.5 + least:.1%}"],
        ["power of the exact sign test at a win rate of 60 %", f"{sign_test_power(prompts, 0.6):.0%}"],
    ]
    asked = [CRITERIA[name] for name in study.criteria]
    words = [(one.name, f"{one.pair if study.mode == 'pairwise' else one.grade} {one.about}") for one in asked]
    told = Texts("What raters were asked", words)
    return Section("What was registered", [Table("Design", ["what", "value"], rows), told])


def _rate_charts(outcomes: Sequence[Outcome]) -> list[Block]:
    """One chart for each criterion of few pairs, else none: the table says it."""
    charts: list[Block] = []
    for criterion, rows in groupby(outcomes, key=lambda one: one.criterion):
        pairs = list(rows)
        if len(pairs) <= GLANCE:
            chart = {f"{one.model_a} over {one.model_b}": {"win rate": _known(one.win_rate)} for one in pairs}
            charts.append(Dots(f"{criterion}: win rate", chart, reference=0.5))
    return charts


def _strength_table(shown: View, anchor: str) -> Table:
    names = ["criterion", "model", f"points above {anchor}", "strength", "rank", Column("first in", "share")]
    rows: list[list[Cell]] = [
        [
            row.criterion,
            row.model,
            _cell(row.points),
            _cell(row.theta),
            _ranks(row.rank),
            Figure(row.p_best, row.rank.n),
        ]
        for standing in shown.standings
        for row in standing.strengths
    ]
    note = (
        "Bradley-Terry strengths in nats, with sum 0 over the models; one fit over all votes, ties half. Ranks with "
        "the range that 95 % of resamples leave; the last column is the share of resamples in which the model is first."
    )
    return Table("Strengths and ranks", names, rows, note)


def _win_matrix(standing: Standing, study: Study) -> Table:
    rows: list[list[Cell]] = []
    for i, model in enumerate(study.models):
        row: list[Cell] = [model]
        for j in range(len(study.models)):
            met = standing.wins[i][j] + standing.wins[j][i]
            row.append(Figure(standing.wins[i][j] / met, round(met)) if met else None)
        rows.append(row)
    columns = ["", *(Column(f"over {model}", "share") for model in study.models)]
    return Table(f"{standing.criterion}: share of votes for the row", columns, rows)


def _rater_row(rater: Rater) -> list[Cell]:
    def share(value: float | None, n: int) -> Cell:
        return None if value is None else Figure(value, n)

    seconds = None if rater.median_ms is None else round(rater.median_ms / 1000, 1)
    return [rater.rater, rater.answers, share(rater.gold, rater.golds), share(rater.alike, rater.repeats), seconds,
            share(rater.left, rater.answers), share(rater.same, rater.answers), share(rater.ties, rater.answers),
            "; ".join(rater.excluded)]  # fmt: skip


def _times(votes: Sequence[Vote]) -> list[Block]:
    """How long answers took, up to where all but a hundredth lie."""
    seconds = np.array([vote.rt_ms / 1000 for vote in votes if vote.rt_ms is not None])
    if len(seconds) < 10:
        return []
    top = max(float(np.quantile(seconds, 0.99)), 0.1)
    heights, edges = np.histogram(np.minimum(seconds, top), bins=24, range=(0, top))
    shown = "the last bar holds all longer ones"
    return [Bars("Time for an answer", edges.tolist(), heights.tolist(), "seconds", "answers", note=shown)]


def _points(standing: Standing, model: str) -> Known:
    return _known(next(row.points for row in standing.strengths if row.model == model))


def _ranks(rank: Interval) -> str:
    low, high = round(rank.low), round(rank.high)
    return f"{rank.value:.0f}" if low == high else f"{rank.value:.0f} ({low} to {high})"


def _pair(outcome: Outcome) -> tuple[str, str, str]:
    return outcome.criterion, outcome.model_a, outcome.model_b


def _known(interval: Interval) -> Known:
    return Figure.of(interval, "")


def _cell(interval: Interval | None) -> Cell:
    return Figure.of(interval, "") if interval else None
