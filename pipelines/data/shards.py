"""A split of a set of shards, read by index: which samples there are, and where the bytes of each lie."""

import hashlib
import logging
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from pipelines.data.decode import BrokenSample, Sample, caption
from pipelines.data.index import ShardIndex
from pipelines.data.order import BLOCK, Order, Shuffle
from pipelines.data.place import GROUPS, Here, Place, check_there, of_split, place_of
from pipelines.data.recent import Recent
from pipelines.data.summary import Summary, row
from pipelines.errors import DataError

FILES = 256  # open at most, whatever the limit of the process: often 1024
NEXT = 3  # shards that a reader in their order is about to read
log = logging.getLogger("palimpsest")


class Split:
    """Samples of one split by number: `len(split)`, `split[i] -> Sample`; shards in the order of their names.

    In memory are a row per shard and the indices of the shards that are being read.
    """

    def __init__(
        self, name: str, shards: Summary, unsaved: Mapping[int, ShardIndex] | None = None, place: Place | None = None
    ) -> None:
        """shards: their rows; unsaved: indices by number of shard that cannot be read again; place: where they lie."""
        self.name = name
        self.shards = shards
        self.place = place or Here(shards.folder)
        self._unsaved = dict(unsaved or {})
        self._starts = array("q", accumulate(shards.samples.tolist(), initial=0))
        self._at_once, self._beside = 0, 1  # as far as anybody has said
        self._prepare()

    @classmethod
    def alone(cls, name: str, shard: ShardIndex) -> "Split":
        """A split of one shard whose index is at hand."""
        return cls(name, row(shard), {0: shard})

    def _prepare(self) -> None:
        self._indices: Recent[ShardIndex] = Recent(0)
        self._files: Recent[_Open] = Recent(0)
        self.hold(self._at_once)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: int) -> Sample:
        return self.read(i)

    def __getstate__(self) -> dict[str, object]:  # a data worker opens its own files
        return {name: value for name, value in self.__dict__.items() if name not in ("_indices", "_files")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._prepare()

    @property
    def sizes(self) -> np.ndarray:
        """Samples of each shard, (S,)."""
        return self.shards.samples

    def hold(self, at_once: int, beside: int = 1) -> None:
        """Make room for a reader that goes to and fro between so many shards, of `beside` splits each."""
        self._at_once, self._beside = max(at_once, self._at_once), max(beside, self._beside)
        self._indices.limit = GROUPS * max(self._at_once, BLOCK)
        self._files.limit = min(max(1, FILES // self._beside), self.place.open_files(self._at_once))

    def ahead(self, shards: Sequence[int]) -> None:
        """Say which shards will be read next, in their order: those that lie elsewhere are fetched meanwhile."""
        self.place.ahead([self.shards.names[number] for number in shards])

    def numbers(self, among: range | None = None) -> Iterator[int]:
        """Numbers in order, of all samples or of some; whoever goes beyond a shard will want the next ones."""
        asked = range(len(self)) if among is None else among
        shard = -1
        for number in asked:
            if (there := self.locate(number)[0]) != shard:
                if shard >= 0:
                    self.ahead(range(there, min(there + NEXT, len(self.shards))))
                shard = there
            yield number

    def order(self, seed: int, block: int = BLOCK) -> Order:
        """The endless shuffled order of its samples."""
        return Shuffle(self.sizes, seed, block)

    def once(self, seed: int | None = None) -> Iterable[int]:
        """Every number once: in order, or shuffled by a seed."""
        return self.numbers() if seed is None else map(self.order(seed).number, range(len(self)))

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

    def read(self, i: int, only: tuple[str, ...] | None = None, most: int | None = None) -> Sample:
        """Sample i with all its members, or those of the given extensions; raises BrokenSample.

        most: bytes that are read of each at most.
        """
        number, place = self.locate(i)
        shard = self.index_of(number)
        spans = {e: span for e, span in shard.members(place).items() if only is None or e in only}
        members = {e: self._bytes(number, offset, min(size, most or size)) for e, (offset, size) in spans.items()}
        return Sample(key=shard.key(place), members=members)

    def index_of(self, number: int) -> ShardIndex:
        """The index of a shard; raises BrokenSample where the shard is not what was opened."""
        return self._indices.get(number, self._index)

    def replace_index(self, number: int, shard: ShardIndex) -> None:
        """Take over an index that knows more of the same shard."""
        self._indices.put(number, shard)
        if not shard.saved:
            self._unsaved[number] = shard

    def _index(self, number: int) -> ShardIndex:
        """The index of a shard as it was when the split was opened; raises BrokenSample where that is gone."""
        if number in self._unsaved:
            return self._unsaved[number]
        stamp = self.shards.stamp(number)
        try:
            shard = self.place.index(self.shards.names[number], stamp)
        except OSError as error:
            raise BrokenSample(f"cannot read {self._shown(number)} ({error.strerror})") from error
        if shard.stamp != stamp or shard.digest() != self.shards.index_hash(number):
            raise BrokenSample(f"{self._shown(number)} is not the file that was opened: it changed since")
        return shard

    def _open(self, number: int) -> "_Open":
        return _Open(self.place.open(self.shards.names[number]))

    def _shown(self, number: int) -> str:
        return self.place.shown(self.shards.names[number])

    def _bytes(self, number: int, offset: int, size: int) -> bytes:
        try:
            file = self._files.get(number, self._open)
            data = os.pread(file.handle, size, offset)
        except OSError as error:
            raise BrokenSample(f"cannot read {self._shown(number)} ({error.strerror})") from error
        if len(data) < size:
            raise BrokenSample(f"{self._shown(number)} is shorter than its index: it changed while it was read")
        return data

    def captions(self) -> Iterator[str]:
        """Every caption in the order of the shards; broken and empty ones are left out."""
        for i in self.numbers():
            try:
                yield caption(self.read(i, only=("txt",)))
            except BrokenSample:
                continue

    def digest(self) -> str:
        """sha256 over names, keys and sizes, and over the manifest's sha256 of each shard where there is one."""
        digest = hashlib.sha256()
        known = (self.place.manifest() or {}).get("shards", {})
        for number, name in enumerate(self.shards.names):
            digest.update(repr((name, known.get(name, {}).get("sha256"), self.shards.index_hash(number))).encode())
        return digest.hexdigest()


class _Open:
    """An open file, closed once nobody reads it: another thread may, while it is let go."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __del__(self) -> None:
        os.close(self.handle)


def shard_paths(folder: Path, split: str) -> list[Path]:
    """The shards of a split in a folder of this machine."""
    return [folder / name for name in of_split(Here(folder).names(), split)]


def open_split(where: Path | str | Place, split: str) -> Split:
    """Index the shards of a split; damaged ones are named in the log and keep their readable samples.

    where: a folder, or the address of one. Raises DataError when the folder, the shards or any readable sample is
    missing.
    """
    place = place_of(where)
    check_there(place)
    all_names = place.names()
    names = of_split(all_names, split)
    if not names:
        raise DataError(_no_shards(place, split, all_names))
    try:
        shards, unsaved = place.rows(names)
    except OSError as error:
        raise DataError(f"Cannot read {error.filename}: {error.strerror}. Check that it is a readable file.") from error
    for name, samples in zip(shards.names, shards.samples, strict=True):
        for sentence in shards.damage.get(name, ()):
            log.warning("%s: %s; its %d readable samples are used", place.shown(name), sentence, samples)
    _check_complete(place, split, shards)
    if not shards.samples.any():
        raise DataError(f"The {split} shards in {place} hold no readable sample: run `palimpsest data check {place}`.")
    return Split(split, shards, unsaved, place)


def _no_shards(place: Place, split: str, names: Sequence[str]) -> str:
    others = list(names)
    if isinstance(place, Here):
        others = sorted(path.name for path in place.folder.iterdir() if not path.name.startswith("."))
    return (
        f"No {split} shards in {place}: expected files named *{split}*.tar, found {', '.join(others[:5]) or 'nothing'}"
        f"; make some with `palimpsest data scenes DIR` or `palimpsest data import SRC DIR`."
    )


def _check_complete(place: Place, split: str, shards: Summary, allowed: float = 0.01) -> None:
    """Refuse a split that lost more than the allowed share of the samples that its manifest promises."""
    known = (place.manifest() or {}).get("shards", {})
    there = dict(zip(shards.names, shards.samples.tolist(), strict=True))
    promised = sum(known.get(name, {}).get("samples", samples) for name, samples in there.items())
    lost = promised - sum(there.values())
    if lost > allowed * promised:
        raise DataError(
            f"The {split} shards in {place} lost {lost} of {promised} samples, more than {allowed:.0%}: copy them "
            f"again, or look at them with `palimpsest data check {place}`."
        )
