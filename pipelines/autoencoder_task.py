"""What all autoencoders share while they train: how their pictures look beside the true ones, and to a critic."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from backbone.noise import uniform
from eval.features import quantise
from eval.reconstruction import psnr
from pipelines.adversary import Opponent
from pipelines.hardware import device_of, seeded
from pipelines.image_task import ImageTask
from pipelines.models import device
from pipelines.pictures import side_by_side
from pipelines.runs import Run
from pipelines.stage_one_config import AutoencoderStage
from pipelines.task import Batch, Training
from tokenizer.perceptual import LPIPS, FeatureDistance, PerceptualDistance
from tokenizer.vae import VAE
from tokenizer.vqvae import VQVAE

READ = 128  # pictures that are encoded at once
PART = 32  # the same beside a network in training
SHOWN = 16  # pictures in a grid while training


class AutoencoderTask(ImageTask):
    """Reconstruction, as far as pictures go; a kind adds the terms of its latents or codes."""

    bucketed = True

    def __init__(self, run: Run, name: str, stage: AutoencoderStage, network: VAE | VQVAE) -> None:
        super().__init__(run, stage.training.batch if stage.training else READ, shuffle_seed=run.recipe.seed)
        self.network: nn.Module = network
        self.perceptual = perceptual_of(run, name, stage)
        self.look = stage.perceptual
        self.adversarial = config = stage.adversarial
        self.flip = stage.flip
        self.pair: tuple[Tensor, Tensor] | None = None
        if config is not None:
            self.rival = seeded(run.recipe.seed + 5, lambda: Opponent(config, self._last()))
            self.rival_start = config.start

    def _last(self) -> Tensor:
        """The decoder's last weight."""
        model: VAE | VQVAE = self.network  # type: ignore[assignment]
        (last,) = model.decoder.last
        return last.weight

    def shown(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the pictures (B, 3, H, W) of a batch as the network is to see them."""
        x: Tensor = batch["image"]
        return mirrored(x, generator) if self.flip else x

    def looks(self, x_hat: Tensor, x: Tensor, closeness: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What pictures x_hat (B, 3, H, W) cost beside their distance to x, closeness (): (), and scalars to plot."""
        cost, scalars = x_hat.new_zeros(()), dict[str, Tensor]()
        if self.perceptual is not None and self.look is not None:
            distance = self.perceptual(x_hat, x)
            cost = self.look.weight * distance
            scalars["perceptual"] = distance.detach()
        if isinstance(self.rival, Opponent) and self.playing:
            term = self.rival.term(x_hat, closeness + cost, self._last())
            self.pair, cost = (x, x_hat.detach()), cost + term
            scalars |= {"adversarial": term.detach(), "adversarial_weight": self.rival.adaptive.clone()}
        return cost, scalars

    def rival_loss(self, rival: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's loss on the pictures that `looks` saw last."""
        assert self.pair is not None
        terms = rival(*self.pair, generator)
        return terms.total, {f"critic_{name}": value.detach() for name, value in terms._asdict().items()}

    def rival_training(self, training: Training) -> Training:
        """The critic's optimiser: AdamW with moments of its own."""
        assert self.adversarial is not None
        rate = self.adversarial.learning_rate or training.learning_rate
        return dataclasses.replace(
            training, optimizer="adamw", learning_rate=rate, betas=self.adversarial.betas, weight_decay=0.0
        )

    def after(self, step: int) -> None:
        """Settle what moved in the step."""
        if isinstance(self.rival, Opponent) and self.playing:
            self.rival.settle()

    def validate(self, network: nn.Module) -> dict[str, float]:
        """PSNR of held-out pictures, and their perceptual distance where there is one."""
        again = torch.cat([self.reconstruct(network, part) for part in self.held_out.split(PART)])
        found = {"psnr": mean_psnr(self.held_out, again)}
        if self.perceptual is not None:
            at = device_of(network)
            parts = zip(again.split(PART), self.held_out.split(PART), strict=True)
            values = [(len(y), float(self.perceptual(x_hat.to(at), y.to(at)))) for x_hat, y in parts]
            found["perceptual"] = sum(count * value for count, value in values) / len(again)
        return found

    def pictures(self, network: nn.Module) -> dict[str, Image.Image]:
        """Held-out pictures beside their reconstructions."""
        return {"reconstruction": side_by_side(self.held_out, self.reconstruct(network, self.held_out[:SHOWN]))}

    def reconstruct(self, network: nn.Module, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) on the CPU again, without noise."""
        raise NotImplementedError


def perceptual_of(run: Run, name: str, stage: AutoencoderStage) -> PerceptualDistance | None:
    """Return the perceptual distance of a stage: LPIPS from its files, or one in the tower of its `clip` stage."""
    if stage.perceptual is None:
        return None
    if stage.perceptual.trunk:
        made = LPIPS(Path(stage.perceptual.trunk), Path(stage.perceptual.heads), stage.perceptual.net)
        return made.to(device())
    tower, _ = run.need(name, "clip")
    return FeatureDistance.of(run.stage_folder(tower)).to(device())


def mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures (B, 3, H, W), each of which is left as it is or mirrored, with probability 1/2."""
    turned = uniform((len(x), 1, 1, 1), generator, device=x.device) < 0.5
    return torch.where(turned, x.flip(-1), x)


def mean_psnr(x: Tensor, x_hat: Tensor) -> float:
    """Mean over pictures of the PSNR in dB, both (B, 3, H, W) in [-1, 1]."""
    return float(psnr(quantise(x), quantise(x_hat)).mean())
