"""The sets that a recipe reads: where each lies, several as one split, and by what they are known again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.artefact import MANIFEST, digest, file_hash, read_json
from pipelines.data.config import FIRST, MoreScenes, MoreShards, ScenesData, Sets, name_of
from pipelines.data.joined import AnySplit, Part, joined
from pipelines.data.shards import open_split, shard_paths
from pipelines.errors import PalimpsestError
from pipelines.identity import GONE
from pipelines.recipe import Recipe
from pipelines.text.config import TextData

SPLITS = ("train", "test", "unseen")


@dataclass(frozen=True)
class Source:
    """One set: its name, the folder of its shards, and its weight beside the others."""

    name: str
    folder: Path
    weight: float


def data_folder(recipe: Recipe, given: Path | None, out: Path) -> Path:
    """Return where the data of a recipe lies, of several sets the first one's."""
    if given is not None:
        return given
    if isinstance(recipe.data, ScenesData):
        return scenes_folder(recipe.data, out)
    if recipe.data.path is None:
        own = "text files" if isinstance(recipe.data, TextData) else "shards"
        raise PalimpsestError(f"The recipe {recipe.name} reads your own {own}: say where they are with --data DIR.")
    return Path(recipe.data.path)


def scenes_folder(scenes: ScenesData | MoreScenes, out: Path) -> Path:
    """Return where scenes are rendered to."""
    drawn = f"-at{scenes.render}" if scenes.render else ""
    return out / "data" / f"scenes-{scenes.size}-{scenes.count}-{scenes.seed}{drawn}"


def pictures_of(recipe: Recipe, data: Path, out: Path) -> list[Source]:
    """Return the sets of pictures; data: the folder of the first, out: where runs are kept."""
    if not isinstance(recipe.data, Sets):
        return [Source(FIRST, data, 1.0)]
    more = [
        Source(name_of(one), Path(one.path) if isinstance(one, MoreShards) else scenes_folder(one, out), one.weight)
        for one in recipe.data.pictures
    ]
    return [Source(FIRST, data, recipe.data.weight), *more]


def texts_of(recipe: Recipe) -> list[Source]:
    """Return the sets of texts alone."""
    texts = recipe.data.texts if isinstance(recipe.data, Sets) else ()
    return [Source(name_of(one), Path(one.path), one.weight) for one in texts]


def open_sets(sources: list[Source], split: str) -> AnySplit:
    """Open a split of several sets as one: of all sets that have it, `train` of every set.

    Raises DataError as `open_split` does.
    """
    there = [one for one in sources if split == "train" or shard_paths(one.folder, split)]
    return joined([Part(one.name, open_split(one.folder, split), one.weight) for one in there or sources])


def splits_of(sources: list[Source]) -> list[str]:
    """Return the splits that some set has."""
    return [split for split in SPLITS if any(shard_paths(one.folder, split) for one in sources)]


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return the manifest of a set, empty where there is none."""
    path = folder / MANIFEST
    return read_json(path) if path.exists() else {}


def common_manifest(sources: list[Source]) -> dict[str, Any]:
    """Return what the manifests of all sets agree on."""
    first, *others = (manifest_of(one.folder) for one in sources)
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def hash_of(sources: list[Source]) -> str:
    """Return the hash of sets: of each its manifest, names and sizes of its shards. GONE where a folder is missing."""
    if not all(one.folder.is_dir() for one in sources):
        return GONE
    each = [[one.name, _hash_of_shards(one.folder)] for one in sources]
    return each[0][1] if len(each) == 1 else digest(each)[:16]


def _hash_of_shards(folder: Path) -> str:
    shards = [[path.name, path.stat().st_size] for path in sorted(folder.glob("*.tar"))]
    return digest([manifest_of(folder), shards])[:16]


def hash_of_texts(data: TextData, folder: Path) -> str:
    """Return the hash of texts as they are read; GONE where there is no folder."""
    if not folder.is_dir():
        return GONE
    named = [data.train, data.test, *([data.valid] if data.valid else [])]
    hashes = {name: file_hash(folder / name) for name in named if (folder / name).exists()}
    separated = [data.separator] if data.separator else []
    return digest([hashes, data.valid_share, data.detokenise, *separated])[:16]
