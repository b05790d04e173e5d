"""The ledger: samples that a training run passes over, kept with its checkpoints and named in its manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipelines.data.skipped import Skip

if TYPE_CHECKING:
    from pipelines.data.stream import Stream  # slow to import, and a recipe is read without it

NAMED = 20  # samples of each stream and set that a manifest names

Rows = dict[str, list[list[Any]]]  # by the name of the stream, as Skip has them


class Ledger:
    """What the streams of a task have passed over, each sample once, on this process and, once restored, on all."""

    def __init__(self) -> None:
        self._known: dict[str, dict[int, Skip]] = {}
        self._streams: dict[str, Stream] = {}

    def watch(self, name: str, stream: Stream) -> Stream:
        """Return a stream that is about to begin, which now knows what was passed over before."""
        self._remember()
        stream.pass_over(self._known.get(name, {}).values())
        self._streams[name] = stream
        return stream

    def rows(self) -> Rows:
        """Return the samples as plain values, by their numbers."""
        self._remember()
        return {name: [list(skips[number]) for number in sorted(skips)] for name, skips in self._known.items() if skips}

    def restore(self, rows: Iterable[Rows]) -> None:
        """Take over what each process has noted; streams that begin from now on do not read those samples again."""
        for one in rows:
            for name, skips in one.items():
                known = self._known.setdefault(name, {})
                known.update((skip.number, skip) for skip in (Skip(*row) for row in skips))

    def _remember(self) -> None:
        for name, stream in self._streams.items():
            skipped = stream.skipped
            self._known.setdefault(name, {}).update({**skipped.broken, **skipped.empty})


def summary(rows: Rows) -> dict[str, dict[str, Any]]:
    """Return what a manifest says of each stream, of several sets of each: how many were broken or empty, the first."""
    found: dict[str, list[Skip]] = {}
    for name, plain in rows.items():
        for skip in (Skip(*row) for row in plain):
            found.setdefault(f"{name} of {skip.source}" if skip.source else name, []).append(skip)
    return {
        name: {
            "broken": sum(not skip.empty for skip in skips),
            "empty": sum(skip.empty for skip in skips),
            "first": [{"name": skip.name, "reason": skip.reason} for skip in skips[:NAMED]],
        }
        for name, skips in found.items()
    }


def said(passed_over: Mapping[str, Mapping[str, Any]], most: int = 5) -> str:
    """Say in a line what the manifest of a stage says of its streams."""
    parts = []
    for name, one in passed_over.items():
        first = ", ".join(f"{skip['name']} ({skip['reason']})" for skip in one["first"][:most])
        more = one["broken"] + one["empty"] - min(most, len(one["first"]))
        also = f" and {more} more" if more else ""
        parts.append(f"{one['broken']} broken and {one['empty']} empty of {name}: {first}{also}")
    return "; ".join(parts)
