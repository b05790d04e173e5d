"""What the frozen stages make of the data, cached in shards (`palimpsest encode`, pipelines.encode).

Each split becomes tars with `KEY.latent.npy` (2, c, h, w) float16 mean and log-variance, `KEY.codes.npy` (L,) int32,
`KEY.text.npy` token ids, `KEY.txt` and `KEY.json`; text embeddings are kept once per distinct caption
(pipelines.text_table). The folder is named by the hash of what made it, so that a changed encoder or changed data never
meets an old cache. Of several sets each has a folder of its own inside, so that they are mixed when they are read.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from discrete.layout import Layout
from pipelines.artefact import ArtefactError, digest, read_json
from pipelines.config import read_config
from pipelines.data.decode import numpy_members
from pipelines.data.joined import AnySplit
from pipelines.data.place import Here
from pipelines.data.stream import Stream, once
from pipelines.runs import Run
from pipelines.sets import Source, open_sets
from pipelines.stage_config import EncodeStage
from pipelines.text_table import TextTable

FORMAT = 2  # of the files of a cache
CACHED = numpy_members("latent", "codes", "text")


@dataclass(frozen=True)
class Cache:
    """A finished cache."""

    folder: Path
    manifest: dict[str, Any]
    block: int  # shards that are shuffled together
    sets: tuple[Source, ...]  # their folders inside
    workers: int = 0  # processes that read ahead

    @cached_property
    def held_out(self) -> str:
        """The split that validates: test where there is one, else train."""
        return "test" if "test" in self.manifest["counts"] else "train"

    @cached_property
    def layout(self) -> Layout:
        """How its tokens stand in one sequence. Raises RecipeError where another version wrote it."""
        return read_config(Layout, self.manifest["layout"], str(self.folder))

    def text_table(self) -> TextTable:
        """Open the text embeddings."""
        return TextTable(self.folder, self.manifest["texts"])

    def split(self, split: str) -> AnySplit:
        """Open a split, of several sets by their weights."""
        return open_sets(list(self.sets), split)

    def stream(self, split: str, batch: int, seed: int, rank: int = 0, world: int = 1) -> Stream:
        """Shuffle a split without end."""
        samples = self.split(split)
        order = samples.order(seed, self.block)
        shared = {"rank": rank, "world": world, "workers": self.workers}
        return Stream(split=samples, order=order, batch=batch, decode=CACHED, **shared)

    def batch(self, split: str, count: int) -> dict[str, Any]:
        """Return the first `count` items of a split as one batch."""
        return next(once(self.split(split), CACHED, batch=count))


def made_of(run: Run, name: str) -> dict[str, Any]:
    """Return the hashes of all that a cache depends on."""
    hashes = {kind: run.need(name, kind)[1]["hash"] for kind in ("vae", "vqvae", "bpe", "clip")}
    stage = run.recipe.stage[name]
    assert isinstance(stage, EncodeStage)
    return {"format": FORMAT, "data": run.data_hash(), "size": run.recipe.size, "shard": stage.shard, **hashes}


def cache_folder(run: Run, name: str) -> Path:
    """Return the folder of the cache that stage `name` makes."""
    return run.folder / "cache" / digest(made_of(run, name))[:16]


def open_cache(run: Run, name: str) -> Cache:
    """Open the cache that stage `name` trains on. Raises ArtefactError when it is not there."""
    encode, manifest = run.need(name, "encode")
    folder = run.folder / "cache" / manifest["folder"]
    if not (folder / "manifest.json").exists():
        raise ArtefactError(
            f"The cache {folder} is gone. Delete {run.stage_folder(encode)} and run `palimpsest encode RECIPE` again."
        )
    made = read_json(folder / "manifest.json")
    if made.get("format") != FORMAT:
        raise ArtefactError(
            f"The cache {folder} was written by another version. Delete {run.stage_folder(encode)} and run "
            "`palimpsest encode RECIPE` again."
        )
    for name, size in made["files"].items():
        if not (folder / name).exists() or (folder / name).stat().st_size != size:
            raise ArtefactError(
                f"{folder / name} is missing or not as long as it was written. Delete {folder} and "
                f"{run.stage_folder(encode)}, and run `palimpsest encode RECIPE` again."
            )
    return Cache(folder, made, run.recipe.block, tuple(inside(run, folder)), run.recipe.workers)


def inside(run: Run, folder: Path) -> list[Source]:
    """Return where in a cache each set of pictures lies: a single one at the top."""
    sets = run.pictures
    return [dataclasses.replace(one, place=Here(folder / one.name if len(sets) > 1 else folder)) for one in sets]
