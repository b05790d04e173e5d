"""Samples that are passed over: counted, named in the log, and too many of them stop the run."""

import logging
from dataclasses import dataclass, field
from typing import NamedTuple

from pipelines.data.decode import BrokenSample, EmptyCaption
from pipelines.data.shards import Split
from pipelines.errors import DataError

HANDFUL = 5  # so many broken samples never stop a run, however small the split
log = logging.getLogger("palimpsest")


class Skip(NamedTuple):
    """One sample that was passed over."""

    number: int
    name: str
    reason: str
    empty: bool  # only its caption is empty: no damage


def skip(split: Split, number: int, error: BrokenSample) -> Skip:
    """Say which sample was passed over and why."""
    return Skip(number, split.name_of(number), str(error), isinstance(error, EmptyCaption))


@dataclass(kw_only=True)
class Skipped:
    """What a run has passed over in one split: `broken` and `empty` by the number of the sample.

    max_broken: share of the split that may be broken; a handful may be whatever the share.
    """

    split: Split
    max_broken: float = 0.01
    broken: dict[int, Skip] = field(default_factory=dict)
    empty: dict[int, Skip] = field(default_factory=dict)

    def note(self, one: Skip) -> None:
        """Count a sample once and name it; raises DataError beyond the stated share."""
        if one.number in self.broken or one.number in self.empty:
            return
        if one.empty:
            self.empty[one.number] = one
            log.info("Skipped %s: %s (%d so far)", one.name, one.reason, len(self.empty))
            return
        self.broken[one.number] = one
        count = len(self.broken)
        log.warning("Skipped broken sample %s: %s (%d, a run fails beyond %d)", one.name, one.reason, count, self.limit)
        self.check(count, f"; the last is {one.name}: {one.reason}")

    @property
    def limit(self) -> int:
        """How many samples may be broken."""
        return max(HANDFUL, int(self.max_broken * len(self.split)))

    def check(self, count: int, last: str = "") -> None:
        """Raise DataError where more samples are broken than may be."""
        if count > self.limit:
            raise DataError(
                f"{count} of {len(self.split)} samples of the {self.split.name} split are broken, more than the "
                f"{self.limit} allowed{last}. Run `palimpsest data check` on the folder."
            )

    def nothing_usable(self) -> DataError:
        """The error of a split without any usable sample."""
        last = list((self.broken or self.empty).values())[-1]
        return DataError(
            f"No usable sample in the {self.split.name} split: {len(self.broken)} are broken and {len(self.empty)} "
            f"have an empty caption, such as {last.name}. Run `palimpsest data check` on the folder."
        )
