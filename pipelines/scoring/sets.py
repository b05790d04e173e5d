"""Pictures that are judged: a folder of files, whoever made them, or a split of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eval.human.errors import named as few
from pipelines.artefact import digest, file_hash
from pipelines.data.decode import caption, label, picture, picture_bytes
from pipelines.data.picture import EXTENSIONS, fit, open_picture, to_rgb
from pipelines.data.place import place_of
from pipelines.data.shapes import header
from pipelines.data.shards import Split, open_split
from pipelines.data.sources import inside
from pipelines.errors import DataError
from pipelines.scoring.captions import about, captions_of
from pipelines.sets import Source, named, splits_of

Picture = NDArray[np.uint8]  # (H, W, 3)
REMAKE = "Make it again; a figure over the rest would hide it."
CHECK = "`palimpsest data check` names all such samples."


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """Pictures in a fixed order, read when they are asked for.

    title: what tables call it; sha256: of all that decides the pixels; name: of picture i, for messages and matching;
    caption: what was asked for, where anybody says; about: what is known of picture i beside it, its `label` (a table)
    and whether it was `not_finite` when it was drawn; split: of shards, else "all".
    """

    title: str
    sha256: str
    count: int
    read: Callable[[int], Picture]
    shape: Callable[[int], tuple[int, int]]  # height and width of picture i
    name: Callable[[int], str]
    caption: Callable[[int], str] | None = None
    about: Callable[[int], Mapping[str, Any]] | None = None
    split: str = "all"
    one_size: tuple[int, int] | None = None  # height and width that all were brought to

    @classmethod
    def of(
        cls, pictures: Sequence[Picture], title: str, *, split: str = "all", names: Sequence[str] | None = None,
        captions: Sequence[str] | None = None, abouts: Sequence[Mapping[str, Any]] | None = None,
    ) -> PictureSet:  # fmt: skip
        """Pictures in memory, known by their pixels; names: without any, their numbers."""
        sha = hashlib.sha256()
        for one in pictures:
            sha.update(repr(one.shape).encode() + np.ascontiguousarray(one).tobytes())
        return cls(
            title=title,
            sha256=sha.hexdigest(),
            count=len(pictures),
            read=pictures.__getitem__,
            shape=lambda i: pictures[i].shape[:2],
            name=str if names is None else names.__getitem__,
            caption=None if captions is None else captions.__getitem__,
            about=None if abouts is None else abouts.__getitem__,
            split=split,
        )

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Picture]:
        return map(self.read, range(self.count))

    def captions(self) -> list[str] | None:
        """All captions; None where there are none. Raises DataError where only some pictures have one."""
        found = [] if self.caption is None else [self.caption(i) for i in range(self.count)]
        if not any(found):
            return None
        if empty := [self.name(i) for i, words in enumerate(found) if not words]:
            raise DataError(f"{self.title}: {len(empty)} of {len(found)} pictures have no caption: {few(empty)}.")
        return found

    def some(self, count: int | None, seed: int) -> PictureSet:
        """At most `count` of them, drawn by the seed, in their order."""
        if count is None or count >= self.count:
            return self
        return self.at(some_of(self.count, count, seed).tolist())

    def at(self, places: Sequence[int]) -> PictureSet:
        """Those at some places."""
        read, shape, name, caption, about = self.read, self.shape, self.name, self.caption, self.about
        return replace(
            self,
            sha256=digest([self.sha256, list(places)]),
            count=len(places),
            read=lambda i: read(places[i]),
            shape=lambda i: shape(places[i]),
            name=lambda i: name(places[i]),
            caption=None if caption is None else lambda i: caption(places[i]),
            about=None if about is None else lambda i: about(places[i]),
        )

    def fitted(self, height: int, width: int) -> PictureSet:
        """The largest middle part of that ratio, resized with antialiasing, of each."""
        read = self.read
        return replace(
            self,
            sha256=digest([self.sha256, "fit", height, width]),
            read=lambda i: np.asarray(fit(Image.fromarray(read(i)), height, width)),
            shape=lambda i: (height, width),
            one_size=(height, width),
        )

    def one_shape(self) -> tuple[int, int] | None:
        """Height and width where all pictures have the same."""
        found = set(map(self.shape, range(self.count)))
        return found.pop() if len(found) == 1 else None


def some_of(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """The places of at most `most` of `count` things, drawn by the seed, in their order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def open_set(
    path: str | Path, *, split: str = "train", prompts: Path | None = None, title: str = "", captions: bool = True
) -> PictureSet:
    """Open a folder of pictures, or a split of shards in a folder or at an address.

    prompts: a list of captions of a folder's pictures; without one they are looked for beside them, unless nobody asks
    for `captions`. Raises DataError where there is nothing, where a file is no picture, and for pictures that are
    missing or too many for the list.
    """
    if _is_of_files(path):
        return _of_folder(Path(path), prompts, title or Path(path).name, captions)
    if prompts is not None:
        raise DataError(f"--prompts {prompts} names captions of files, but {path} holds shards, which have their own.")
    if "://" not in str(path) and not Path(path).is_dir():
        raise DataError(f"There is no folder {path}: name one of pictures, or of shards.")
    place = place_of(path)
    opened = open_split(place, split)
    return PictureSet(
        title=title or str(place),
        sha256=digest([place.manifest() or {}, named(place, opened.shards.names), split]),
        count=len(opened),
        read=lambda i: _of_sample(opened, i),
        shape=lambda i: _shape(opened, i),
        name=opened.name_of,
        caption=lambda i: _words(opened, i),
        about=lambda i: _label(opened, i),
        split=split,
    )


