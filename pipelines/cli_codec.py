"""The verbs about what a finished stage has made: `palimpsest export` and `palimpsest reconstruct`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from pipelines.errors import PalimpsestError


def export(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    stage: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STAGE")],
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
) -> None:
    """Write a trained autoencoder as a folder that diffusers reads, or generated pictures as GenEval's tools read them.

    Args:
        run: folder of a finished run, such as runs/scenes.
        stage: one of kind vae or vqvae (networks of kind pyramid), or one of kind generate.
        folder: where to; must not exist yet, or be empty.
    """
    from pipelines.exchange import export as export_stage
    from pipelines.runs import reopen_run

    print(export_stage(reopen_run(run), stage, folder))


def reconstruct(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE ...")],
    model: str | None = None, out: Path = Path("reconstructed"), tile: int = 256, overlap: int = 64,
    sampled: bool = False, seed: int = 0,
) -> None:  # fmt: skip
    """Pass your own pictures, of any size, through a trained autoencoder.

    Pictures larger than a tile pass tile by tile, blended where tiles overlap. That is not what one pass over the whole
    picture would give where the network looks further than a quarter of the overlap, or has norms or attention over the
    picture (all kinds here have norms), which then see a tile.

    Args:
        run: folder of a finished run, such as runs/scenes.
        pictures: image files, one at least.
        model: stage of kind vae or vqvae; the first one by default.
        out: folder for the pictures, as PNG.
        tile: side of a tile in pixels.
        overlap: by how many pixels tiles overlap.
        sampled: of a VAE: decode a draw from the posterior instead of its mean.
        seed: of the draws; a picture depends on it and its number alone.
    """
    from pipelines.reconstruct import Tiles, reconstruct_files
    from pipelines.runs import reopen_run

    tiles = Tiles(size=tile, overlap=overlap)
    done = reconstruct_files(reopen_run(run), model, pictures, out, tiles=tiles, draws=seed if sampled else None)
    for line in done.lines:
        print(line)
    if done.problems:
        raise PalimpsestError("\n".join(done.problems))
