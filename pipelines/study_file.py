"""A study file (TOML) and the pictures that it names: generate stages of runs, or plain folders with captions."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from eval.human.errors import named
from eval.human.study import Source, Study
from pipelines.artefact import read_json
from pipelines.config import RecipeError, parse
from pipelines.data.decode import image_and_caption
from pipelines.data.stream import some
from pipelines.errors import DataError, PalimpsestError
from pipelines.judged_config import GenerateStage
from pipelines.pictures import to_pil
from pipelines.runs import Run, reopen_run, stage_of
from pipelines.scoring.captions import captions_of
from pipelines.scoring.sets import pictures_in

Held = dict[str, Path]  # prompt -> picture


@dataclass
class Gathered:
    """What a study compares: prompts, each model's picture of each, real pictures where they are known, and notes."""

    prompts: list[str]
    pictures: dict[str, list[Path]]
    truth: list[Image.Image | Path] | None = None
    notes: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)


def load_study(path: Path) -> Study:
    """Read a study file. Raises RecipeError with the place, the value and what was expected."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"There is no study file at {path}; docs/human-study.md shows one.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    raw.setdefault("name", path.stem)
    return parse(Study, raw, str(path))


def gather(study: Study) -> Gathered:
    """Find all pictures. Raises PalimpsestError that names missing and extra ones."""
    made = Gathered([], {})
    held = {name: _held(f"model.{name}", source, made) for name, source in study.model.items()}
    asked = _asked(study, next(iter(held.values())))
    made.prompts = asked[: study.prompts.count]
    for name, pictures in held.items():
        _check(name, pictures, made.prompts, asked, extra=study.prompts.extra == "refuse")
        made.pictures[name] = [pictures[prompt] for prompt in made.prompts]
    if len(made.prompts) < study.prompts.count:
        made.notes.append(f"{len(made.prompts)} prompts are there, {study.prompts.count} were asked for")
    if study.truth is not None:
        made.truth = _truth(study.truth, made)
    elif run := next((source for source in study.model.values() if source.run), None):
        made.truth = _truth(run, made)
    made.figures = {name: _figures(source) for name, source in study.model.items()}
    return made


def _held(place: str, source: Source, made: Gathered) -> Held:
    """The pictures of a model by their prompts; of equal prompts the first."""
    pairs = _of_folder(place, Path(source.folder)) if source.folder else _of_stage(place, source)
    held: Held = {}
    again = 0
    for prompt, picture in pairs:
        again += prompt in held
        held.setdefault(prompt, picture)
    if again:
        made.notes.append(f"{place}: {again} pictures of a prompt that came before are left out")
    if not held:
        raise PalimpsestError(f"{place} has no pictures with captions: put NAME.txt beside NAME.png, or name a stage.")
    return held


def _of_stage(place: str, source: Source) -> Iterable[tuple[str, Path]]:
    run = reopen_run(Path(source.run))
    if not source.stage:
        made = [name for name, stage in run.recipe.stage.items() if isinstance(stage, GenerateStage)]
        raise PalimpsestError(
            f"{place} names no stage: add stage = one of {', '.join(made) or 'none, which it lacks'}."
        )
    if not isinstance(stage_of(run, source.stage), GenerateStage):
        raise PalimpsestError(f"{place}: stage {source.stage!r} makes no pictures: name a stage of kind generate.")
    counts = run.manifest(source.stage)["counts"]
    split = source.split or run.held_out_name()
    if split not in counts:
        raise PalimpsestError(
            f"{place}: {source.stage} has no pictures of split {split!r}; it has {', '.join(counts)}."
        )
    for sidecar in sorted((run.stage_folder(source.stage) / split).glob("*.json")):
        yield read_json(sidecar)["prompt"], sidecar.with_suffix(".png")


def _of_folder(place: str, folder: Path) -> Iterable[tuple[str, Path]]:
    """Pictures of a folder with their captions, wherever pictures from anywhere may have them."""
    if not folder.is_dir():
        raise PalimpsestError(f"{place}: there is no folder {folder}; give one of pictures with captions.")
    try:
        names = pictures_in(folder)
        captions = captions_of(folder, names, None)
    except DataError as error:
        raise PalimpsestError(f"{place}: {error}") from error
    return [(captions[name], folder / name) for name in names] if captions else []


def _asked(study: Study, first: Held) -> list[str]:
    """The prompts in order: those of the file, else those of the first model."""
    if not study.prompts.file:
        return list(first)
    path = Path(study.prompts.file)
    try:
        lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PalimpsestError(
            f"prompts.file {path} cannot be read ({error}): give a text file, one prompt a line."
        ) from error
    if not lines:
        raise PalimpsestError(f"prompts.file {path} is empty: write one prompt a line.")
    return list(dict.fromkeys(lines))


def _check(name: str, pictures: Held, prompts: list[str], asked: list[str], *, extra: bool) -> None:
    """Refuse a model without a picture of every prompt, or with pictures that nobody asked for."""
    if missing := [repr(prompt) for prompt in prompts if prompt not in pictures]:
        raise PalimpsestError(
            f"model.{name} has no picture for {len(missing)} of {len(prompts)} prompts ({named(missing)}): draw them, "
            "or give prompts.file a shorter list."
        )
    known = set(asked)
    if extra and (more := [repr(prompt) for prompt in pictures if prompt not in known]):
        raise PalimpsestError(
            f"model.{name} has pictures for {len(more)} prompts that are not asked for ({named(more)}): is it another "
            'set? If they are to be left out, set prompts.extra = "leave".'
        )


def _truth(source: Source, made: Gathered) -> list[Image.Image | Path] | None:
    """The real pictures of the prompts; None, with a note, where some are not known."""
    found: Mapping[str, Image.Image | Path]
    if source.folder:
        found = dict(_of_folder("truth", Path(source.folder)))
    else:
        run = reopen_run(Path(source.run))
        found = _real(run, source, len(made.prompts))
    missing = [repr(prompt) for prompt in made.prompts if prompt not in found]
    if missing:
        made.notes.append(f"no controls of relevance: there are no real pictures for {len(missing)} prompts "
                          f"({named(missing)}); give [truth] a folder")  # fmt: skip
        return None
    return [found[prompt] for prompt in made.prompts]


def _real(run: Run, source: Source, count: int) -> dict[str, Any]:
    """The pictures from which a run's captions were taken, as its generate stage drew them."""
    stage = run.recipe.stage.get(source.stage)
    seed = stage.seed if isinstance(stage, GenerateStage) else run.recipe.seed
    total = stage.count if isinstance(stage, GenerateStage) else count
    try:
        batch = some(
            run.open(source.split or run.held_out_name()), image_and_caption(run.recipe.size), total, seed=seed
        )
    except PalimpsestError:
        return {}  # the data may be gone by now; the note says what to do
    found: dict[str, Any] = {}
    for caption, image in zip(batch["caption"], to_pil(batch["image"]), strict=True):
        found.setdefault(caption, image)
    return found


def _figures(source: Source) -> str:
    """The first part of the names of a model's figures in report.json."""
    if source.figures or source.folder:
        return source.figures
    return str(reopen_run(Path(source.run)).manifest(source.stage)["model"])
