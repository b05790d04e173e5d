"""What can be known of a set at an address without its shards: which there are, their sizes, summary and manifest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pipelines.data.arrays import parse_arrays
from pipelines.data.index import CACHE, Stamp
from pipelines.data.remote.protocols import About, Files, is_gone, reason_of
from pipelines.data.remote.transfer import Patience
from pipelines.data.shard_writer import MANIFEST, parse_manifest
from pipelines.data.summary import FOLDER, Summary, parse_summary
from pipelines.errors import DataError

SUMMARY = f"{CACHE}/{FOLDER}"
OPENING = 4  # tries, at most, while nothing would be lost
REQUESTS = 8  # at once, where every shard is asked after
Found = TypeVar("Found")
log = logging.getLogger("palimpsest")


class Catalogue:
    """What a server says of a set; it is asked once for each thing.

    folder: of the set on this machine. hurried: one try is enough, since whoever asks can do without.
    """

    def __init__(self, files: Files, folder: Path, patience: Patience, *, hurried: bool) -> None:
        self.files, self.address, self.folder = files, files.address, folder
        self.patience = replace(patience, tries=1 if hurried else min(patience.tries, OPENING))
        self._absent: dict[str, str] = {}  # why something is not there
        self._stamps: dict[str, Stamp] = {}

    def names(self) -> list[str]:
        """The shards, sorted: those of the address, or of a list of the folder, its summary or its manifest.

        Raises DataError where there is nothing of all that, or where shards that the address names are not there.
        """
        if self.address.listed:
            return sorted(self.listed)
        if self.address.names:
            return list(self.address.names)
        found, summary = self.summary.names or (self.manifest or {}).get("shards", {}), self.address.of(SUMMARY)
        names = sorted(name for name in found if name.endswith(".tar") and "/" not in name)
        if not names:
            raise DataError(
                f"{self.address.shown} cannot be asked which shards are there, and {summary} is not to be had "
                f"({self._absent.get(summary, 'it lists none')}). Put {CACHE} beside the shards, which "
                "`palimpsest data check DIR` makes where they lie as files, or name them: "
                f"{self.address.folder}train-{{000000..000127}}.tar."
            )
        return names

    @cached_property
    def listed(self) -> dict[str, About]:
        """The shards of a folder that can be listed; of one that cannot, none."""
        if not self.address.listed:
            return {}
        found = self._ask(self.address.folder, self.files.tars) or {}
        wanted = self.address.names or tuple(found)
        if gone := [name for name in wanted if name not in found]:
            raise DataError(
                f"{self.address.shown}: {len(gone)} of {len(wanted)} shards are missing, such as {gone[0]}."
            )
        return {name: found[name] for name in wanted}

    @cached_property
    def summary(self) -> Summary:
        """The summary that lies beside the shards; without rows where there is none."""
        data, name = self.optional(SUMMARY), self.address.of(SUMMARY)
        found = parse_summary(None if data is None else parse_arrays(data), self.folder)
        if data is not None and not len(found):
            self._absent[name] = "it is damaged, or of another version"
            log.warning("%s is not used: %s.", name, self._absent[name])
        return found

    @cached_property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest of the set. Raises DataError where it cannot be read."""
        data = self.optional(MANIFEST)
        return None if data is None else parse_manifest(data, self.address.of(MANIFEST))

    def sha256(self, name: str) -> str | None:
        """The sha256 of a shard in the manifest."""
        return (self.manifest or {}).get("shards", {}).get(name, {}).get("sha256")

    def optional(self, name: str) -> bytes | None:
        """The bytes of a file that need not be there. Raises Unreachable where that cannot be found out."""
        return self._ask(self.address.of(name), lambda: self.files.read(name))

    def stamps(self, names: Sequence[str]) -> list[Stamp]:
        """Stamps of shards: of their row in the summary, where that is not older than what the folder's list says."""
        place = {name: number for number, name in enumerate(self.summary.names)}
        known = {name: self.summary.stamp(place[name]) for name in names if name in place}
        old = {name for name, about in self.listed.items() if name in known and about.bytes != known[name].bytes}
        asked = [name for name in names if name not in known or name in old]
        with ThreadPoolExecutor(REQUESTS) as pool:
            known |= zip(asked, pool.map(self.stamp, asked), strict=True)
        return [known[name] for name in names]

    def stamp(self, name: str, *, anew: bool = False) -> Stamp:
        """The stamp of a shard as the server has it, asked once unless it is to be asked anew.

        Raises DataError where the server does not say.
        """
        if anew or name not in self._stamps:
            self._stamps[name] = self._stamp(name)
        return self._stamps[name]

    def _stamp(self, name: str) -> Stamp:
        shown = self.address.of(name)
        about = self.listed.get(name) or self._ask(shown, lambda: self.files.about(name))
        if about is None:
            raise DataError(f"There is no {shown} ({self._absent[shown]}): check the address.")
        if about.bytes is None:
            raise DataError(
                f"The server does not say how many bytes {shown} has: put {CACHE} beside the shards, "
                "which `palimpsest data check DIR` makes where they lie as files."
            )
        return Stamp(about.bytes, about.mtime_ns)

    def _ask(self, shown: str, once: Callable[[], Found]) -> Found | None:
        """Ask the server; None where it says that there is nothing."""

        def asked() -> Found | None:
            try:
                return once()
            except Exception as error:
                if not is_gone(error):
                    raise
                self._absent[shown] = reason_of(error, self.patience.timeouts)
                return None

        return self.patience.until_it_works(shown, asked)