def splits_there(path: str | Path) -> list[str]:
    """The splits of shards; none of a folder of pictures."""
    return [] if _is_of_files(path) else splits_of([Source("", place_of(path), 1.0)])


def _is_of_files(path: str | Path) -> bool:
    """Whether a path is a folder of files, not of shards."""
    return Path(path).is_dir() and not list(Path(path).glob("*.tar"))


def pictures_in(folder: Path) -> list[str]:
    """The names of all pictures in a folder, at any depth, sorted. Raises DataError where there are none."""
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower().lstrip(".") in EXTENSIONS
        and not path.name.startswith(".")
        and not (path.name == "grid.png" and (path.parent / "samples").is_dir())  # GenEval's overview
    )
    if not paths:
        raise DataError(f"{folder} holds no pictures and no shards: expected files such as a.png, or *.tar.")
    names = [path.relative_to(folder).as_posix() for path in paths]
    if outside := [name for name in names if inside(folder, name) is None]:
        raise DataError(f"{few(outside)}: links that lead out of {folder}. Copy the files themselves.")
    return names


def _of_folder(folder: Path, prompts: Path | None, title: str, captioned: bool) -> PictureSet:
    names = pictures_in(folder)
    paths = [folder / name for name in names]
    captions = captions_of(folder, names, prompts) if captioned else None
    return PictureSet(
        title=title,
        sha256=digest([names, [file_hash(path) for path in paths]]),
        count=len(paths),
        read=lambda i: _of_file(paths[i]),
        shape=lambda i: _header(paths[i]),
        name=names.__getitem__,
        caption=None if captions is None else lambda i: captions[names[i]],
        about=lambda i: about(folder, names[i]),
    )


def _of_file(path: Path) -> Picture:
    with _said(lambda: path, REMAKE):
        return np.asarray(to_rgb(open_picture(path.read_bytes())))


def _header(path: Path) -> tuple[int, int]:
    """The shape of a picture without decoding it."""
    with _said(lambda: path, REMAKE):
        return header(path.read_bytes())


def _of_sample(opened: Split, number: int) -> Picture:
    with _said(partial(opened.name_of, number), CHECK):
        return np.asarray(picture(opened[number]))


def _shape(opened: Split, number: int) -> tuple[int, int]:
    with _said(partial(opened.name_of, number), CHECK):
        return header(picture_bytes(opened[number]))


def _words(opened: Split, number: int) -> str:
    """The caption of a sample, empty where it has none."""
    with _said(partial(opened.name_of, number), CHECK):
        return caption(opened[number], required=False)


def _label(opened: Split, number: int) -> dict[str, Any]:
    with _said(partial(opened.name_of, number), CHECK):
        return {"label": label(opened[number])}


@contextmanager
def _said(name: Callable[[], object], remedy: str) -> Iterator[None]:
    """Name what cannot be read, and say what to do."""
    try:
        yield
    except ValueError as error:  # of a broken sample, an unreadable picture, a header
        raise DataError(f"{name()}: {error}. {remedy}") from error
