"""Own pictures of any size through a finished autoencoder: `palimpsest reconstruct`.

A picture is continued at its right and lower border by its last pixels until the network's sides fit, and the result is
cut back, so that every size comes back as it was. What is counted in bits is what was coded, the continuation too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from eval.reconstruction import psnr
from pipelines.artefact import write_atomically
from pipelines.data.picture import UnreadablePicture, open_picture, to_rgb, to_tensor
from pipelines.errors import DataError, PalimpsestError
from pipelines.hardware import step_generator
from pipelines.models import autoencoders, device, load_vae, load_vqvae, no_autoencoder
from pipelines.pictures import to_pil
from pipelines.progress import track
from pipelines.runs import Run, stage_of
from pipelines.stage_config import VAEStage, VQVAEStage
from tokenizer.posterior import DrawnGaussian, Gaussian
from tokenizer.prior import LearnedConfig
from tokenizer.tiled import Axis, check_tiles, tiled_codes, tiled_decode, tiled_encode
from tokenizer.vae import VAE
from tokenizer.vqvae import VQVAE


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Side of a tile, and by how much tiles overlap, in pixels."""

    size: int = 256
    overlap: int = 64

    def count(self, height: int, width: int) -> int:
        """How many tiles a picture of so many pixels takes."""
        return math.prod(len(Axis.of(side, self.size, self.overlap).starts) for side in (height, width))


@dataclass(frozen=True)
class Done:
    """A line for each picture that was written, and a sentence for each that could not be read."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def reconstruct_files(
    run: Run, name: str | None, paths: Sequence[Path], out: Path, *, tiles: Tiles, draws: int | None = None
) -> Done:
    """Write the reconstruction of each picture to `out`; pictures that cannot be read do not stop the others.

    name: a stage of kind vae or vqvae; None takes the first. draws: the seed of draws from a VAE's posterior; None
    decodes its mean. Raises PalimpsestError for another stage, draws of a VQ-VAE, and results that would overwrite a
    given picture; ValueError for tiles that do not fit the network.
    """
    if not paths:
        raise PalimpsestError("No picture is given: name the image files behind the run's folder.")
    model = _load(run, name)
    check_tiles(multiple_of(model), tiles.size, tiles.overlap)
    if draws is not None and isinstance(model, VQVAE):
        raise PalimpsestError("A VQ-VAE has no posterior to draw from: leave --sampled out.")
    targets = _targets(paths, out)
    done = Done()
    work = list(zip(paths, targets, strict=True))
    for i, (path, target) in enumerate(track(work, "reconstruct", len(work)) if len(work) > 1 else work):
        try:
            image = read(path)
        except DataError as error:
            done.problems.append(str(error))
            continue
        generator = None if draws is None else step_generator(draws, 0, i)
        x = to_tensor(image)[None].to(device())
        x_hat, bits = reconstruct(model, x, tiles, generator)
        (picture,) = to_pil(x_hat)
        write_atomically(target, lambda temporary, picture=picture: picture.save(temporary, format="PNG"))
        done.lines.append(_line(target, image, picture, bits, tiles.count(*padded(x, multiple_of(model)).shape[-2:])))
    return done


@torch.no_grad()
def reconstruct(
    model: VAE | VQVAE, x: Tensor, tiles: Tiles, generator: torch.Generator | None = None
) -> tuple[Tensor, float]:
    """Return one picture (1, 3, H, W) in [-1, 1] as an autoencoder gives it back, as large, and its bits.

    Bits of a VAE are the KL to its own prior, by one draw where that is a learned one; those of a VQ-VAE its codes, all
    equally long. generator: draws from the posterior of a VAE; None decodes its mean.
    """
    large = padded(x, multiple_of(model))
    through = _through_vae(model, large, tiles, generator) if isinstance(model, VAE) else _coded(model, large, tiles)
    return through[0][..., : x.shape[-2], : x.shape[-1]], through[1]


def multiple_of(model: VAE | VQVAE) -> int:
    """Return what the sides of a model's pictures, and of its tiles, must be multiples of."""
    return model.downsample if isinstance(model, VAE) else model.config.multiple


