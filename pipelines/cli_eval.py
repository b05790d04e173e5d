"""The verbs `palimpsest eval` and `palimpsest compare`."""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from pipelines.errors import PalimpsestError

if TYPE_CHECKING:
    from pipelines.beside import Beside

Recipe = Annotated[Path | None, tyro.conf.Positional]
Report = Annotated[Path, tyro.conf.Positional]
Data = Annotated[str | None, tyro.conf.arg(metavar="DIR|URL")]
Overrides = Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="KEY=VALUE ...")]
Folders = Annotated[tuple[str, ...], tyro.conf.arg(metavar="DIR ...")]
Files = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE ...")]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="KIND[=PATH] ...")]


def evaluate(
    recipe: Recipe = None, out: Path = Path("runs"), data: Data = None, set_: Overrides = (), generated: Folders = (),
    reference: str = "", embedders: Names = (), prompts: Path | None = None, split: str = "train",
    held_out: str = "",
    count: int | None = None, reference_count: int | None = None, as_they_are: bool = False,
    card: bool = False, texts: Files = (), train: Path | None = None, scorer: Path | None = None,
    words: int | None = None, seed: int = 0, against: Path | None = None, study: Path | None = None,
    self_test: bool = False,
) -> None:  # fmt: skip
    """Judge the models of a recipe, or pictures from anywhere, and write report.html and report.json.

    palimpsest eval recipes/scenes.toml: all figures of a run.

    palimpsest eval --generated DIR ... --reference DIR: folders of pictures, whoever made them, against another one.

    palimpsest eval --texts FILE ... --reference FILE: texts, whoever wrote them, beside real ones.

    palimpsest eval --self-test: the metrics against known answers on this machine.

    Args:
        recipe: a TOML file with a stage of kind eval, or text_eval.
        out: where runs are kept; of pictures from anywhere, the folder of the report and of the features.
        data: folder of shards, or its address.
        set_: recipe values to change.
        generated: folders of pictures, or of shards; several stand side by side.
        reference: a folder of pictures or shards, its address, or an .npz of statistics (mu and sigma); of texts a
            file as theirs.
        embedders: inception=FILE, inception-torchvision=FILE, openclip=FOLDER, dinov2=FOLDER, judge=FOLDER,
            random-conv, pixels-pca; the last two without any weights where none is named.
        prompts: a .csv or .jsonl of file and caption; captions are also found beside the pictures.
        held_out: real pictures that no model has seen, beside which copies of the reference show; of shards the test
            split, where none is named.
        split: of shards: train, test or unseen.
        count: pictures, or texts, of each set at most.
        reference_count: pictures of the reference at most.
        as_they_are: leave the reference at its own size, where else it is brought to that of what was generated.
        card: measure whether each embedder sees damage: blur, noise, JPEG, kinds of pictures that are lost.
        texts: files of texts: .txt (a text a line), .jsonl or .json (texts, or objects with a text), or folders of
            .txt files; several stand side by side.
        train: of texts: what the models were trained on, in which copies are looked for.
        scorer: of texts: RUN/STAGE of an autoregressive text model, for perplexity and MAUVE.
        words: cut every text to so many words, since entropy and variety grow with length.
        seed: of what is drawn.
        against: an earlier report.json on the same data, or a folder that holds one: the new report says what differs.
        study: the folder of a human study whose votes are imported: what people said stands in the same report.
        self_test: measure known answers, print them, and end with 1 where a metric misses one.
    """
    if self_test:
        if recipe is not None or generated or texts:
            raise PalimpsestError("--self-test stands alone: it judges metrics, neither a recipe nor pictures.")
        return test_metrics()
    from pipelines.beside import Beside

    beside, command = Beside.read(against, study), shlex.join(["palimpsest", *sys.argv[1:]])
    where = Path("scores") if out == Path("runs") else out
    if texts:
        if recipe is not None or generated or not reference:
            raise PalimpsestError("--texts takes --reference beside it, and neither a recipe nor --generated.")
        from pipelines.scoring.texts import TextsAsked, score_texts

        wanted = TextsAsked(
            texts=texts, reference=reference, out=where, train=train, scorer=scorer, count=count, words=words, seed=seed
        )
        made = score_texts(wanted, command, beside)
    elif generated:
        if recipe is not None or not reference:
            raise PalimpsestError("--generated takes --reference beside it, and no recipe.")
        from pipelines.scoring.score import Asked, score

        asked = Asked(
            generated=generated, reference=reference, out=where, embedders=embedders, prompts=prompts,
            held_out=held_out, split=split, count=count, reference_count=reference_count, as_they_are=as_they_are,
            card=card, seed=seed,
        )  # fmt: skip
        made = score(asked, command, beside)
    elif recipe is not None:
        return run_kind(("eval", "text_eval"), recipe, out, data, set_, beside)
    else:
        raise PalimpsestError("Name a recipe, or --generated or --texts with --reference beside it.")
    from pipelines.hardware import is_main

    if is_main():
        print(*made, sep="\n")
    return None


