"""Check: read every sample of every shard before a run does, and say whether the run would be safe.

On the way it makes the index of every shard anew, so that a run that comes after finds them all.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipelines.artefact import file_hash
from pipelines.data.decode import BrokenSample, EmptyCaption, caption, label, picture
from pipelines.data.index import CACHE, make_index
from pipelines.data.place import SPLITS, Place, check_there, of_split, place_of
from pipelines.data.shards import Split
from pipelines.data.summary import UNKNOWN, Summary, row, stack
from pipelines.errors import DataError
from pipelines.progress import Tick

SHOWN = 10  # problems that a summary names


@dataclass(kw_only=True)
class CheckReport:
    """What was read, and what is wrong.

    problems would harm a run: damage, broken samples, missing captions, double keys, bytes that the manifest does not
    know or that differ from those of an earlier check, no train or test split. notes would not: empty captions
    (skipped), other sizes (cropped).
    """

    place: Place
    samples: Counter[str] = field(default_factory=Counter)  # by split
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height) of the pictures
    empty_captions: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: list[Summary] = field(default_factory=list)  # of the shards that were read, for the folder's summary
    hashes: dict[str, str] = field(default_factory=dict)  # sha256 by name of file
    keys: defaultdict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))  # their shards, by split

    @property
    def ok(self) -> bool:
        """Whether a training run on the folder would be safe."""
        return not self.problems

    def summary(self) -> str:
        """A few lines for a person: the verdict first."""
        counts = ", ".join(f"{number} {split}" for split, number in self.samples.items()) or "no samples"
        verdict = "safe to train on" if self.ok else f"not safe to train on: {len(self.problems)} problems"
        lines = [f"{self.place}: {counts}; {verdict}"]
        lines += [f"  problem: {sentence}" for sentence in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"  and {len(self.problems) - SHOWN} more")
        return "\n".join(lines + [f"  note: {sentence}" for sentence in self.notes])


def check(where: Path | str | Place, *, progress: Tick | None = None) -> CheckReport:
    """Read every shard of a set; raises DataError when it, any shard at all, or the way to one is missing."""
    place = place_of(where)
    check_there(place)
    names = place.names()
    if not names:
        raise DataError(f"No shards in {place}: expected .tar files; make some with `palimpsest data scenes DIR`.")
    report = CheckReport(place=place)
    before = place.known()
    for split in SPLITS:
        for name in of_split(names, split):
            with place.whole(name) as path:
                _check_shard(report, split, path, before, progress)
    _check_manifest(report, names)
    if report.rows and (words := place.keep(stack(report.rows))):
        report.notes.append(words)
    for split in ("train", "test"):
        if not report.samples[split]:
            report.problems.append(f"no readable {split} samples: a run trains on train and measures on test")
    _note_sizes(report)
    if report.empty_captions:
        report.notes.append(f"{report.empty_captions} captions are empty: training skips them")
    return report


def _check_manifest(report: CheckReport, names: Sequence[str]) -> None:
    manifest = report.place.manifest()
    if manifest is None:
        report.notes.append("no manifest.json: the bytes of the shards cannot be verified")
        return
    for name, entry in manifest.get("shards", {}).items():
        if name not in names:
            report.problems.append(f"{name} is in the manifest but not in the folder")
        elif _hash(report, name) != entry.get("sha256"):
            report.problems.append(f"{name} is not the file that the manifest knows: its sha256 differs")
    unknown = set(names) - set(manifest.get("shards", {}))
    report.notes += [f"{name} is not in the manifest" for name in sorted(unknown)]


def _hash(report: CheckReport, name: str) -> str:
    """The hash of a file of the folder, of one that belongs to no split as well."""
    if name not in report.hashes:
        with report.place.whole(name) as path:
            report.hashes[name] = file_hash(path)
    return report.hashes[name]


def _check_shard(report: CheckReport, split: str, path: Path, before: Summary, progress: Tick | None) -> None:
    shard = make_index(path)  # from the bytes, not from the cached index
    report.hashes[path.name] = file_hash(path)
    found = row(shard, bytes.fromhex(report.hashes[path.name]))
    if path.name in before.names:
        found = _compared(report, found, before.take([before.names.index(path.name)]))
    report.rows.append(found)
    report.problems += [f"{path.name}: {sentence}" for sentence in shard.damage]
    samples, seen = Split.alone(split, shard), report.keys[split]
    for number, key in enumerate(shard.all_keys()):
        if key in seen:
            report.problems.append(f"the key {key} is in {seen[key]} and in {path.name}")
        seen[key] = path.name
        _check_sample(report, samples, number)
        if progress is not None:
            progress(sum(report.samples.values()), None)


def _compared(report: CheckReport, now: Summary, before: Summary) -> Summary:
    """The row to keep: the new one, with the hash of the first check while size and time of change are the same."""
    (name,) = now.names
    same = now.stamp(0) == before.stamp(0)
    if not same or before.file_hash(0) in (UNKNOWN, now.file_hash(0)):
        return now
    report.problems.append(
        f"{name} holds other bytes than when it was checked first, though its size and time of change are the same: "
        f"copy it again, or delete {CACHE} in the folder if that was meant"
    )
    return Summary(
        folder=now.folder, names=now.names, stamps=now.stamps, samples=now.samples, damage=now.damage,
        hashes=np.stack([now.hashes[:, 0], before.hashes[:, 1]], 1),
    )  # fmt: skip


def _check_sample(report: CheckReport, split: Split, number: int) -> None:
    report.samples[split.name] += 1
    try:
        sample = split[number]
        report.sizes[picture(sample).size] += 1
        label(sample)
        caption(sample)
    except EmptyCaption:
        report.empty_captions += 1
    except BrokenSample as error:
        report.problems.append(f"{split.name_of(number)}: {error}")


def _note_sizes(report: CheckReport) -> None:
    if len(report.sizes) <= 1:
        return
    (width, height), count = report.sizes.most_common(1)[0]
    others = sum(report.sizes.values()) - count
    uneven = sum(number for (w, h), number in report.sizes.items() if w != h)
    report.notes.append(
        f"{others} pictures are not {width}x{height} like the other {count} ({uneven} are not square): "
        "they are resized and cropped at the centre"
    )