def padded(x: Tensor, multiple: int) -> Tensor:
    """Continue pictures (B, 3, H, W) by their last row and column to the next multiple."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def _through_vae(model: VAE, x: Tensor, tiles: Tiles, generator: torch.Generator | None) -> tuple[Tensor, float]:
    """Return what a VAE makes of a picture whose sides fit, and its KL in bits."""

    def features(part: Tensor) -> Tensor:
        posterior = model.encode(part)
        return torch.cat([posterior.mean, posterior.log_var], 1)

    found = tiled_encode(features, x, model.downsample, tiles.size, tiles.overlap)
    posterior = Gaussian(*found.chunk(2, 1))
    drawn = posterior.sample(generator or step_generator(0, 0, 0))
    z = posterior.mean if generator is None else drawn
    if isinstance(model.config.prior, LearnedConfig):
        posterior = DrawnGaussian(posterior.mean, posterior.log_var, model.prior.log_prob(drawn))
    x_hat = tiled_decode(model.decode, z, model.downsample, tiles.size, tiles.overlap)
    return x_hat, float(posterior.kl().sum()) / math.log(2)


def _coded(model: VQVAE, x: Tensor, tiles: Tiles) -> tuple[Tensor, float]:
    """Return what a VQ-VAE makes of a picture whose sides fit, and its codes in bits."""
    height, width = x.shape[-2:]
    z = model.lookup(tiled_numbers(model, x, tiles), height, width)
    x_hat = tiled_decode(model.decode, z, model.downsample, tiles.size, tiles.overlap)
    grids = zip(model.grids(height, width), model.config.vocabularies, strict=True)
    return x_hat, sum(h * w * math.log2(codes) for (h, w), codes in grids)


def tiled_numbers(model: VQVAE, x: Tensor, tiles: Tiles) -> Tensor:
    """Codes (B, L) of pictures as `VQVAE.codes` gives them, tile by tile.

    Codes of a coarser level stand for a square of the finest one's positions each while tiles are put together, so that
    all levels at a place come from one tile, whose codes were chosen knowing each other.
    """
    finer = [2**above for above in reversed(range(len(model.levels)))]  # positions per code, coarse to fine

    def stack(part: Tensor) -> Tensor:
        levels = zip(model.level_codes(part), finer, strict=True)
        return torch.cat([codes.repeat_interleave(n, 1).repeat_interleave(n, 2) for codes, n in levels], 1)

    found = tiled_codes(stack, x, model.downsample, tiles.size, tiles.overlap)
    rows = [level.grids * x.shape[-2] // model.downsample for level in model.levels]
    return model.numbered([part[:, ::n, ::n] for part, n in zip(found.split(rows, 1), finer, strict=True)])


def read(path: Path) -> Image.Image:
    """Return a picture file as RGB; raises DataError with a sentence that names it."""
    try:
        return to_rgb(open_picture(path.read_bytes()))
    except UnreadablePicture as error:
        raise DataError(f"{path}: {error}; give a whole PNG, JPEG or WebP file, or leave it out.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give an image file, or leave it out.") from error


def _load(run: Run, name: str | None) -> VAE | VQVAE:
    """Load an autoencoder, the first of the recipe where none is named."""
    if name is None:
        found = autoencoders(run)
        if not found:
            raise PalimpsestError(f"The recipe {run.recipe.name} has no autoencoder: give a run with one.")
        name = found[0]
    match stage_of(run, name):
        case VAEStage():
            return load_vae(run, name)
        case VQVAEStage():
            return load_vqvae(run, name)
        case _:
            raise no_autoencoder(run, name)


def _targets(paths: Sequence[Path], out: Path) -> list[Path]:
    """Return where each picture goes: by its name, with a number where that is taken. Refuses to overwrite a source."""
    taken: set[str] = set()
    targets = []
    for path in paths:
        stem, number = path.stem, 1
        while stem.casefold() in taken:
            number += 1
            stem = f"{path.stem}-{number}"
        taken.add(stem.casefold())
        targets.append(out / f"{stem}.png")
    sources = {path.resolve() for path in paths}
    for target in targets:
        if target.resolve() in sources:
            raise PalimpsestError(
                f"{target} is one of the given pictures and would be overwritten: give another --out."
            )
    return targets


def _line(target: Path, image: Image.Image, picture: Image.Image, bits: float, tiles: int) -> str:
    """Return what is said of one picture; decibels are of the 8-bit pictures, as they are in the files."""
    (decibels,) = psnr(np.asarray(image)[None], np.asarray(picture)[None])
    rate = bits / (image.width * image.height)
    words = "1 tile" if tiles == 1 else f"{tiles} tiles"
    return f"{target}: {image.width} x {image.height}, PSNR {decibels:.2f} dB, {rate:.4f} bits per pixel, {words}"
