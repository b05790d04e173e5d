"""Samples that are passed over: counted, named in the log, and too many of them stop the run."""

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from pipelines.data.decode import BrokenSample, EmptyCaption
from pipelines.data.joined import AnySplit
from pipelines.errors import DataError

HANDFUL = 5  # so many broken samples never stop a run, however small the split
log = logging.getLogger("palimpsest")


class Skip(NamedTuple):
    """One sample that was passed over."""

    number: int
    name: str
    reason: str
    empty: bool  # only its caption is empty: no damage
    source: str = ""  # the set that it is of, where there are several


def skip(split: AnySplit, number: int, error: BrokenSample) -> Skip:
    """Say which sample was passed over and why."""
    source, _ = split.set_of(number)
    return Skip(number, split.name_of(number), str(error), isinstance(error, EmptyCaption), source)


@dataclass(kw_only=True)
class Skipped:
    """What a run has passed over in one split: `broken` and `empty` by the number of the sample.

    max_broken: share of a set that may be broken; a handful may be whatever the share.
    """

    split: AnySplit
    max_broken: float = 0.01
    broken: dict[int, Skip] = field(default_factory=dict)
    empty: dict[int, Skip] = field(default_factory=dict)
    _broken_of: Counter[str] = field(default_factory=Counter)  # by set
    _empty_of: Counter[str] = field(default_factory=Counter)

    def remember(self, one: Skip) -> bool:
        """Count a sample, once, without a word; returns whether it is a new one."""
        if one.number in self.broken or one.number in self.empty:
            return False
        (self.empty if one.empty else self.broken)[one.number] = one
        (self._empty_of if one.empty else self._broken_of)[one.source] += 1
        return True

    def note(self, one: Skip) -> None:
        """Count a sample once and name it; raises DataError beyond the stated share."""
        if not self.remember(one):
            return
        if one.empty:
            log.info("Skipped %s: %s (%d so far)", one.name, one.reason, len(self.empty))
            return
        source, size = self.split.set_of(one.number)
        count, limit = self._broken_of[source], self._limit(size)
        log.warning("Skipped broken sample %s: %s (%d, a run fails beyond %d)", one.name, one.reason, count, limit)
        self.check(source, size, count, f"; the last is {one.name}: {one.reason}")

    def check(self, source: str, size: int, count: int, last: str = "") -> None:
        """Raise DataError where more samples of a set of `size` samples are broken than may be."""
        if count > self._limit(size):
            raise DataError(
                f"{count} of {size} samples of {self._named(source)} are broken, more than the {self._limit(size)} "
                f"allowed{last}. Run `palimpsest data check` on the folder."
            )

    def _limit(self, size: int) -> int:
        return max(HANDFUL, int(self.max_broken * size))

    def nothing_usable(self) -> DataError:
        """The error of a split of which a set has no usable sample."""
        all_of = {self.split.set_of(number): one for number, one in {**self.empty, **self.broken}.items()}
        found = [
            (source, one)
            for (source, size), one in all_of.items()
            if self._broken_of[source] + self._empty_of[source] >= size
        ]
        if not found:  # of a part of a set, such as the pictures of one shape
            last = next(reversed({**self.empty, **self.broken}.values()))
            return DataError(
                f"No usable sample of some shape in the {self.split.name} split: all are broken or have no caption, "
                f"such as {last.name}. Run `palimpsest data check` on the folder."
            )
        source, last = found[0]
        return DataError(
            f"No usable sample in {self._named(source)}: {self._broken_of[source]} are broken and "
            f"{self._empty_of[source]} have an empty caption, such as {last.name}. Run `palimpsest data check` on the "
            "folder."
        )

    def _named(self, source: str) -> str:
        return f"the {self.split.name} split" + (f" of {source}" if source else "")
