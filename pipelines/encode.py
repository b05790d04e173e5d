"""`palimpsest encode`: what the frozen stages make of the data, written into a cache (pipelines.cache).

The data is encoded in parts, each a shard of the cache. Any number of processes share the parts; one that stands is
never made again, so that a stage that was stopped or killed goes on where it was. With buckets the samples of a part
stand bucket by bucket.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState

from pipelines.artefact import read_json, save_weights, write_json
from pipelines.cache import cache_folder, inside, made_of
from pipelines.data.buckets import buckets_of
from pipelines.data.decode import Decode, Sample, image_and_caption
from pipelines.data.index import CACHE, index_shard
from pipelines.data.patience import GaveUp, waiting_until
from pipelines.data.ratios import Shape
from pipelines.data.shapes import shapes_of
from pipelines.data.shard_writer import Record, write_shard
from pipelines.data.shards import Split, open_split
from pipelines.data.skipped import Skipped
from pipelines.data.stream import once
from pipelines.encoders import Encoders, encoded
from pipelines.errors import Interrupted
from pipelines.hardware import from_main
from pipelines.models import token_layout
from pipelines.progress import Meter, meter
from pipelines.runs import Run
from pipelines.sets import splits_of
from pipelines.stage_config import EncodeStage
from pipelines.stopping import listening, orphaned
from pipelines.text_table import FirstSeen, TextRows, keys_of, text_file
from pipelines.together import together

EMBEDDED = 256  # captions at once
FACTS = ".parts"  # folder of what is known of each part until all stand

log = logging.getLogger("palimpsest")


class Where(NamedTuple):
    """A split of a set: the set's folder in the cache, empty where there is but one set, and the split."""

    folder: str
    split: str


class Part(NamedTuple):
    """Samples of a split that become one shard of the cache."""

    place: Where
    number: int
    samples: range

    @property
    def name(self) -> str:
        """Its path in the cache, without an extension."""
        return str(Path(self.place.folder, f"{self.place.split}-{self.number:06d}"))


def encode(run: Run, name: str, stage: EncodeStage) -> dict[str, Any]:
    """Encode every split of the data into the cache of stage `name`; returns facts for its manifest.

    All processes call it. Raises Interrupted where it is asked to stop: the parts that stand stay.
    """
    folder = cache_folder(run, name)
    if not (folder / "manifest.json").exists():
        building = folder.with_name(f".{folder.name}.partial")
        opened = {
            Where("" if there.place.folder == folder else there.name, split): open_split(source.place, split)
            for source, there in zip(run.pictures, inside(run, folder), strict=True)
            for split in splits_of([source])
        }
        work = Encoding(building, opened, Encoders.load(run, name), run.recipe.size, stage, run.recipe.buckets)
        work.make(name)
        processes = PartialState(cpu=not torch.cuda.is_available())
        with together():
            if processes.is_main_process:
                made = {**made_of(run, name), **work.finish(), "hash": folder.name, **_facts(run, name, work.encoders)}
                write_json(work.folder / "manifest.json", made)
                work.folder.rename(folder)
                _warn(made, run.need(name, "bpe")[0], work.encoders.bpe.length)
    manifest = read_json(folder / "manifest.json")
    facts = ("counts", "truncated_captions", "skipped_samples")
    return {"folder": folder.name, **{name: manifest[name] for name in facts}}


def _warn(made: Mapping[str, Any], bpe: str, length: int) -> None:
    """Say what is not in the cache."""
    if skipped := sum(made["skipped_samples"].values()):
        log.warning("%d samples are broken or have no caption and were left out: `palimpsest data check`.", skipped)
    if truncated := made["truncated_captions"]:
        log.warning("%d captions are longer than the %d tokens that are read: raise stage.%s.length to read all.",
                    truncated, length, bpe)  # fmt: skip


def _facts(run: Run, name: str, encoders: Encoders) -> dict[str, Any]:
    """Return what stage two needs to know of the encoders."""
    size, codes = run.recipe.size, encoders.vqvae
    vae = run.need(name, "vae")[1]
    tokens = {} if codes is None else {
        "layout": dataclasses.asdict(token_layout(encoders.bpe, codes, size)), "grid": size // codes.downsample
    }  # fmt: skip
    return {
        **tokens,
        "latent_mean": vae["latent_mean"],
        "latent_std": vae["latent_std"],
        "latent_size": size // encoders.vae.downsample,
        "tokenizer": encoders.bpe.hash,
        "text_encoder": encoders.text.identity,
        "text_width": encoders.text.width,
        "pooled_width": encoders.text.pooled_width,
        "embedding_length": encoders.text.length,
    }


