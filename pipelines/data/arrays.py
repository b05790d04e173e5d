"""Small files of arrays that may be lost at any time: nothing is unpickled, and what does not read is not there.

A file is safetensors with the sha256 of its bytes behind them: a byte that has changed is found whatever it means.
"""

import hashlib
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

HASH = 32  # bytes of a sha256
log = logging.getLogger("palimpsest")


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Arrays of a file; None where there is no such file or any byte of it is not as it was written."""
    try:
        return parse_arrays(path.read_bytes())
    except OSError:
        return None


def parse_arrays(data: bytes) -> dict[str, np.ndarray] | None:
    """Arrays of the bytes of a file; None where any byte is not as it was written."""
    try:
        if hashlib.sha256(data[:-HASH]).digest() == data[-HASH:]:
            return load(data[:-HASH])
    except SafetensorError:
        pass
    return None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Put arrays in their place at once; returns whether that was possible."""
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return put(path, data + hashlib.sha256(data).digest())


def put(path: Path, data: bytes) -> bool:
    """Put a file in its place at once; returns whether that was possible.

    Several processes may write the same file: the last one stands. A parent folder that nobody may write to is left
    alone.
    """
    owner = path.parent.parent
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # hosts that share a folder share process ids too
    try:
        if not owner.stat().st_mode & 0o222:
            return False  # root could write even here, but somebody has asked that nobody does
        path.parent.mkdir(exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        log.debug("No index cached beside %s: %s", owner, error)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        return False
    return True


def compact(values: Sequence[int] | np.ndarray) -> np.ndarray:
    """Numbers from 0 on in the smallest unsigned type that holds them."""
    array = np.asarray(values, np.uint64)
    return array.astype(np.min_scalar_type(int(array.max(initial=0))))


def blob(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts one after another as bytes (N,) uint8, and where each of them ends; names that are no text survive."""
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    ends = np.cumsum([len(part) for part in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), compact(ends)


def texts_of(data: np.ndarray, ends: np.ndarray) -> list[str]:
    """The texts of a blob."""
    content, last = data.tobytes(), ends.tolist()
    return [content[a:b].decode("utf-8", "surrogateescape") for a, b in zip([0, *last], last, strict=False)]
