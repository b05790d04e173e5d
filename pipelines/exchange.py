"""Autoencoders from and to the folders that diffusers reads: `pretrained = FOLDER` in a recipe, `palimpsest export`."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import PalimpsestError
from pipelines.hardware import seeded
from pipelines.judged_config import GenerateStage
from pipelines.models import load_vae, load_vqvae, no_autoencoder
from pipelines.runs import Run, stage_of
from pipelines.scoring.geneval import export_pictures
from pipelines.stage_one_config import VAEStage, VQVAEStage
from tokenizer.exchange import Scaling, read_vae, read_vqvae, write_vae, write_vqvae
from tokenizer.vae import VAE
from tokenizer.vqvae import VQVAE


def start_vae(stage: VAEStage, seed: int) -> tuple[VAE, Scaling] | None:
    """Return what the folder that a stage starts from holds, if any; a learned prior, which it has not, is of the seed.

    Raises ForeignFolderError as reading does.
    """
    if not (folder := stage.pretrained):
        return None
    return seeded(seed, lambda: read_vae(Path(folder), stage.model))


def start_vqvae(stage: VQVAEStage) -> VQVAE | None:
    """Return what the folder that a stage starts from holds, if any. Raises ForeignFolderError as reading does."""
    return read_vqvae(Path(stage.pretrained), stage.model) if stage.pretrained else None


def export(run: Run, name: str, folder: Path) -> str:
    """Write a finished autoencoder in the layout of diffusers, or generated pictures in GenEval's.

    Returns what was written, in words.
    """
    if folder.exists() and any(folder.iterdir()):
        raise PalimpsestError(f"{folder} is not empty: give a new folder, or empty this one.")
    stage, manifest = stage_of(run, name), run.manifest(name)
    match stage:
        case VAEStage():
            scaling = Scaling(tuple(manifest["latent_mean"]), tuple(manifest["latent_std"]))
            write_vae(load_vae(run, name), folder, scaling, run.recipe.size)
            kind = "AutoencoderKL"
        case VQVAEStage():
            write_vqvae(load_vqvae(run, name), folder, run.recipe.size)
            kind = "VQModel"
        case GenerateStage():
            return export_pictures(run, name, folder)
        case _:
            raise no_autoencoder(run, name)
    return f"{folder}: {name} as diffusers.{kind}; read it with {kind}.from_pretrained({str(folder)!r})"
