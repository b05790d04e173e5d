"""Human studies from a run: two generate stages, the same prompts, a blinded page out, win rates back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.study import Design, export, import_votes, read_key, win_rates, write_results
from pipelines.artefact import read_json
from pipelines.errors import PalimpsestError
from pipelines.judged_config import GenerateStage
from pipelines.runs import Run, reopen_run, stage_of


def export_study(run: Path, first: str, second: str, out: Path, *, prompts: int, seed: int) -> str:
    """Write the study of two generate stages and say what to do with it."""
    opened = reopen_run(run)
    if first == second:
        raise PalimpsestError(f"A study compares two sets of pictures, but both are {first!r}: name another stage.")
    made = {name: _pictures(opened, name) for name in (first, second)}
    shared = [key for key in made[first] if key in made[second]][:prompts]
    if not shared:
        raise PalimpsestError(f"{first} and {second} have no prompt in common: give both the same split and count.")
    words = [made[first][key][0] for key in shared]
    pictures = {name: [made[name][key][1] for key in shared] for name in (first, second)}
    written = export(words, pictures, out, Design(seed=seed))
    return (
        f"{written.items} pairs of {first} and {second}.\n"
        f"  for raters     {written.page}   (one file; they send back votes.json)\n"
        f"  keep sealed    {written.key}\n"
        f"Then: palimpsest study import VOTES.json ... --key {written.key} --out {out}"
    )


def _pictures(run: Run, name: str) -> dict[str, tuple[str, Path]]:
    """Return {key: (prompt, picture)} of a generate stage's held-out pictures."""
    if not isinstance(stage_of(run, name), GenerateStage):
        raise PalimpsestError(f"stage {name!r} makes no pictures: name a stage of kind generate.")
    run.manifest(name)
    folder = run.stage_folder(name) / run.held_out_name()
    sidecars = sorted(folder.glob("*.json"))
    made = [(read_json(path), path.with_suffix(".png")) for path in sidecars]
    return {content["key"]: (content["prompt"], picture) for content, picture in made}


def import_study(votes: Sequence[Path], key: Path, out: Path) -> str:
    """Turn votes into win rates with intervals; returns them as lines of text."""
    if not votes:
        raise PalimpsestError("No votes were given: name the votes.json files that the raters sent back.")
    table = import_votes(votes, read_key(key))
    result = win_rates(table)
    write_results(table, result, out)
    lines = [f"{len(table)} votes of {result.raters} raters"]
    for outcome in result.outcomes:
        rate = outcome.win_rate
        lines.append(
            f"  {outcome.criterion:<12} {result.model_a} against {result.model_b}: {rate.value:.1%} "
            f"[{rate.low:.1%}, {rate.high:.1%}] over {rate.n} prompts (win {outcome.wins}, tie {outcome.ties}, "
            f"loss {outcome.losses}; sign test p = {outcome.p:.3f}, corrected {outcome.p_holm:.3f})"
        )
    return "\n".join([*lines, f"  {out / 'votes.csv'}", f"  {out / 'study.json'}"])
