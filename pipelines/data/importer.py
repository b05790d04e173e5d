"""Import: captioned pictures of any source -> shards of square RGB pictures, and what was dropped on the way."""

import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.data.picture import UnreadablePicture, fit, open_picture, to_rgb
from pipelines.data.shard_writer import Record, SplitWriter, new_folder, write_manifest
from pipelines.data.sources import Dropped, Found, find
from pipelines.errors import DataError
from pipelines.progress import Tick

VERSION = 1
RULES = (
    "EXIF orientation applied; transparency laid on white; grey, palette and CMYK to RGB; shorter side to the size "
    "(Lanczos when it shrinks, bicubic when it grows), then the centre; stored as PNG"
)
EXAMPLES = 5  # dropped sources that the manifest names for each reason
log = logging.getLogger("palimpsest")


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What was made and what was dropped."""

    out: Path
    manifest: dict[str, Any]

    def summary(self) -> str:
        """A few lines for a person."""
        counts = ", ".join(f"{number} {split}" for split, number in sorted(self.manifest["counts"].items()))
        lines = [f"{self.out}: {counts} samples of {self.manifest['size']} pixels"]
        if enlarged := self.manifest["enlarged"]:
            lines.append(f"  {enlarged} were smaller and have been enlarged")
        for reason, examples in self.manifest["dropped"].items():
            lines.append(f"  dropped {examples['count']}: {reason}, such as {examples['examples'][0]}")
        return "\n".join(lines)


@dataclass(kw_only=True)
class _Import:
    """Samples on their way into the splits."""

    writer: SplitWriter
    size: int
    test_share: float
    enlarged: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    held: list[Record] = field(default_factory=list)  # the pictures of smallest hash: a test split for tiny sets
    smallest: float = 2.0

    def drop(self, one: Dropped) -> None:
        self.dropped[one.reason] += 1
        examples = self.examples.setdefault(one.reason, [])
        if len(examples) < EXAMPLES:
            examples.append(one.source)
            log.info("Dropped %s: %s", one.source, one.reason)

    def add(self, found: Found) -> None:
        try:
            image = to_rgb(open_picture(found.picture))
        except UnreadablePicture:
            self.drop(Dropped(source=found.source, reason="unreadable picture"))
            return
        self.enlarged += min(image.size) < self.size
        image = fit(image, self.size)
        place = share_of(image)
        split = found.split or ("test" if place < self.test_share else "train")
        record = _record(image, found, split)
        if found.split is None and split == "train" and self.test_share:
            self._hold(record, place)
        else:
            self.writer.add(split, record)

    def _hold(self, record: Record, place: float) -> None:
        if place < self.smallest:
            self.release("train")
            self.smallest = place
        if place == self.smallest:
            self.held.append(record)
        else:
            self.writer.add("train", record)

    def release(self, split: str) -> None:
        for record in self.held:
            self.writer.add(split, record)
        self.held.clear()


def import_data(
    src: Path,
    out: Path,
    *,
    size: int = 64,
    test_share: float = 0.05,
    progress: Tick | None = None,
) -> ImportReport:
    """Make train and test shards of a folder, a captions list or other shards; see RULES for what is done to pictures.

    A picture goes to the test split when the hash of its pixels says so: equal pictures stay on one side, and the same
    source gives the same shards. Shards that are named train, test or unseen keep their split. Raises DataError when
    the arguments are out of range, nothing usable is found, or `out` holds something already.
    """
    if not 8 <= size <= 4096:
        raise DataError(f"--size is {size}: expected from 8 to 4096 pixels.")
    if not 0 <= test_share < 1:
        raise DataError(f"--test-share is {test_share}: expected a share from 0 to below 1, such as 0.05.")
    candidates = find(Path(src))
    with new_folder(Path(out)) as folder:
        with SplitWriter(folder) as writer:
            work = _Import(writer=writer, size=size, test_share=test_share)
            for done, candidate in enumerate(candidates, start=1):
                work.add(candidate) if isinstance(candidate, Found) else work.drop(candidate)
                if progress is not None:
                    progress(done, None)
            work.release("train" if writer.counts["test"] or not writer.counts["train"] else "test")
        manifest = _manifest(work, src)
        if not any(writer.counts.values()):
            reasons = ", ".join(f"{count} {reason}" for reason, count in work.dropped.items()) or "nothing found"
            raise DataError(f"Nothing in {src} can be imported ({reasons}): see the log for names.")
        write_manifest(folder, manifest)
    return ImportReport(out=Path(out), manifest=manifest)


def share_of(image: Image.Image) -> float:
    """Hash of the pixels as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8]) / 2**64


def _record(image: Image.Image, found: Found, split: str) -> Record:
    png = BytesIO()
    image.save(png, "PNG")
    label = {**found.label, "source": found.label.get("source", found.source), "split": split}
    return {"png": png.getvalue(), "txt": found.caption, "json": json.dumps(label)}


def _manifest(work: _Import, src: Path) -> dict[str, Any]:
    return {
        "kind": "import",
        "version": VERSION,
        "size": work.size,
        "source": Path(src).name,
        "rules": RULES,
        "test_share": work.test_share,
        "counts": {split: count for split, count in work.writer.counts.items() if count},
        "enlarged": work.enlarged,
        "dropped": {r: {"count": n, "examples": work.examples[r]} for r, n in sorted(work.dropped.items())},
        "shards": work.writer.entries(),
    }
