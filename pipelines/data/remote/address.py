"""Addresses of shards: a folder or some of its files on another machine, and what of that may be shown and kept."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, unquote, urlsplit

from braceexpand import braceexpand

from pipelines.errors import DataError, nearest

PROTOCOLS = ("http", "https", "s3", "gs")
LISTED = ("s3", "gs")  # where a folder can be asked what is in it
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/+")


@dataclass(frozen=True, kw_only=True)
class Address:
    """A folder of shards, or some shards of one.

    base: the folder as it is asked for, with a slash at its end; query: goes behind the name of every file; given: the
    text that it was read from. All three may hold credentials, so none is ever shown. names: the shards that the
    address names, none for a whole folder.
    """

    protocol: str
    base: str = field(repr=False)
    query: str = field(repr=False)
    given: str = field(repr=False)
    shown: str  # without user, password and query
    names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read https://host/folder/, s3://bucket/prefix, or https://host/train-{000..127}.tar.

        Raises DataError for another protocol, braces in a folder, or credentials where they have no place.
        """
        protocol = text.partition(":")[0].lower()
        if protocol not in PROTOCOLS:
            known = ", ".join(f"{name}://" for name in PROTOCOLS)
            raise DataError(f"Shards at {protocol}:// cannot be read{nearest(protocol, PROTOCOLS)}: give {known}.")
        split = _split(text, protocol)
        host = split.netloc.rpartition("@")[2]
        shown = f"{protocol}://{host}{split.path}"
        if not host or (protocol in LISTED and (split.query or split.fragment or host != split.netloc)):
            form = f"{protocol}://{'BUCKET/PREFIX' if protocol in LISTED else 'HOST/FOLDER/'}"
            more = "; its credentials come from the environment or from their usual files" if protocol in LISTED else ""
            raise DataError(f"{shown} is no address of shards: expected {form}{more}.")
        folder, _, last = split.path.rpartition("/")
        if not ("{" in last or last.endswith(".tar")):
            folder, last = split.path.rstrip("/"), ""
        if "{" in folder:
            raise DataError(f"{shown} has braces in its folder: expected them in the name of the file alone.")
        base = f"{split.netloc}{folder}/" if protocol in LISTED else f"{protocol}://{split.netloc}{folder}/"
        names = _expanded(last if protocol in LISTED else unquote(last), shown)
        return cls(protocol=protocol, base=base, query=split.query, given=text, shown=shown, names=names)

    @property
    def folder(self) -> str:
        """The folder, as it may be shown."""
        return f"{self.shown.rpartition('/')[0] if self.names else self.shown.rstrip('/')}/"

    @property
    def listed(self) -> bool:
        """Whether the folder can be asked what is in it."""
        return self.protocol in LISTED

    @property
    def key(self) -> str:
        """A name for the folder's files on this machine: the same for whoever asks, with whatever credentials."""
        words = re.sub(r"[^A-Za-z0-9.]+", "-", self.folder.partition("://")[2]).strip("-.")
        return f"{words[-60:]}-{hashlib.sha256(self.folder.encode()).hexdigest()[:12]}"

    def url(self, name: str) -> str:
        """What to ask for to get a file of the folder, credentials included."""
        return self.base + name if self.listed else self.base + quote(name) + (f"?{self.query}" if self.query else "")

    def of(self, name: str) -> str:
        """A file of the folder, as it may be shown."""
        return self.folder + name


def is_address(text: str) -> bool:
    """Whether a text is an address and no path. Raises DataError for one that has been through a Path."""
    found = _SCHEME.match(text)
    if found and "://" not in text and found[1].lower() in PROTOCOLS:
        raise DataError(f"{without_credentials(text)} lacks a slash: give an address as text, not as a Path.")
    return found is not None and "://" in found[0]


def without_credentials(text: str) -> str:
    """A text in which no address has a user, a password, a query or a fragment."""
    text = re.sub(r"(\w:/+)[^/\s@'\"]*@", r"\1", text)
    return re.sub(r"(\w:/+[^\s?#'\"]*)[?#][^\s'\")]*", r"\1", text)


def check_no_secret(text: str | None, name: str) -> None:
    """Raise ValueError where an address in a recipe, which is kept and passed on, holds credentials."""
    if text is not None and is_address(text) and without_credentials(text) != text:
        raise ValueError(f"{name} holds a password or a query: give such an address by --data, which is not kept")


def _split(text: str, protocol: str) -> SplitResult:
    """The parts of an address; one that is wrong is not shown, since nobody knows where its password ends."""
    try:
        found = urlsplit(text)
        _ = found.port  # raises where that is no number
    except ValueError:
        raise DataError(
            f"The {protocol}:// address has no host and port that can be read: expected {protocol}://HOST/FOLDER/ or "
            f"{protocol}://HOST:PORT/FOLDER/; within a password write / as %2F, @ as %40 and : as %3A."
        ) from None
    return found


def _expanded(last: str, shown: str) -> tuple[str, ...]:
    """The names that a pattern stands for, in their order; none for an empty one."""
    if not last:
        return ()
    try:
        names = sorted(braceexpand(last))
    except ValueError as error:
        raise DataError(f"{shown} has a brace too many or too few: expected such as train-{{000..127}}.tar.") from error
    for before, name in zip(["", *names], names, strict=False):
        if not name.endswith(".tar") or "/" in name or "{" in name:
            raise DataError(f"{shown} names {name!r}: expected shards, such as train-{{000..127}}.tar.")
        if name == before:
            raise DataError(f"{shown} names {name} twice: expected each shard once.")
    return tuple(names)
