"""`palimpsest encode`: what the frozen stages make of the data, cached in shards.

Each split becomes tars with `KEY.latent.npy` (2, c, h, w) float16 mean and log-variance, `KEY.codes.npy` (L,) int32,
`KEY.text.npy` token ids, `KEY.txt` and `KEY.json`; text embeddings are kept once per distinct caption. The folder is
named by the hash of what made it, so that a changed encoder or changed data never meets an old cache.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from discrete.layout import Layout
from pipelines.artefact import ArtefactError, digest, read_json, save_weights, write_json
from pipelines.config import read_config
from pipelines.data.decode import image_and_caption, numpy_members
from pipelines.data.order import Shuffle
from pipelines.data.shard_writer import SplitWriter
from pipelines.data.shards import Split, open_split
from pipelines.data.stream import Stream, once
from pipelines.hardware import device_of
from pipelines.models import load_bpe, load_vae, load_vqvae, token_layout
from pipelines.progress import Meter, meter
from pipelines.runs import Run
from pipelines.stage_config import EncodeStage
from tokenizer.embed import TextEncoder, load_text_encoder
from tokenizer.text import BPE
from tokenizer.vae import VAE
from tokenizer.vqvae import VQVAE

log = logging.getLogger("palimpsest")
EMBEDDINGS, CAPTIONS = "embeddings.safetensors", "captions.jsonl"
CACHED = numpy_members("latent", "codes", "text")


class TextRows(NamedTuple):
    """Embeddings of captions: tokens (B, L, D) float16, mask (B, L) bool, pooled (B, P) float16."""

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


class TextTable:
    """Embeddings once per distinct caption, found by the whole caption."""

    def __init__(self, folder: Path) -> None:
        self._tensors = load_file(folder / EMBEDDINGS)
        captions = (folder / CAPTIONS).read_text(encoding="utf-8").splitlines()
        self._row = {json.loads(line): i for i, line in enumerate(captions)}

    def rows(self, captions: list[str]) -> TextRows:
        """Return the embeddings of captions that the cache holds."""
        index = torch.tensor([self._row[caption] for caption in captions])
        return TextRows(*(self._tensors[name][index] for name in TextRows._fields))


@dataclass(frozen=True)
class Cache:
    """A finished cache."""

    folder: Path
    manifest: dict[str, Any]
    block: int  # shards that are shuffled together

    @cached_property
    def held_out(self) -> str:
        """The split that validates: test where there is one, else train."""
        return "test" if "test" in self.manifest["counts"] else "train"

    @cached_property
    def layout(self) -> Layout:
        """How its tokens stand in one sequence. Raises RecipeError where another version wrote it."""
        return read_config(Layout, self.manifest["layout"], str(self.folder))

    def text_table(self) -> TextTable:
        """Load the text embeddings."""
        return TextTable(self.folder)

    def split(self, split: str) -> Split:
        """Open a split."""
        return open_split(self.folder, split)

    def stream(self, split: str, batch: int, seed: int, rank: int = 0, world: int = 1) -> Stream:
        """Shuffle a split without end."""
        samples = self.split(split)
        order = Shuffle(samples.sizes, seed, self.block)
        return Stream(split=samples, order=order, batch=batch, decode=CACHED, rank=rank, world=world)

    def batch(self, split: str, count: int) -> dict[str, Any]:
        """Return the first `count` items of a split as one batch."""
        return next(once(self.split(split), CACHED, batch=count))


def made_of(run: Run, name: str) -> dict[str, Any]:
    """Return the hashes of all that a cache depends on."""
    hashes = {kind: run.need(name, kind)[1]["hash"] for kind in ("vae", "vqvae", "bpe", "clip")}
    return {"data": run.data_hash(), "size": run.recipe.size, **hashes}


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
    for name, size in made["files"].items():
        if not (folder / name).exists() or (folder / name).stat().st_size != size:
            raise ArtefactError(
                f"{folder / name} is missing or not as long as it was written. Delete {folder} and "
                f"{run.stage_folder(encode)}, and run `palimpsest encode RECIPE` again."
            )
    return Cache(folder, made, run.recipe.block)


@dataclass(frozen=True)
class Encoders:
    """The frozen stages that make a cache."""

    vae: VAE
    vqvae: VQVAE
    bpe: BPE
    text: TextEncoder


def encode(run: Run, name: str, stage: EncodeStage) -> dict[str, Any]:
    """Encode every split of the data into the cache of stage `name`; returns facts for its manifest."""
    folder = cache_folder(run, name)
    if not (folder / "manifest.json").exists():
        vae, vqvae, bpe, clip = (run.need(name, kind)[0] for kind in ("vae", "vqvae", "bpe", "clip"))
        text = load_text_encoder(run.stage_folder(clip)).to(device_of(load_vae(run, vae)))
        encoders = Encoders(load_vae(run, vae), load_vqvae(run, vqvae), load_bpe(run, bpe), text)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        opened = {split: run.open(split) for split in run.splits()}
        counts, truncated = _write_splits(opened, run.recipe.size, stage, encoders, partial)
        _write_embeddings(encoders.text, partial, f"{name} captions")
        made = {**made_of(run, name), "counts": counts, "truncated_captions": truncated, "hash": folder.name}
        made["skipped_samples"] = {split: len(opened[split]) - counts[split] for split in counts}
        if skipped := sum(made["skipped_samples"].values()):
            log.warning("%d samples are broken or have no caption and were left out: `palimpsest data check`.", skipped)
        if truncated:
            log.warning("%d captions are longer than the %d tokens that are read: raise stage.%s.length to read all.",
                        truncated, encoders.bpe.length, bpe)  # fmt: skip
        made["files"] = {path.name: path.stat().st_size for path in sorted(partial.iterdir()) if path.is_file()}
        write_json(partial / "manifest.json", {**made, **_facts(run, name, encoders)})
        partial.rename(folder)
    manifest = read_json(folder / "manifest.json")
    facts = ("counts", "truncated_captions", "skipped_samples")
    return {"folder": folder.name, **{name: manifest[name] for name in facts}}


def _facts(run: Run, name: str, encoders: Encoders) -> dict[str, Any]:
    """Return what stage two needs to know of the encoders."""
    size = run.recipe.size
    vae = run.need(name, "vae")[1]
    return {
        "latent_mean": vae["latent_mean"],
        "latent_std": vae["latent_std"],
        "latent_size": size // encoders.vae.downsample,
        "layout": dataclasses.asdict(token_layout(encoders.bpe, encoders.vqvae, size)),
        "grid": size // encoders.vqvae.downsample,
        "tokenizer": encoders.bpe.hash,
        "text_encoder": encoders.text.identity,
        "text_width": encoders.text.width,
        "pooled_width": encoders.text.pooled_width,
        "embedding_length": encoders.text.length,
    }


def _write_splits(
    opened: Mapping[str, Split], size: int, stage: EncodeStage, encoders: Encoders, folder: Path
) -> tuple[dict[str, int], int]:
    """Write the arrays of every split and the list of distinct captions; returns counts and truncated captions."""
    captions: dict[str, None] = {}
    truncated = 0
    with meter("encode", sum(map(len, opened.values()))) as shown, SplitWriter(folder) as writer:
        for split, samples in opened.items():
            for batch in once(samples, image_and_caption(size), batch=stage.batch):
                captions |= dict.fromkeys(batch["caption"])
                truncated += _write_batch(writer, split, batch, encoders)
                shown.advance(len(batch["key"]))
        counts = dict(writer.counts)
    lines = "".join(json.dumps(caption) + "\n" for caption in captions)
    (folder / CAPTIONS).write_text(lines, encoding="utf-8")
    return counts, truncated


@torch.no_grad()
def _write_batch(writer: SplitWriter, split: str, batch: dict[str, Any], encoders: Encoders) -> int:
    """Encode one batch and append it; returns how many captions were cut."""
    x = batch["image"].to(device_of(encoders.vae))
    posterior = encoders.vae.encode(x)
    moments = torch.stack([posterior.mean, posterior.log_var], 1).half().cpu().numpy()  # (B, 2, c, h, w)
    codes = encoders.vqvae.codes(x).int().cpu().numpy()  # (B, L)
    text = encoders.bpe.encode(batch["caption"])
    for i, key in enumerate(batch["key"]):
        writer.add(
            split,
            {
                "latent.npy": _npy(moments[i]),
                "codes.npy": _npy(codes[i]),
                "text.npy": _npy(text.tokens[i].numpy()),
                "txt": batch["caption"][i],
                "json": json.dumps({"key": key, **batch["label"][i]}),
            },
        )
    return int(text.truncated.sum())


def _write_embeddings(encoder: TextEncoder, folder: Path, name: str) -> None:
    """Embed every distinct caption once."""
    captions = [json.loads(line) for line in (folder / CAPTIONS).read_text(encoding="utf-8").splitlines()]
    parts = []
    with meter(name, len(captions)) as shown:
        for chunk in _chunks(captions, shown):
            rows = encoder.embed(chunk)
            parts.append((rows.tokens.half().cpu(), rows.mask.cpu(), rows.pooled.half().cpu()))
    columns = zip(*parts, strict=True)
    save_weights(folder / EMBEDDINGS, dict(zip(TextRows._fields, map(torch.cat, columns), strict=True)))


def _chunks(captions: list[str], shown: Meter, size: int = 256) -> Iterator[list[str]]:
    for start in range(0, len(captions), size):
        chunk = captions[start : start + size]
        yield chunk
        shown.advance(len(chunk))


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
