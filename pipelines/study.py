"""Human studies from a study file: planned, exported, imported, reported, and tried with synthetic raters."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.human.analysis import Results, analyse
from eval.human.errors import named
from eval.human.export import export
from eval.human.importing import import_votes
from eval.human.key import read_key
from eval.human.outcomes import Outcome
from eval.human.power import Effort, planned
from eval.human.report import Material, write_report
from eval.human.simulate import Truth, answer_pages, recovered, synthetic_votes
from eval.human.study import Source, Study, study_hash
from eval.human.votes import read_votes, write_votes
from pipelines.artefact import read_json
from pipelines.config import parse
from pipelines.errors import PalimpsestError
from pipelines.study_file import gather, load_study
from pipelines.study_metrics import agreements
from pipelines.version import code_version


@dataclass(frozen=True)
class Registered:
    """A study as it was registered in its folder."""

    study: Study
    identity: str
    content: dict[str, Any]


def export_study(path: Path, out: Path) -> str:
    """Write the study that a file describes and say what to do with it."""
    study = load_study(path)
    found = gather(study)
    sources = {name: dataclasses.replace(source, figures=found.figures[name]) for name, source in study.model.items()}
    study = dataclasses.replace(study, model=sources)
    made = export(study, found.prompts, found.pictures, out, truth=found.truth)
    (out / "study.toml").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    pages = sorted((made.bundle / "pages").iterdir())
    lines = [
        f"Study {made.study}: {made.items} items in {made.blocks} blocks, one for each rater.",
        *(f"  note           {note}" for note in found.notes),
        f"  for raters     {pages[0]} ... {pages[-1].name}   (one each; they send back votes.json)",
        f"  for platforms  {made.bundle}/labelstudio, mturk.csv, toloka.tsv, prolific.csv",
        f"  registered     {out / 'registered.json'}   (publish its hash before the first vote)",
        f"  keep sealed    {made.key}",
        f"Then: palimpsest study import VOTES ... --study {out}",
    ]
    return "\n".join(lines)


def import_study(files: Sequence[Path], folder: Path, *, names: bool) -> str:
    """Turn the raters' files into the long table of votes; returns what was read."""
    if not files:
        raise PalimpsestError("No votes were given: name the files that raters or platforms sent back.")
    read = import_votes(files, read_key(folder / "key.sealed.json"), names=names)
    write_votes(folder / "votes.csv", read.votes)
    raters = {vote.rater_id for vote in read.votes}
    lines = [
        f"{len(read.votes)} answers of {len(raters)} raters from {len(files)} files",
        *(f"  note: {n}" for n in read.notes),
    ]
    return "\n".join([*lines, f"  {folder / 'votes.csv'}", f"Then: palimpsest study report {folder}"])


def registered(folder: Path) -> Registered:
    """Read what was registered. Raises PalimpsestError where it was changed since."""
    path = folder / "registered.json"
    if not path.exists():
        raise PalimpsestError(
            f"{folder} holds no study (no registered.json): give the folder that `study export` wrote."
        )
    content = read_json(path)
    if not isinstance(content, dict) or not {"hash", "study", "prompts"} <= set(content):
        raise PalimpsestError(f"{path} is no registered study: give the folder that `study export` wrote.")
    found = study_hash({name: value for name, value in content.items() if name != "hash"})
    if found != content["hash"]:
        raise PalimpsestError(
            f"{path} was changed after it was registered: its hash is {content['hash']}, its content has {found}. Put "
            "the registered file back."
        )
    return Registered(parse(Study, content["study"], str(path)), found, content)


def material_of(folder: Path, figures: Path | None = None) -> Material:
    """Evaluate the imported votes of a study. figures: report.json, whose metrics are compared with people."""
    known = registered(folder)
    votes = read_votes(folder / "votes.csv", known.study, known.identity)
    results = analyse(votes, known.study, known.identity)
    fits = agreements(votes, results, known.study, known.content["prompts"], figures) if figures else []
    asked = f"palimpsest study report {folder}" + (f" --figures {figures}" if figures else "")
    versions = {package: version(package) for package in ("numpy", "scipy")}
    return Material(known.study, results, votes, known.content, fits, asked, code_version(), versions)


def report_study(folder: Path, figures: Path | None) -> str:
    """Evaluate the imported votes and write the report; returns the main figures as lines of text."""
    material = material_of(folder, figures)
    page, twin = write_report(material, folder)
    return "\n".join([*_said(material.results), f"  {page}", f"  {twin}"])