class Encoding:
    """The making of one cache in a folder that is not whole yet."""

    def __init__(
        self, folder: Path, opened: Mapping[Where, Split], encoders: Encoders, size: int, stage: EncodeStage,
        buckets: Sequence[Shape] = (),
    ) -> None:  # fmt: skip
        self.folder, self.opened, self.encoders, self.stage, self.buckets = folder, opened, encoders, stage, buckets
        self.decode = image_and_caption(size)
        self.parts = [part for place, found in opened.items() for part in parts_of(place, len(found), stage.shard)]
        self.stop = False

    def make(self, name: str) -> None:
        """Encode this process's share of the parts, then of the captions that come first in each part."""
        processes = PartialState(cpu=not torch.cuda.is_available())
        share = slice(processes.process_index, None, processes.num_processes)
        with together():
            if processes.is_main_process:
                self.folder.mkdir(parents=True, exist_ok=True)
                for left in self.folder.glob("**/.*.tmp"):  # what a killed process left half written
                    left.unlink()
        skipped = {place: Skipped(split=samples) for place, samples in self.opened.items()}
        with listening(self._ask_to_stop), waiting_until(self._asked):
            mine = from_main([part for part in self.parts if not self._known(part).exists()])[share]
            with meter(name, sum(len(part.samples) for part in mine)) as shown, self._together():
                for part in mine:
                    self._encode(part, skipped[part.place], shown)
            first = self.first_seen()
            new = [(part, first.of(i)) for i, part in enumerate(self.parts)]
            left = from_main([i for i, (part, rows) in enumerate(new) if len(rows) and not self._text(part).exists()])
            with meter(f"{name} captions", sum(len(new[i][1]) for i in left[share])) as shown, self._together():
                for i in left[share]:
                    self._embed(*new[i], shown)

    def first_seen(self) -> FirstSeen:
        """Say in which part each caption comes first. Raises ArtefactError where a part is missing."""
        return FirstSeen([keys_of(read_json(self._known(part))["captions"]) for part in self.parts])

    def finish(self) -> dict[str, Any]:
        """Write where each caption's embedding is; returns what a manifest says of the parts."""
        known = [(part, read_json(self._known(part))) for part in self.parts]
        first = FirstSeen([keys_of(facts["captions"]) for _, facts in known])
        first.write(self.folder)
        counts, there, broken = Counter[str](), Counter[str](), Counter[Where]()
        for part, facts in known:
            counts[part.place.split] += facts["samples"]
            broken[part.place] += facts["broken"]
        for place, samples in self.opened.items():
            there[place.split] += len(samples)
            Skipped(split=samples).check(place.folder, len(samples), broken[place])
        shutil.rmtree(self.folder / FACTS)
        files = (path for path in sorted(self.folder.rglob("*")) if path.is_file() and path.parent.name != CACHE)
        return {
            "counts": dict(counts),
            "truncated_captions": sum(facts["truncated"] for _, facts in known),
            "skipped_samples": {split: there[split] - counts[split] for split in there},
            "texts": {part.name: rows for i, part in enumerate(self.parts) if (rows := len(first.of(i)))},
            "files": {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files},
        }

    def _known(self, part: Part) -> Path:
        """What is known of a part; it stands where this file does."""
        return self.folder / FACTS / f"{part.name}.json"

    def _encode(self, part: Part, skipped: Skipped, shown: Meter) -> None:
        """Write the shard of a part, then what is known of it."""
        captions: dict[str, None] = {}
        count, truncated, broken = 0, 0, len(skipped.broken)

        def samples() -> Iterator[tuple[str, Record]]:
            nonlocal count, truncated
            for items in self._batches(part, skipped):
                self._stop_where_asked()
                captions.update(dict.fromkeys(items["caption"]))
                records, cut = encoded(items, self.encoders)
                for record in records:
                    yield f"{part.place.split}-{part.samples.start + count:08d}", record
                    count += 1
                truncated += cut
                shown.advance(len(records))

        written = self.folder / f"{part.name}.tar"
        write_shard(written, samples())
        if not count:
            written.unlink()
        elif self.buckets:
            shapes_of(Split.alone(part.name, index_shard(written)), 0)  # so that no training has to look for them
        facts = {"samples": count, "truncated": truncated, "broken": len(skipped.broken) - broken}
        write_json(self._known(part), {**facts, "captions": list(captions)})

    def _batches(self, part: Part, skipped: Skipped) -> Iterator[dict[str, Any]]:
        """Yield the samples of a part in batches of one shape each."""
        split, alike = self.opened[part.place], list[tuple[Decode, Iterable[int]]]()
        if self.buckets:
            found = buckets_of(split, part.samples, self.buckets)
            for bucket, shape in enumerate(self.buckets):
                members = part.samples.start + np.flatnonzero(found == bucket)
                alike.append((partial(_in_shape, decode=self.decode, shape=shape), members.tolist()))
        else:
            alike.append((self.decode, split.numbers(part.samples)))
        for decode, numbers in alike:
            yield from once(split, decode, batch=self.stage.batch, numbers=numbers, skipped=skipped)

    def _embed(self, part: Part, places: np.ndarray, shown: Meter) -> None:
        """Write the embeddings of the captions of a part that are at the given places."""
        captions = read_json(self._known(part))["captions"]
        rows = []
        for start in range(0, len(places), EMBEDDED):
            self._stop_where_asked()
            chunk = [captions[place] for place in places[start : start + EMBEDDED]]
            made = self.encoders.text.embed(chunk)
            rows.append((made.tokens.half().cpu(), made.mask.cpu(), made.pooled.half().cpu()))
            shown.advance(len(chunk))
        columns = map(torch.cat, zip(*rows, strict=True))
        save_weights(self._text(part), dict(zip(TextRows._fields, columns, strict=True)))

    def _text(self, part: Part) -> Path:
        """The embeddings of the captions that come first in a part."""
        return self.folder / text_file(part.name)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Wait for the others with their shares; end together where one is asked to stop, or cannot go on."""
        with together():
            try:
                yield
                self._stop_where_asked()
            except (Interrupted, GaveUp) as asked:
                raise Interrupted("Stopped; what is encoded stays. The same command goes on from there.") from asked

    def _ask_to_stop(self) -> None:
        self.stop = True

    def _asked(self) -> bool:
        return self.stop or orphaned()

    def _stop_where_asked(self) -> None:
        if self._asked():
            raise Interrupted


def _in_shape(sample: Sample, *, decode: Decode, shape: Shape) -> dict[str, Any]:
    return decode(dataclasses.replace(sample, shape=shape))


def parts_of(place: Where, samples: int, per_part: int) -> list[Part]:
    """Cut the samples of a split into parts."""
    starts = range(0, samples, per_part)
    return [Part(place, i, range(start, min(start + per_part, samples))) for i, start in enumerate(starts)]
