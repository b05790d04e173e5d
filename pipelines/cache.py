"""What the frozen stages make of the data, cached in shards (`palimpsest encode`, pipelines.encode).

Each split becomes tars with `KEY.latent.npy` (2, c, h, w) float16 mean and log-variance, `KEY.codes.npy` (L,) int32
where a VQ-VAE is among what made it, `KEY.text.npy` token ids, `KEY.txt` and `KEY.json`; text embeddings are kept once
per distinct caption (pipelines.text_table). With buckets a picture's latents have the shape of its bucket. The
folder is named by the hash of what made it, so that a changed encoder or changed data never meets an old cache. Of
several sets each has a folder of its own inside, so that they are mixed when they are read.
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
from pipelines.data.buckets import BucketOrder, Cells
from pipelines.data.decode import Decode, numpy_members
from pipelines.data.joined import AnySplit
from pipelines.data.order import Order
from pipelines.data.place import Here
from pipelines.data.ratios import Shape, parse_shape
from pipelines.data.stream import Stream, collate, once
from pipelines.runs import Run
from pipelines.sets import Source, open_sets
from pipelines.stage_config import EncodeStage
from pipelines.text_table import TextTable

FORMAT = 2  # of the files of a cache


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

    @property
    def decode(self) -> Decode:
        """Decoder of its samples."""
        return numpy_members("latent", *(("codes",) if "layout" in self.manifest else ()), "text")

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of the pictures whose latents it holds."""
        sizes = self.manifest.get("buckets") or [str(self.manifest["size"])]
        return tuple(map(parse_shape, sizes))

    @property
    def buckets(self) -> tuple[Shape, ...]:
        """The shapes of its latents, where they have several."""
        if "buckets" not in self.manifest:
            return ()
        factor = self.manifest["size"] // self.manifest["latent_size"]
        return tuple(shape.over(factor) for shape in self.shapes)

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
        shared = {"rank": rank, "world": world, "workers": self.workers}
        order = self._order(samples, batch, seed)
        return Stream(split=samples, order=order, batch=batch, decode=self.decode, **shared)

    def _order(self, samples: AnySplit, batch: int, seed: int) -> Order:
        if not self.buckets:
            return samples.order(seed, self.block)
        return BucketOrder(Cells(samples, self.buckets), batch, seed, self.block, mixed=False)

    def batch(self, split: str, count: int) -> dict[str, Any]:
        """Return the first `count` items of a split as one batch."""
        return next(once(self.split(split), self.decode, batch=count))

    def batches(self, split: str, count: int) -> list[dict[str, Any]]:
        """Return `count` items of a split as batches of one shape each, that with most of them first.

        They are the first ones; of several shapes some at random, since a part of the cache holds bucket by bucket.
        """
        if not self.buckets:
            return [self.batch(split, count)]
        found, groups = self.split(split), dict[tuple[int, ...], list[dict[str, Any]]]()
        for item in once(found, self.decode, batch=1, count=count, numbers=found.once(0)):
            alone = {name: value[0] for name, value in item.items()}
            groups.setdefault(alone["latent"].shape, []).append(alone)
        return [collate(group) for group in sorted(groups.values(), key=len, reverse=True)]


def made_of(run: Run, name: str) -> dict[str, Any]:
    """Return the hashes of all that a cache depends on."""
    kinds = [kind for kind in ("vae", "vqvae", "bpe", "clip") if run.recipe.of_kind(name, kind)]
    hashes = {kind: run.need(name, kind)[1]["hash"] for kind in kinds}
    shapes = {"buckets": list(map(str, run.recipe.buckets))} if run.recipe.buckets else {}
    stage = run.recipe.stage[name]
    assert isinstance(stage, EncodeStage)
    made = {"format": FORMAT, "data": run.data_hash(), "size": run.recipe.size, "shard": stage.shard}
    return {**made, **hashes, **shapes}


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