def plan_study(asked: Effort) -> str:
    """Say how large a study must be."""
    found = planned(asked)
    rate = 0.5 + asked.mde
    price = "" if found.price is None else f", {found.price:,.0f} at {asked.rate:g} an hour"
    return "\n".join(
        [
            f"To find a win rate of {rate:.1%} with {asked.power:.0%} power (two-sided, level {asked.alpha:g}"
            + (f" over {asked.tests} tests):" if asked.tests > 1 else "):"),
            f"  independent votes       {found.votes}",
            f"  design effect           {found.deff:.2f}   ({asked.raters} raters, correlation {asked.rho:g})",
            f"  prompts                 {found.prompts}   (more prompts beat more raters)",
            f"  power, exact sign test  {found.exact_power:.1%}",
            f"  judgements              {found.judgements:,}   (pairs: {asked.pairs}, questions: {asked.criteria})",
            f"  raters                  {found.blocks}   (of {asked.block} pairs each)",
            f"  hours of raters         {found.hours:.1f}{price}   ({asked.seconds:g} s a question)",
        ]
    )


def simulate_study(truth: Truth, *, prompts: int, raters: int, seed: int, studies: int, out: Path | None) -> str:
    """Run a study on synthetic raters through the real export and import, and say what was recovered."""
    models = {f"model {chr(ord('A') + i)}": Source(folder="synthetic") for i in range(len(truth.strengths))}
    study = Study(name="simulated", model=models, criteria=("preference",), raters=raters, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        results, key = _simulated(study, truth, prompts, out or Path(folder))
    careless = sum(rater.excluded != () for rater in results.raters)
    lines = [f"{len(key.items)} items, {len(results.raters)} raters, {careless} excluded by the rules."]
    lines += [f"{'':<42}{'true':>8}{'found':>8}  95 % interval"]
    for one in recovered(results.main.outcomes, results.main.standings, study.models, truth):
        mark = "" if one.covered else "  misses"
        lines.append(f"{one.what:<42}{one.true:>8.3f}{one.value:>8.3f}  [{one.low:.3f}, {one.high:.3f}]{mark}")
    if studies > 1:
        lines += _coverage(study, truth, prompts, seed, studies)
    return "\n".join(lines)


def _simulated(study: Study, truth: Truth, prompts: int, out: Path) -> tuple[Results, Any]:
    """One study through files: pictures of noise, pages, votes, the table."""
    rng = np.random.default_rng(study.seed)
    words = [f"prompt {i}" for i in range(prompts)]

    def noise() -> list[Image.Image]:
        return [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in words]

    made = export(study, words, {model: noise() for model in study.models}, out, truth=noise())
    key = read_key(made.key)
    files = []
    for page in answer_pages(key, truth, rng):
        files.append(out / "answers" / f"{page['rater']}.json")
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_text(json.dumps(page), encoding="utf-8")
    write_votes(out / "votes.csv", import_votes(files, key).votes)
    return analyse(read_votes(out / "votes.csv", study, made.study), study, made.study), key


def _coverage(study: Study, truth: Truth, prompts: int, seed: int, studies: int) -> list[str]:
    """How often intervals hold the truth over many simulated studies."""
    hits: dict[str, int] = {}
    for trial in range(studies):
        votes = synthetic_votes(study, prompts, truth, np.random.default_rng((seed, trial)))
        shown = analyse(votes, study, "synthetic", draws=500).main
        for one in recovered(shown.outcomes, shown.standings, study.models, truth):
            hits[one.what] = hits.get(one.what, 0) + one.covered
    return [f"Over {studies} studies the 95 % intervals hold the truth in:",
            *(f"  {what:<40}{count / studies:>8.1%}" for what, count in hits.items())]  # fmt: skip


def _said(results: Results) -> list[str]:
    """The main figures in lines."""
    out = [rater.rater for rater in results.raters if rater.excluded]
    lines = [f"{results.main.votes} judgements of {results.main.raters} raters"]
    lines += [f"  excluded by the registered rules: {named(out)}"] if out else []
    lines += [f"  note: {note}" for note in results.notes]
    return lines + [_line(outcome) for outcome in results.main.outcomes]


def _line(one: Outcome) -> str:
    rate = one.win_rate
    return (
        f"  {one.criterion:<12} {one.model_a} over {one.model_b}: {rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}] "
        f"over {rate.n} prompts (win {one.wins}, tie {one.ties + one.both_bad}, loss {one.losses}; sign test "
        f"p = {one.p:.3f}, corrected {one.p_holm:.3f})"
    )
