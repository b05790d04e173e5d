"""The sets that a recipe reads: where each lies, several as one split, and by what they are known again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.artefact import digest, file_hash
from pipelines.data.config import FIRST, MoreScenes, MoreShards, ScenesData, Sets, name_of
from pipelines.data.joined import AnySplit, Part, joined
from pipelines.data.place import SPLITS, Here, Place, of_split, place_of
from pipelines.data.shards import open_split
from pipelines.errors import PalimpsestError
from pipelines.identity import GONE
from pipelines.recipe import Recipe
from pipelines.text.config import TextData


@dataclass(frozen=True)
class Source:
    """One set: its name, where its shards lie, and its weight beside the others."""

    name: str
    place: Place
    weight: float

    @property
    def called(self) -> str:
        """What a report calls it: the name of its folder, or its address without credentials."""
        return self.place.folder.name if isinstance(self.place, Here) else str(self.place)


def data_place(recipe: Recipe, given: Path | str | None, out: Path) -> Place:
    """Return where the data of a recipe lies, of several sets the first one's.

    Raises PalimpsestError where nobody says, DataError for a bad address.
    """
    place = place_of(_named_data(recipe, given, out))
    if isinstance(recipe.data, TextData) and not isinstance(place, Here):
        raise PalimpsestError(f"The recipe {recipe.name} reads text files, not {place}: give a folder, --data DIR.")
    return place


def _named_data(recipe: Recipe, given: Path | str | None, out: Path) -> Path | str:
    if given is not None:
        return given
    if isinstance(recipe.data, ScenesData):
        return scenes_folder(recipe.data, out)
    if recipe.data.path is None:
        own = "text files" if isinstance(recipe.data, TextData) else "shards"
        raise PalimpsestError(f"The recipe {recipe.name} reads your own {own}: say where they are with --data DIR.")
    return recipe.data.path


def scenes_folder(scenes: ScenesData | MoreScenes, out: Path) -> Path:
    """Return where scenes are rendered to."""
    drawn = f"-at{scenes.render}" if scenes.render else ""
    return out / "data" / f"scenes-{scenes.size}-{scenes.count}-{scenes.seed}{drawn}"


def pictures_of(recipe: Recipe, place: Place, out: Path, *, hurried: bool = False) -> list[Source]:
    """Return the sets of pictures; place: of the first, out: where runs are kept.

    hurried: others that are out of reach are not waited for.
    """
    if not isinstance(recipe.data, Sets):
        return [Source(FIRST, place, 1.0)]
    more = [
        Source(
            name_of(one),
            place_of(one.path, hurried=hurried) if isinstance(one, MoreShards) else Here(scenes_folder(one, out)),
            one.weight,
        )
        for one in recipe.data.pictures
    ]
    return [Source(FIRST, place, recipe.data.weight), *more]


def texts_of(recipe: Recipe, *, hurried: bool = False) -> list[Source]:
    """Return the sets of texts alone; hurried: those that are out of reach are not waited for."""
    texts = recipe.data.texts if isinstance(recipe.data, Sets) else ()
    return [Source(name_of(one), place_of(one.path, hurried=hurried), one.weight) for one in texts]


def open_sets(sources: list[Source], split: str) -> AnySplit:
    """Open a split of several sets as one: of all sets that have it, `train` of every set.

    Raises DataError as `open_split` does.
    """
    there = [one for one in sources if split == "train" or of_split(one.place.names(), split)]
    return joined([Part(one.name, open_split(one.place, split), one.weight) for one in there or sources])


def splits_of(sources: list[Source]) -> list[str]:
    """Return the splits that some set has."""
    names = [one.place.names() for one in sources]
    return [split for split in SPLITS if any(of_split(found, split) for found in names)]


def common_manifest(sources: list[Source]) -> dict[str, Any]:
    """Return what the manifests of all sets agree on."""
    first, *others = (one.place.manifest() or {} for one in sources)
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def hash_of(sources: list[Source]) -> str:
    """Return the hash of sets: of each its manifest, names and sizes of its shards, wherever they lie.

    GONE where one is missing.
    """
    if any(one.place.missing() for one in sources):
        return GONE
    each = []
    for one in sources:
        names = one.place.names()
        each.append([one.name, _hash_of(one.place, [name for name in names if _in_a_split(name)])])
    return each[0][1] if len(each) == 1 else digest(each)[:16]


def older_hash_of(sources: list[Source]) -> str | None:
    """Return what older versions took for the hash of a folder: they counted the shards of no split."""
    place = sources[0].place
    whole = len(sources) == 1 and isinstance(place, Here) and not place.missing()
    return _hash_of(place, place.names()) if whole else None


def _in_a_split(name: str) -> bool:
    return any(of_split([name], split) for split in SPLITS)


def _hash_of(place: Place, names: list[str]) -> str:
    return digest([place.manifest() or {}, named(place, names)])[:16]


def named(place: Place, names: Sequence[str]) -> list[list[Any]]:
    """Return names and sizes of shards."""
    return [[name, size] for name, size in zip(names, place.sizes(names), strict=True)]


def hash_of_texts(data: TextData, folder: Path) -> str:
    """Return the hash of texts as they are read; GONE where there is no folder."""
    if not folder.is_dir():
        return GONE
    names = [data.train, data.test, *([data.valid] if data.valid else [])]
    hashes = {name: file_hash(folder / name) for name in names if (folder / name).exists()}
    separated = [data.separator] if data.separator else []
    return digest([hashes, data.valid_share, data.detokenise, *separated])[:16]
