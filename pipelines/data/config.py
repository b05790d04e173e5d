"""The sets of pictures and texts that a recipe can read, alone or mixed by weight."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.data.mixture import whole_turns
from pipelines.data.order import BLOCK, check_block
from pipelines.data.ratios import Buckets
from pipelines.data.remote.address import check_no_secret, is_address

FIRST = "data"  # the name of the set that [data] itself is


@dataclass(frozen=True, kw_only=True)
class MoreScenes:
    """Built-in scenes as a further set."""

    kind: Literal["scenes"] = "scenes"
    name: str = ""  # none: scenes
    weight: float = 1.0  # its share of what is drawn, relative to those of the other sets
    size: int = 32
    count: int = 20_000
    seed: int = 0
    render: int | None = None  # pixels of the pictures in the shards, from which stages read smaller ones; None is size

    def __post_init__(self) -> None:
        """Refuse pictures that would have to be enlarged."""
        check_weight(self.weight)
        check_render(self.size, self.render)


@dataclass(frozen=True, kw_only=True)
class MoreFiles:
    """What all further sets of shards say, in a folder or at an address."""

    name: str = ""  # none: the last part of its path
    weight: float = 1.0
    path: str
    credit: str = ""

    def __post_init__(self) -> None:
        """Refuse weights that draw nothing, and secrets."""
        check_weight(self.weight)
        check_no_secret(self.path, "data.more.path")


@dataclass(frozen=True, kw_only=True)
class MoreShards(MoreFiles):
    """Shards of captioned images as a further set."""

    kind: Literal["shards"] = "shards"


@dataclass(frozen=True, kw_only=True)
class MoreTexts(MoreFiles):
    """Shards of texts without pictures (`KEY.txt` in *train*.tar), read by the stages that learn text."""

    kind: Literal["texts"] = "texts"


AnyMore = Annotated[MoreScenes | MoreShards | MoreTexts, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True)
class Sets:
    """What [data] says of all pictures, and the further sets that are mixed in."""

    weight: float = 1.0  # of the first set
    block: int = BLOCK  # shards of a set that are shuffled together; with as many as there are, all its samples are
    workers: int = 0  # processes that read ahead for each process that trains, which changes nothing in what is read
    more: tuple[AnyMore, ...] = ()
    buckets: Buckets | None = None  # shapes of pictures that are not square

    def __post_init__(self) -> None:
        """Refuse blocks of nothing, fewer workers than none, a weight alone, and sets that cannot be told apart."""
        check_weight(self.weight)
        check_block(self.block)
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}, expected how many processes read ahead: 0 for none, or more")
        if self.weight != 1 and not self.more:
            raise ValueError(
                f"weight is {self.weight:g}, but there is no other set: leave it out, or add [[data.more]]"
            )
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise ValueError(f"two sets are called {twice[0]!r}: give one of them another name")
        whole_turns([self.weight, *(one.weight for one in self.pictures)])
        if self.texts:
            whole_turns([one.weight for one in self.texts])

    @property
    def pictures(self) -> tuple[MoreScenes | MoreShards, ...]:
        """The further sets of pictures."""
        return tuple(one for one in self.more if not isinstance(one, MoreTexts))

    @property
    def texts(self) -> tuple[MoreTexts, ...]:
        """The sets of texts alone."""
        return tuple(one for one in self.more if isinstance(one, MoreTexts))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all sets, the first one's first."""
        return (FIRST, *map(name_of, self.more))

    def shares(self) -> dict[str, Fraction]:
        """Samples of each set that are drawn for each picture; none where there is one set."""
        if not self.more:
            return {}
        weights = {FIRST: self.weight, **{name_of(one): one.weight for one in self.more}}
        exact = {name: Fraction(str(weight)) for name, weight in weights.items()}
        pictures = sum(exact[name] for name in (FIRST, *map(name_of, self.pictures)))
        return {name: weight / pictures for name, weight in exact.items()}

    def texts_per_picture(self) -> Fraction:
        """Texts alone that are drawn for each picture."""
        shares = self.shares()
        return sum((shares[name_of(one)] for one in self.texts), Fraction())


@dataclass(frozen=True, kw_only=True)
class ScenesData(Sets):
    """The built-in captioned scenes, rendered on first use."""

    kind: Literal["scenes"] = "scenes"
    size: int = 32
    count: int = 20_000
    seed: int = 0
    render: int | None = None  # pixels of the pictures in the shards, from which stages read smaller ones; None is size

    def __post_init__(self) -> None:
        """Refuse pictures that would have to be enlarged."""
        super().__post_init__()
        check_render(self.size, self.render)


@dataclass(frozen=True, kw_only=True)
class ShardData(Sets):
    """WebDataset shards of captioned images; `--data` says where they are: a folder or an address."""

    kind: Literal["shards"] = "shards"
    path: str | None = None
    size: int = 32
    credit: str = ""  # the licence line that the report prints

    def __post_init__(self) -> None:
        """Refuse secrets."""
        super().__post_init__()
        check_no_secret(self.path, "data.path")


def name_of(one: MoreScenes | MoreShards | MoreTexts) -> str:
    """Return the name of a further set: its own, or one made from where it lies."""
    found = one.name or ("scenes" if isinstance(one, MoreScenes) else _folder(one.path))
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", found).strip("-")
    if not name or (one.name and name != one.name):
        raise ValueError(f"name is {found!r}, expected letters, digits, - and _: it names a folder")
    return name


def _folder(path: str) -> str:
    """The name of the folder that a path or an address means: some shards of a folder are called like all of it."""
    *above, last = path.rstrip("/").split("/")
    return above[-1] if above and is_address(path) and ("{" in last or last.endswith(".tar")) else Path(path).name


def check_weight(weight: float) -> None:
    """Raise ValueError where nothing would be drawn of a set."""
    if not 0 < weight < math.inf:
        raise ValueError(f"weight is {weight}, expected a number above 0: leave a set out to draw none of it")


def check_render(size: int, render: int | None) -> None:
    """Raise ValueError where scenes would have to be enlarged."""
    if render is not None and render < size:
        raise ValueError(f"render is {render}, expected at least size = {size}, or nothing for just that")
