"""Our autoencoders beside those of diffusers: what one loop needs of either, trained by one loss.

Theirs keep the shape that diffusers ships: three levels (f4), one block for each level of the encoder and two of the
decoder, norms of 32 groups, attention in the middle. Only their width is chosen, so that both sides have as many
parameters; since a width is a multiple of the 32 groups, it is our width that meets theirs exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from torch import Tensor, nn

from backbone.cure import cure_torchvision
from backbone.folded import FoldedConfig
from pipelines.data.config import ShardData
from pipelines.hardware import seeded
from pipelines.recipe import Recipe
from pipelines.runs import Run
from pipelines.stage_config import VAEStage, VQVAEStage
from pipelines.stage_one import VAETask, VQVAETask
from pipelines.task import Batch, Task, Training
from tokenizer.loss import reconstruction_loss, vae_loss
from tokenizer.posterior import Gaussian
from tokenizer.quantize import VQConfig
from tokenizer.vae import VAE, VAEConfig
from tokenizer.vqvae import VQVAE, VQVAEConfig

cure_torchvision()  # diffusers imports it for its networks
Kind = Literal["vae", "vqvae"]
Side = Literal["ours", "theirs"]
LEVELS = 3  # each but the last halves the picture: f4, as ours


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Widths of both sides.

    Args:
        channels: ours, in all blocks.
        widths: theirs, by level.
        codes: of a VQ-VAE.
    """

    channels: int = 96
    widths: tuple[int, int, int] = (32, 64, 64)
    codes: int = 1024


WIDE = Shape(channels=168, widths=(32, 64, 128))
"""The narrowest network whose levels double in width, as those of Stable Diffusion do."""


@dataclass(frozen=True, kw_only=True)
class Codec:
    """A network as the loop sees it.

    loss: of pictures (B, 3, H, W) in [-1, 1]; before: what comes ahead of a step (step, steps, generator); after: what
    comes behind it (step); rebuild: pictures to pictures without noise, and the codes between them, of a VQ-VAE.
    """

    network: nn.Module
    loss: Callable[[Tensor, torch.Generator], Tensor]
    before: Callable[[int, int, torch.Generator], object]
    after: Callable[[int], None]
    rebuild: Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the pictures are: a folder of shards, and the side to which they are brought."""

    folder: Path
    size: int

    def run(self, stage: VAEStage | VQVAEStage, seed: int) -> Run:
        """A run of one stage, as a task of stage one wants it; nothing is written."""
        recipe = Recipe(name="bench", seed=seed, data=ShardData(size=self.size), stage={stage.kind: stage})
        return Run(recipe=recipe, folder=self.folder, data=self.folder)


def read(task: Task, step: int, steps: int) -> list[Batch]:
    """What a task asks for beside the batch of a step."""
    wanted = task.beside(step, steps, steps)
    return [] if wanted is None else list(wanted)


def codec(kind: Kind, side: Side, shape: Shape, place: Place, training: Training, seed: int) -> Codec:
    """One side, its weights drawn by the seed."""
    vae, vqvae = configs(shape)
    match kind, side:
        case "vae", "ours":
            stage = VAEStage(model=vae, training=training)
            return _our_vae(VAETask(place.run(stage, seed), kind, stage))
        case "vqvae", "ours":
            stage = VQVAEStage(model=vqvae, training=training)
            return _our_vqvae(VQVAETask(place.run(stage, seed), kind, stage))
        case "vae", _:
            return _their_vae(seeded(seed, lambda: their_vae(shape, vae)), vae)
        case _:
            return _their_vqvae(seeded(seed, lambda: their_vqvae(shape, vqvae)), vqvae)


def configs(shape: Shape) -> tuple[VAEConfig, VQVAEConfig]:
    """Ours: the defaults but for the widths, the codes and the vectors from which these start."""
    network = FoldedConfig(factor=2 ** (LEVELS - 1), channels=shape.channels)
    quantizer = VQConfig(codes=shape.codes)
    return VAEConfig(network=network), VQVAEConfig(
        network=network, quantizer=quantizer, initial_vectors=24 * shape.codes
    )


def their_vae(shape: Shape, config: VAEConfig) -> Any:
    """AutoencoderKL with as many latent channels as ours."""
    return diffusers.AutoencoderKL(  # pyright: ignore[reportPrivateImportUsage]
        block_out_channels=shape.widths,  # type: ignore[arg-type]
        down_block_types=("DownEncoderBlock2D",) * LEVELS,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * LEVELS,  # type: ignore[arg-type]
        latent_channels=config.latent_channels,
    )


def their_vqvae(shape: Shape, config: VQVAEConfig) -> Any:
    """VQModel with a codebook as large as ours; beta weighs the encoder's term, as in the paper."""
    network = diffusers.VQModel(  # pyright: ignore[reportPrivateImportUsage]
        block_out_channels=shape.widths,
        down_block_types=("DownEncoderBlock2D",) * LEVELS,
        up_block_types=("UpDecoderBlock2D",) * LEVELS,
        latent_channels=config.quantizer.dim,
        num_vq_embeddings=config.quantizer.codes,
    )
    network.quantize.legacy = False  # which would weigh the codebook's term by beta instead
    network.quantize.beta = config.beta
    return network


def _our_vae(task: VAETask) -> Codec:
    network: VAE = task.network  # type: ignore[assignment]
    return Codec(
        network=network,
        loss=lambda x, generator: task.loss(network, {"image": x}, generator)[0],
        before=lambda step, steps, generator: task.before(step, steps, steps, generator, read(task, step, steps)),
        after=task.after,
        rebuild=lambda x: (network.decode(network.encode(x).mean), None),
    )


def _our_vqvae(task: VQVAETask) -> Codec:
    network: VQVAE = task.network  # type: ignore[assignment]

    def rebuild(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = network.codes(x)
        return network.decode_codes(codes, *x.shape[-2:]), codes

    return Codec(
        network=network,
        loss=lambda x, generator: task.loss(network, {"image": x}, generator)[0],
        before=lambda step, steps, generator: task.before(step, steps, steps, generator, read(task, step, steps)),
        after=task.after,
        rebuild=rebuild,
    )


def _their_vae(network: Any, config: VAEConfig) -> Codec:
    def encode(x: Tensor) -> Gaussian:
        return Gaussian.of(network.encode(x).latent_dist.parameters)

    def decode(z: Tensor) -> Tensor:
        return network.decode(z).sample.float()

    def loss(x: Tensor, generator: torch.Generator) -> Tensor:
        posterior = encode(x)
        x_hat = decode(posterior.sample(generator))
        return vae_loss(x_hat, x, posterior, kind=config.reconstruction, weight=config.weight).total

    return Codec(
        network=network, loss=loss, before=_nothing, after=_nothing, rebuild=lambda x: (decode(encode(x).mean), None)
    )


def _their_vqvae(network: Any, config: VQVAEConfig) -> Codec:
    def quantised(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures, the codebook's term with beta times the commitment, and codes (B h w,)."""
        z, terms, (_, _, codes) = network.quantize(network.encode(x).latents.float())
        return network.decode(z, force_not_quantize=True).sample.float(), terms, codes

    def loss(x: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        x_hat, terms, _ = quantised(x)
        return reconstruction_loss(x_hat, x, config.reconstruction) + terms

    def rebuild(x: Tensor) -> tuple[Tensor, Tensor]:
        x_hat, _, codes = quantised(x)
        return x_hat, codes

    return Codec(network=network, loss=loss, before=_nothing, after=_nothing, rebuild=rebuild)


def _nothing(*of_a_step: object) -> None:
    del of_a_step
