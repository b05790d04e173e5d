"""A run: one recipe, its folder and its data; what every stage asks for where things are."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.artefact import (
    MANIFEST,
    PLAN,
    ArtefactError,
    digest,
    file_hash,
    finish_artefact,
    read_json,
    read_manifest,
    write_json,
)
from pipelines.config import dump_recipe, load_recipe
from pipelines.data.joined import AnySplit
from pipelines.data.place import Here, Place, of_split, place_of
from pipelines.errors import PalimpsestError
from pipelines.identity import (
    GONE,
    content,
    embedder_files,
    flatten,
    foreign_files,
    is_default,
    latent_settings,
    of_the_usual_kind,
    plain_stage,
)
from pipelines.judged_config import EvalStage, GenerateStage
from pipelines.plan import keep_plans
from pipelines.recipe import Recipe
from pipelines.sets import (
    Source,
    common_manifest,
    data_place,
    hash_of,
    hash_of_texts,
    named,
    older_hash_of,
    open_sets,
    pictures_of,
    splits_of,
    texts_of,
)
from pipelines.stage_config import AnyStage, EncodeStage, MdlmStage, VAEStage, VQVAEStage
from pipelines.text.config import TextData, TextEvalStage
from pipelines.version import code_version

if TYPE_CHECKING:
    from pipelines.beside import Beside

log = logging.getLogger("palimpsest")
RECIPE = "recipe.json"  # in a run's folder: the resolved recipe, where the data lies, and what was asked for
IDENTITY = ".identity"  # what a stage is made from, written when it begins


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recipe, the folder of its results and that of its data; source: where the data comes from, if not from there.

    A set elsewhere has a folder of this machine too, for what has been fetched of it.
    """

    recipe: Recipe
    folder: Path
    data: Path
    source: Place | None = None
    hurried: bool = False  # whether sets that are out of reach can be done without
    beside: Beside | None = None  # what a report holds beside its figures

    @property
    def place(self) -> Place:
        """Where the data lies."""
        return self.source or Here(self.data)

    def stage_folder(self, name: str) -> Path:
        """Return the folder of a stage's artefact."""
        return self.folder / name

    @cached_property
    def pictures(self) -> list[Source]:
        """The sets of pictures."""
        return pictures_of(self.recipe, self.place, self.folder.parent, hurried=self.hurried)

    @cached_property
    def texts(self) -> list[Source]:
        """The sets of texts alone."""
        return texts_of(self.recipe, hurried=self.hurried)

    def open(self, split: str) -> AnySplit:
        """Open a split of the pictures: of several sets as one, of all that have it."""
        return open_sets(self.pictures, split)

    def splits(self) -> list[str]:
        """Return the splits that the pictures have: train, and test and unseen where they exist in any set."""
        return splits_of(self.pictures)

    def held_out_name(self) -> str:
        """Return the split that judges: test where there is one, else train."""
        return "test" if "test" in self.splits() else "train"

    def held_out(self) -> AnySplit:
        """Open the split that judges."""
        return self.open(self.held_out_name())

    def data_manifest(self) -> dict[str, Any]:
        """Return the manifest of the data, empty where there is none; of several sets, what they agree on."""
        return common_manifest(self.pictures)

    def data_name(self) -> str:
        """Return what a report calls the data: the name of its folder, or its address without credentials."""
        return self.pictures[0].called

    def need(self, name: str, kind: str) -> tuple[str, dict[str, Any]]:
        """Return (name, manifest) of the forerunner of `kind` that stage `name` stands on, checked."""
        found = self.recipe.of_kind(name, kind)
        if not found:
            raise ArtefactError(
                f"stage.{name} needs a stage of kind {kind!r}: add its name to stage.{name}.needs in the recipe."
            )
        return found[0], self.manifest(found[0])

    def manifest(self, name: str) -> dict[str, Any]:
        """Return the manifest of a finished stage, after checking files, configuration and forerunners."""
        stage = self.recipe.stage[name]
        manifest = read_manifest(
            self.stage_folder(name), kind=stage.kind, remedy=f"Train it first: `palimpsest train {name} RECIPE`."
        )
        self.check_identity(name, manifest.get("identity", {}), self.identity(name))
        return manifest

    def identity(self, name: str) -> dict[str, Any]:
        """Return what a stage's result depends on: its configuration, the data and its forerunners' hashes."""
        needs = {}
        for need in self.recipe.stage[name].needs:
            folder = self.stage_folder(need)
            read_manifest(folder, remedy=f"stage.{name} needs it: `palimpsest train {need} RECIPE`.")
            needs[need] = read_json(folder / MANIFEST)["hash"]
        return {**self.settings(name), "data": self.data_hash(), "needs": needs}

    def settings(self, name: str) -> dict[str, Any]:
        """Return the part of a stage's identity that the recipe decides."""
        found = {"stage": plain_stage(self.recipe, name), "seed": self.recipe.seed}
        if not isinstance(self.recipe.data, TextData):
            found["size"] = self.recipe.size
            if getattr(self.recipe.stage[name], "training", None) is not None:
                found["block"] = self.recipe.block
            if self.recipe.stage[name].kind not in ("bpe", "encode") and (shares := self.recipe.shares()):
                found["shares"] = shares
        if isinstance(self.recipe.stage[name], GenerateStage):
            below = self.recipe.settings_below(self.recipe.base(name)).items()
            found |= {"below": {base: latent_settings(settings) for base, settings in below}} if below else {}
        if isinstance(stage := self.recipe.stage[name], TextEvalStage):
            paths = [self.data / other.file for other in stage.other]
            found["other"] = {path.name: file_hash(path) for path in paths if path.exists()}
        if isinstance(stage, MdlmStage) and stage.texts is not None:
            texts = place_of(stage.texts.path, hurried=self.hurried)
            found["texts"] = GONE if texts.missing() else digest(named(texts, texts.names()))
        reads = isinstance(stage, EncodeStage) or (isinstance(stage, VAEStage | VQVAEStage) and stage.training)
        if reads and self.recipe.buckets:
            found["buckets"] = [str(shape) for shape in self.recipe.buckets]
        if isinstance(stage, VAEStage | VQVAEStage) and (files := foreign_files(stage)):
            found["files"] = {str(path): content(path) for path in files}
        if isinstance(stage, EvalStage) and (files := embedder_files(stage)):
            found["embedders"] = files
        return found

    def check_settings(self) -> None:
        """Refuse a recipe under which some stage of this folder, finished or begun, was not made."""
        for name in self.recipe.stage:
            if (path := self.stage_folder(name) / IDENTITY).exists():
                self.check_identity(name, read_json(path), self.settings(name))

    def check_identity(self, name: str, made: dict[str, Any], wanted: dict[str, Any]) -> None:
        """Refuse an artefact that was made by another configuration, other data or other forerunners."""
        folder = self.stage_folder(name)
        remedy = f"Give another --out, or delete {folder} (and what was built on it) to make it anew."
        known = flatten(made)
        for key, now in flatten(wanted).items():
            before = known.get(key)
            newer = key not in known and self._is_default(name, key, known)
            newer |= key == "data" and before == older_hash_of(self.pictures)
            if before != now and now != GONE and not newer:  # a run can be sampled without its data
                raise ArtefactError(
                    f"{folder} does not match the recipe: {key} was {before!r} and is now {now!r}. {remedy}"
                )

    def _is_default(self, name: str, key: str, known: dict[str, Any]) -> bool:
        """Whether a value that an older artefact does not name is a default: of the stage, or of a model below it."""
        kind, *path = key.split(".")
        if key == "block":  # what does not name it was trained on one permutation of all, as few shards still are
            return all(len(of_split(one.place.names(), "train")) <= self.recipe.block for one in self.pictures)
        if kind != "below":
            stage, names = self.recipe.stage[name], [other.split(".")[1:] for other in known]
            return of_the_usual_kind(stage, path, names) and is_default(stage, path)
        noted = any(other.startswith("below.") for other in known)
        return not noted or is_default(self.recipe.settings_for(path[0]), path[1:])

    def finished(self, name: str) -> bool:
        """Whether a stage stands finished and matches the recipe; a mismatch raises ArtefactError."""
        if not (self.stage_folder(name) / MANIFEST).exists():
            return False
        self.manifest(name)
        return True

    def begin(self, name: str) -> dict[str, Any]:
        """Note what an unfinished stage is being made from; refuses to go on with another configuration."""
        folder, identity = self.stage_folder(name), self.identity(name)
        started = folder / IDENTITY
        if started.exists():
            self.check_identity(name, read_json(started), identity)
        write_json(started, identity)
        return identity

    def finish(self, name: str, identity: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest of a stage that is done."""
        manifest = {"kind": self.recipe.stage[name].kind, "name": name, "version": code_version(), "identity": identity}
        return finish_artefact(self.stage_folder(name), {**manifest, **facts})

    def planned(self) -> list[str]:
        """Return the stages whose number of steps stands: their training has begun or is done."""
        return [name for name in self.recipe.stage if (self.stage_folder(name) / PLAN).exists()]

    def command(self) -> str:
        """Return the command that started the run, the folder of the data left out."""
        return read_json(self.folder / RECIPE).get("command", f"palimpsest run {RECIPE}")

    def recipe_hash(self) -> str:
        """Return the hash of the resolved recipe."""
        return digest(dump_recipe(self.recipe))[:16]

    def data_hash(self) -> str:
        """Return the hash of all data, the same wherever it lies; GONE where some of it is gone."""
        data = self.recipe.data
        return hash_of_texts(data, self.data) if isinstance(data, TextData) else hash_of([*self.pictures, *self.texts])


def open_run(
    recipe_path: Path,
    *,
    out: Path,
    data: Path | str | None,
    overrides: tuple[str, ...] = (),
    budget: float | None = None,
    scale: Callable[[Recipe, float], Recipe] | None = None,
) -> Run:
    """Open (or start) the run of a recipe: results in `out/<recipe>`, data in `data` or where the recipe says.

    data: a folder, or the address of one; what is kept of it is without credentials.

    scale: fits the recipe's training times into `budget` minutes.
    """
    recipe = load_recipe(recipe_path, overrides)
    if budget is not None and scale is not None:
        recipe = scale(recipe, budget)
    run = run_on(recipe, out / recipe.name, data_place(recipe, data, out))
    run.check_settings()  # before the recipe of the folder is replaced
    words = ["palimpsest", "run", str(recipe_path), *(["--data", "DIR"] if data else [])]
    words += ["--budget", f"{budget:g}"] if budget is not None else []
    command = shlex.join([*words, *(["--set", *overrides] if overrides else [])])
    own = run.folder / RECIPE
    if own.exists() and (run.planned() or recipe_path.resolve() == own.resolve()):  # a stage asks as its run did
        command, run = run.command(), keep_plans(run, read_json(own)["recipe"]["stage"])
    kept = str(run.source or run.data.resolve())
    plain = {"recipe": dump_recipe(run.recipe), "data": kept, "command": command}
    write_json(own, plain)
    return run


def reopen_run(folder: Path) -> Run:
    """Open a run from its folder alone, for sampling and studies."""
    if not (folder / RECIPE).exists():
        raise PalimpsestError(
            f"{folder} is no run (no {RECIPE}): give a folder that `palimpsest run` made, such as runs/scenes."
        )
    recipe = load_recipe(folder / RECIPE)
    place = place_of(read_json(folder / RECIPE).get("data", ""), hurried=True)
    return replace(run_on(recipe, folder, place), hurried=True)


def run_on(recipe: Recipe, folder: Path, place: Place) -> Run:
    """Return the run of a recipe on data at a place."""
    source = None if isinstance(place, Here) else place
    return Run(recipe=recipe, folder=folder, data=place.folder, source=source)


def stage_of(run: Run, name: str) -> AnyStage:
    """Return a stage of the recipe. Raises PalimpsestError with the known names."""
    if name not in run.recipe.stage:
        known = ", ".join(run.recipe.stage)
        raise PalimpsestError(f"The recipe {run.recipe.name} has no stage {name!r}; it has {known}.")
    return run.recipe.stage[name]
