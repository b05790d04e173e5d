"""A split of a folder of shards, read by index: which samples there are, and where the bytes of each lie."""

import hashlib
import logging
import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path

import numpy as np

from pipelines.data.decode import BrokenSample, Sample, caption
from pipelines.data.index import ShardIndex, index_shard
from pipelines.data.order import BLOCK, Order, Shuffle
from pipelines.data.recent import Recent
from pipelines.data.shard_writer import read_manifest
from pipelines.data.summary import Summary, row, summarise
from pipelines.errors import DataError

GROUPS = 2  # of shards whose indices are held: a reader that looks ahead comes back
FILES = 256  # open at most, whatever the limit of the process: often 1024
log = logging.getLogger("palimpsest")


class Split:
    """Samples of one split by number: `len(split)`, `split[i] -> Sample`; shards in the order of their names.

    In memory are a row per shard and the indices of the shards that are being read.
    """

    def __init__(self, name: str, shards: Summary, unsaved: Mapping[int, ShardIndex] | None = None) -> None:
        """shards: their rows; unsaved: indices by number of shard that cannot be read again."""
        self.name = name
        self.shards = shards
        self._unsaved = dict(unsaved or {})
        self._starts = array("q", accumulate(shards.samples.tolist(), initial=0))
        self._held, self._most = GROUPS * BLOCK, FILES
        self._prepare()

    @classmethod
    def alone(cls, name: str, shard: ShardIndex) -> "Split":
        """A split of one shard whose index is at hand."""
        return cls(name, row(shard), {0: shard})

    def _prepare(self) -> None:
        self._indices: Recent[ShardIndex] = Recent(self._held)
        self._files: Recent[int] = Recent(min(self._most, self._held), os.close)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: int) -> Sample:
        return self.read(i)

    def __getstate__(self) -> dict[str, object]:  # a data worker opens its own files
        return {name: value for name, value in self.__dict__.items() if name not in ("_indices", "_files")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def __del__(self) -> None:
        if "_files" in self.__dict__:
            self._files.clear()

    @property
    def sizes(self) -> np.ndarray:
        """Samples of each shard, (S,)."""
        return self.shards.samples

    def hold(self, at_once: int, beside: int = 1) -> None:
        """Make room for a reader that goes to and fro between so many shards, of `beside` splits each."""
        self._held, self._most = max(self._held, GROUPS * at_once), max(1, FILES // beside)
        self._indices.limit, self._files.limit = self._held, min(self._most, self._held)

    def order(self, seed: int, block: int = BLOCK) -> Order:
        """The endless shuffled order of its samples."""
        return Shuffle(self.sizes, seed, block)

    def once(self, seed: int | None = None) -> Iterable[int]:
        """Every number once: in order, or shuffled by a seed."""
        return range(len(self)) if seed is None else map(self.order(seed).number, range(len(self)))

    def set_of(self, i: int) -> tuple[str, int]:
        """The name of the set that sample i is of, none where it is the only one, and how many samples that has."""
        self.locate(i)
        return "", len(self)

    def sets(self) -> list[tuple["Split", float]]:
        """The splits that it is made of, itself alone, and the share of each in what is drawn."""
        return [(self, 1.0)]

    def locate(self, i: int) -> tuple[int, int]:
        """Number of the shard of sample i and its place there."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        number = bisect_right(self._starts, i) - 1
        return number, i - self._starts[number]

    def name_of(self, i: int) -> str:
        """Key and shard of sample i, for messages; its place where the key is not to be had any more."""
        number, place = self.locate(i)
        try:
            key = self._indices.get(number, self._index).key(place)
        except BrokenSample:
            key = f"sample {place}"
        return f"{key} in {self.shards.names[number]}"

    def path_of(self, number: int) -> Path:
        """Where the bytes of a shard are on this machine."""
        return self.shards.path(number)

    def read(self, i: int, only: tuple[str, ...] | None = None) -> Sample:
        """Sample i with all its members, or those of the given extensions; raises BrokenSample."""
        number, place = self.locate(i)
        shard = self._indices.get(number, self._index)
        spans = {e: span for e, span in shard.members(place).items() if only is None or e in only}
        return Sample(key=shard.key(place), members={e: self._bytes(number, *span) for e, span in spans.items()})

    def _index(self, number: int) -> ShardIndex:
        """The index of a shard as it was when the split was opened; raises BrokenSample where that is gone."""
        if number in self._unsaved:
            return self._unsaved[number]
        stamp = self.shards.stamp(number)
        path = self.path_of(number)
        try:
            shard = index_shard(path, stamp)
        except OSError as error:
            raise BrokenSample(f"cannot read {path} ({error.strerror})") from error
        if shard.stamp != stamp or shard.digest() != self.shards.index_hash(number):
            raise BrokenSample(f"{path} is not the file that was opened: it changed since")
        return shard

    def _open(self, number: int) -> int:
        return os.open(self.path_of(number), os.O_RDONLY)

    def _bytes(self, number: int, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._files.get(number, self._open), size, offset)
        except OSError as error:
            raise BrokenSample(f"cannot read {self.path_of(number)} ({error.strerror})") from error
        if len(data) < size:
            raise BrokenSample(f"{self.path_of(number)} is shorter than its index: it changed while it was read")
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
        known = (read_manifest(self.shards.folder) or {}).get("shards", {})
        for number, name in enumerate(self.shards.names):
            digest.update(repr((name, known.get(name, {}).get("sha256"), self.shards.index_hash(number))).encode())
        return digest.hexdigest()


def shard_paths(folder: Path, split: str) -> list[Path]:
    """Shards whose name holds the split as a word: `test-000000.tar`, `cifar10-test-000000.tar`; never `latest.tar`."""
    return [folder / name for name in _names(folder, split)]


def _names(folder: Path, split: str) -> list[str]:
    word = re.compile(rf"(?<![a-z]){re.escape(split)}(?![a-z])")
    found = os.listdir(folder) if folder.is_dir() else []
    return sorted(name for name in found if name.endswith(".tar") and word.search(name[: -len(".tar")].lower()))


def open_split(folder: Path, split: str) -> Split:
    """Index the shards of a split; damaged ones are named in the log and keep their readable samples.

    Raises DataError when the folder, the shards or any readable sample is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"No data folder {folder}: make one with `palimpsest data scenes {folder}` or give --data.")
    names = _names(folder, split)
    if not names:
        others = ", ".join(sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))[:5])
        raise DataError(
            f"No {split} shards in {folder}: expected files named *{split}*.tar, found {others or 'nothing'}; "
            f"make some with `palimpsest data scenes {folder}` or `palimpsest data import SRC {folder}`."
        )
    try:
        shards, unsaved = summarise(folder, names)
    except OSError as error:
        raise DataError(f"Cannot read {error.filename}: {error.strerror}. Check that it is a readable file.") from error
    for name, samples in zip(shards.names, shards.samples, strict=True):
        for sentence in shards.damage.get(name, ()):
            log.warning("%s: %s; its %d readable samples are used", folder / name, sentence, samples)
    _check_complete(folder, split, shards)
    if not shards.samples.any():
        raise DataError(
            f"The {split} shards in {folder} hold no readable sample: run `palimpsest data check {folder}`."
        )
    return Split(split, shards, unsaved)


def _check_complete(folder: Path, split: str, shards: Summary, allowed: float = 0.01) -> None:
    """Refuse a split that lost more than the allowed share of the samples that its manifest promises."""
    known = (read_manifest(folder) or {}).get("shards", {})
    there = dict(zip(shards.names, shards.samples.tolist(), strict=True))
    promised = sum(known.get(name, {}).get("samples", samples) for name, samples in there.items())
    lost = promised - sum(there.values())
    if lost > allowed * promised:
        raise DataError(
            f"The {split} shards in {folder} lost {lost} of {promised} samples, more than {allowed:.0%}: copy them "
            f"again, or look at them with `palimpsest data check {folder}`."
        )
