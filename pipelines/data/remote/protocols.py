"""The protocols, by fsspec: files at an address, with time-outs, and what failed in words that hold no secret."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import aiohttp
import fsspec

from pipelines.data.remote.address import Address, without_credentials
from pipelines.errors import DataError

EXTRAS = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gs")}  # what a protocol needs, and the extra that brings it
GONE = (401, 403, 404, 410)  # stores say so of what is not there, and of what nobody may know to be there
CHUNK = 8 << 20  # bytes of a request


class Timeouts(NamedTuple):
    """Seconds until a connection must stand, and for which a transfer may bring nothing."""

    connect: float
    stall: float


class About(NamedTuple):
    """What a server says of a file: bytes, where it does, and when it changed (0 where it does not say)."""

    bytes: int | None
    mtime_ns: int


class Files:
    """Files of a folder elsewhere. fsspec's errors pass through; `reason_of` puts them into words."""

    def __init__(self, address: Address, timeouts: Timeouts) -> None:
        self.address, self.timeouts = address, timeouts
        if (needed := EXTRAS.get(address.protocol)) and importlib.util.find_spec(needed[0]) is None:
            raise DataError(
                f"{address.protocol}:// needs {needed[0]}, which is not there: pip install 'palimpsest[{needed[1]}]'."
            )
        self._pid, self._system = -1, None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pid": -1, "_system": None}

    @property
    def system(self) -> Any:
        """The file system, one for each process: connections do not survive a fork."""
        if self._pid != os.getpid():
            self._pid, self._system = os.getpid(), self._made()
        return self._system

    def _made(self) -> Any:
        connect, stall = self.timeouts
        match self.address.protocol:
            case "s3":
                config = {"connect_timeout": connect, "read_timeout": stall, "retries": {"max_attempts": 1}}
                return fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=config)
            case "gs":
                return fsspec.filesystem("gs", use_listings_cache=False, requests_timeout=stall)
            case protocol:
                timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=stall)
                return fsspec.filesystem(
                    protocol,
                    client_kwargs={"timeout": timeout, "trust_env": True},  # proxies and ~/.netrc
                    headers={"Accept-Encoding": "identity"},  # the bytes as they lie there
                    encoded=bool(self.address.query),  # a signature is of the text as it was given
                )

    def read(self, name: str) -> bytes:
        """All bytes of a small file."""
        return self.system.cat_file(self.address.url(name))

    def open(self, name: str, *, ranges: bool) -> Any:
        """A file for reading: by requests for `CHUNK` bytes each, or in one go from its beginning."""
        size = CHUNK if ranges or self.address.listed else 0
        return self.system.open(self.address.url(name), "rb", block_size=size, cache_type="none")

    def about(self, name: str) -> About:
        """What is known of a file without reading it."""
        return _about(self.system.info(self.address.url(name)))

    def tars(self) -> dict[str, About]:
        """The tars of a folder that can be listed."""
        found = self.system.ls(self.address.base.rstrip("/"), detail=True)
        files = {one["name"].rpartition("/")[2]: one for one in found if one["type"] == "file"}
        return {name: _about(files[name]) for name in sorted(files) if name.endswith(".tar")}


def _about(info: dict[str, Any]) -> About:
    changed = info.get("LastModified") or info.get("Last-Modified") or info.get("mtime") or info.get("updated")
    try:
        if isinstance(changed, str):
            changed = datetime.fromisoformat(changed) if changed[:1].isdigit() else parsedate_to_datetime(changed)
    except ValueError:
        changed = None
    return About(info.get("size"), int(changed.timestamp()) * 10**9 if isinstance(changed, datetime) else 0)


def is_gone(error: BaseException) -> bool:
    """Whether an error says that there is no such file, or none that may be read."""
    error = _first(error)
    return isinstance(error, FileNotFoundError | PermissionError) or getattr(error, "status", None) in GONE


def reason_of(error: BaseException, timeouts: Timeouts) -> str:
    """What an error of a transfer means, in a few words without credentials."""
    error = _first(error)
    match error:
        case aiohttp.ClientResponseError():
            return f"HTTP {error.status} {error.message}".strip()
        case aiohttp.ConnectionTimeoutError():
            return f"no connection within {timeouts.connect:g} s"
        case asyncio.TimeoutError() | fsspec.exceptions.FSTimeoutError():
            return f"no byte for {timeouts.stall:g} s"
        case FileNotFoundError():
            return "not found (404)"
        case aiohttp.ClientPayloadError():
            return "the connection broke off"
    said = without_credentials(str(error).splitlines()[0]) if str(error) else ""
    return f"{said} ({type(error).__name__})" if said else type(error).__name__


def _first(error: BaseException) -> BaseException:
    """fsspec covers some errors with one that says less."""
    covered = isinstance(error, FileNotFoundError | fsspec.exceptions.FSTimeoutError) and error.__cause__ is not None
    return error.__cause__ if covered and error.__cause__ is not None else error