def test_metrics() -> None:
    """Print the self-test; the exit code is 1 where a metric misses its known answer."""
    from eval.selftest import alarm, numbers, self_test, verdict

    checks = self_test()
    for one in checks:
        got = numbers(one.got) or one.error
        print(f"{verdict(one):<10}{one.name:<24}{got}  (expected {numbers(one.expected)} within {one.tolerance:g})")
    print(alarm(checks) or f"All {len(checks)} metrics give their known answers.")
    if alarm(checks):
        sys.exit(1)


def run_kind(
    kinds: tuple[str, ...], recipe: Path, out: Path, data: str | None, overrides: tuple[str, ...],
    beside: Beside | None = None,
) -> None:  # fmt: skip
    """Run the stages of some kinds, once more where they are done; `beside`: what reports hold beside figures."""
    from pipelines.runs import open_run
    from pipelines.stages import ensure_data, run_stage

    opened = open_run(recipe, out=out, data=data, overrides=overrides)
    names = [name for name, stage in opened.recipe.stage.items() if stage.kind in kinds]
    if not names:
        kind = kinds[0]
        raise PalimpsestError(
            f'The recipe {opened.recipe.name} has no stage of kind {kind!r}: add [stage.{kind}] with kind = "{kind}".'
        )
    if beside is not None:
        ensure_data(opened)
        beside.check_data(opened.data_hash())
        opened = replace(opened, beside=beside)
    for name in names:
        run_stage(opened, name, again=True)


def compare(
    first: Annotated[Path, tyro.conf.Positional],
    second: Annotated[Path, tyro.conf.Positional],
    everything: bool = False,
) -> None:
    """Print what differs between two reports; the exit code is 1 where a figure has become worse beyond
    chance, or is no longer measured.

    Only figures of equal names are compared, with embedder, resize and sizes; the reports must be made on the same
    data. Figures of the same pictures or prompts are compared pair by pair. p is corrected for the number of figures
    (Holm).

    Args:
        first: a report.json, or a folder that holds one: what was before.
        second: another one: what is now.
        everything: also print what does not differ.
    """
    from eval.compare import compare as held_against
    from eval.compare import read_report
    from eval.display import number

    found = held_against(read_report(first), read_report(second))
    told = [one for one in found.differences if everything or one.verdict not in ("", "no interval")]
    for one in told:
        half = (
            ""
            if math.isnan(one.p)
            else f"  [{number(one.low)}, {number(one.high)}]  p = {one.p:.2g}{_pairs(one.pairs)}"
        )
        values = f"{number(one.first)} -> {number(one.second)}  ({number(one.change)}{half})"
        print(f"{one.verdict or 'same':<12}{one.name}  {values}")
    judged = sum(not math.isnan(one.p) for one in found.differences)
    print(
        f"{len(found.differences)} figures in both, {judged} with intervals: {len(found.regressions)} worse, "
        f"{sum(one.verdict == 'better' for one in found.differences)} better, "
        f"{sum(one.verdict == 'changed' for one in found.differences)} changed. "
        f"{len(found.only_first)} only in the first, {len(found.only_second)} only in the second."
    )
    paired = sum(one.pairs > 0 for one in found.differences)
    print(f"{paired} of them were compared pair by pair, the others as if their pictures had nothing in common.")
    for name in found.lost:
        print(f"{'lost':<12}{name}  was measured and is no more")
    if found.unlike:
        print(f"{len(found.unlike)} figures are left out: the judges that read them are not the same.")
    if found.regressions or found.lost:
        sys.exit(1)


def _pairs(count: int) -> str:
    """How a difference was tested, where that was pair by pair."""
    return f", over {count} pairs" if count else ""
