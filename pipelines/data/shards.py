"""A split of a folder of shards, read by index: which samples there are, and the order in which an epoch shows them."""

import hashlib
import logging
import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

from pipelines.data.decode import BrokenSample, Sample, caption
from pipelines.data.index import ShardIndex, index_shard
from pipelines.data.shard_writer import read_manifest
from pipelines.errors import DataError

log = logging.getLogger("palimpsest")


class Split:
    """Samples of one split by number: `len(split)`, `split[i] -> Sample`; shards in the order of their names."""

    def __init__(self, name: str, shards: list[ShardIndex]) -> None:
        self.name = name
        self.shards = shards
        self._starts = [0, *accumulate(len(shard.keys) for shard in shards)]
        self._files: dict[int, int] = {}  # shard number -> open file

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: int) -> Sample:
        return self.read(i)

    def __getstate__(self) -> dict[str, object]:  # a data worker opens its own files
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for file in self.__dict__.get("_files", {}).values():
            os.close(file)

    def locate(self, i: int) -> tuple[int, int]:
        """Number of the shard of sample i and its place there."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        number = bisect_right(self._starts, i) - 1
        return number, i - self._starts[number]

    def name_of(self, i: int) -> str:
        """Key and shard of sample i, for messages."""
        number, place = self.locate(i)
        return f"{self.shards[number].keys[place]} in {self.shards[number].path.name}"

    def read(self, i: int, only: tuple[str, ...] | None = None) -> Sample:
        """Sample i with all its members, or those of the given extensions; raises BrokenSample."""
        number, place = self.locate(i)
        shard = self.shards[number]
        spans = {e: span for e, span in shard.members[place].items() if only is None or e in only}
        return Sample(key=shard.keys[place], members={e: self._bytes(number, *span) for e, span in spans.items()})

    def _bytes(self, number: int, offset: int, size: int) -> bytes:
        path = self.shards[number].path
        try:
            if number not in self._files:
                self._files[number] = os.open(path, os.O_RDONLY)
            data = os.pread(self._files[number], size, offset)
        except OSError as error:
            raise BrokenSample(f"cannot read {path} ({error.strerror})") from error
        if len(data) < size:
            raise BrokenSample(f"{path} is shorter than its index: it changed while it was read")
        return data

    def captions(self) -> Iterator[str]:
        """Every caption in the order of the shards; broken and empty ones are left out."""
        for i in range(len(self)):
            try:
                yield caption(self.read(i, only=("txt",)))
            except BrokenSample:
                continue

    def digest(self) -> str:
        """sha256 over names, keys and sizes, and over the manifest's sha256 of each shard where there is one."""
        digest = hashlib.sha256()
        known = (read_manifest(self.shards[0].path.parent) or {}).get("shards", {}) if self.shards else {}
        for shard in self.shards:
            entry = known.get(shard.path.name, {})
            digest.update(repr((shard.path.name, entry.get("sha256"), shard.keys, shard.members)).encode())
        return digest.hexdigest()


def shard_paths(folder: Path, split: str) -> list[Path]:
    """Shards whose name holds the split as a word: `test-000000.tar`, `cifar10-test-000000.tar`; never `latest.tar`."""
    word = re.compile(rf"(?<![a-z]){re.escape(split)}(?![a-z])")
    return sorted(path for path in folder.glob("*.tar") if word.search(path.stem.lower()))


def open_split(folder: Path, split: str) -> Split:
    """Index the shards of a split; damaged ones are named in the log and keep their readable samples.

    Raises DataError when the folder, the shards or any readable sample is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"No data folder {folder}: make one with `palimpsest data scenes {folder}` or give --data.")
    paths = shard_paths(folder, split)
    if not paths:
        others = ", ".join(sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))[:5])
        raise DataError(
            f"No {split} shards in {folder}: expected files named *{split}*.tar, found {others or 'nothing'}; "
            f"make some with `palimpsest data scenes {folder}` or `palimpsest data import SRC {folder}`."
        )
    try:
        shards = [index_shard(path) for path in paths]
    except OSError as error:
        raise DataError(f"Cannot read {error.filename}: {error.strerror}. Check that it is a readable file.") from error
    for shard in shards:
        for sentence in shard.damage:
            log.warning("%s: %s; its %d readable samples are used", shard.path, sentence, len(shard.keys))
    _check_complete(folder, split, shards)
    if not any(shard.keys for shard in shards):
        raise DataError(
            f"The {split} shards in {folder} hold no readable sample: run `palimpsest data check {folder}`."
        )
    return Split(split, shards)


def _check_complete(folder: Path, split: str, shards: list[ShardIndex], allowed: float = 0.01) -> None:
    """Refuse a split that lost more than the allowed share of the samples that its manifest promises."""
    known = (read_manifest(folder) or {}).get("shards", {})
    promised = sum(known.get(shard.path.name, {}).get("samples", len(shard.keys)) for shard in shards)
    lost = promised - sum(len(shard.keys) for shard in shards)
    if lost > allowed * promised:
        raise DataError(
            f"The {split} shards in {folder} lost {lost} of {promised} samples, more than {allowed:.0%}: copy them "
            f"again, or look at them with `palimpsest data check {folder}`."
        )


@lru_cache(maxsize=4)
def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation (n,) of one epoch, a function of (seed, epoch) alone."""
    return np.random.default_rng((seed, epoch)).permutation(n)
