"""The verbs of `palimpsest data`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro


def data_scenes(
    out: Annotated[Path, tyro.conf.Positional], count: int = 20_000, size: int = 32, seed: int = 0,
    render: int | None = None,
) -> None:  # fmt: skip
    """Render the built-in captioned scenes into shards: train, test and unseen splits.

    Args:
        out: folder for the shards; must not exist yet.
        count: training scenes; a tenth is held out beside them (8 to 2,000), a twentieth has unseen combinations.
        size: side of the pictures in pixels, 32 (two objects at most) or 64 (three).
        seed: of everything that is drawn.
        render: side of the pictures where it is not the size for which the scenes are laid out.
    """
    from pipelines.data.scenes import write
    from pipelines.progress import ticking

    with ticking("scenes") as tick:
        manifest = write(out, count=count, size=size, seed=seed, pixels=render, progress=tick)
    print(f"{out}: " + ", ".join(f"{number} {split}" for split, number in manifest["counts"].items()) + " scenes")


def data_import(
    src: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    size: int = 64,
    test_share: float = 0.05,
) -> None:
    """Make shards from a folder of pictures with .txt captions, from a captions .csv or .jsonl, or from other shards.

    Args:
        src: a folder of pictures or shards, or a captions file.
        out: folder for the shards.
        size: pictures are resized so that the shorter side is SIZE, then cropped to the middle square.
        test_share: share of the pictures that is held out.
    """
    from pipelines.data.importer import import_data
    from pipelines.progress import ticking

    with ticking("import") as tick:
        report = import_data(src, out, size=size, test_share=test_share, progress=tick)
    print(report.summary())


def data_check(folder: Annotated[str, tyro.conf.Positional]) -> None:
    """Read every shard and say what is wrong; the exit code is 0 only if a training run would be safe.

    Args:
        folder: of shards, or its address.
    """
    from pipelines.data.check import check
    from pipelines.progress import ticking

    with ticking("check") as tick:
        report = check(folder, progress=tick)
    print(report.summary())
    if not report.ok:
        sys.exit(1)
