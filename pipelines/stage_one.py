"""Stage one: both kinds of autoencoder as tasks of the one loop, and the text tokenizer."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from pipelines.artefact import load_weights, save_weights, write_atomically
from pipelines.autoencoder_task import PART, READ, SHOWN, AutoencoderTask
from pipelines.codebooks import check_start, warning_of, worst_grid
from pipelines.data.stream import once
from pipelines.exchange import start_vae, start_vqvae
from pipelines.hardware import device_of, seeded, step_generator
from pipelines.loop import train
from pipelines.models import best_weights, plain
from pipelines.pictures import grid, to_pil
from pipelines.progress import track
from pipelines.runs import Run
from pipelines.sets import open_sets
from pipelines.stage_one_config import AutoencoderStage, BPEStage, VAEStage, VQVAEStage
from pipelines.task import Batch
from tokenizer.exchange import Scaling
from tokenizer.loss import reconstruction_loss, vqvae_loss
from tokenizer.posterior import LatentMoments
from tokenizer.prior import LearnedConfig
from tokenizer.quantize import Moved, Quantizer
from tokenizer.ranks import place
from tokenizer.text import BPE
from tokenizer.vae import VAE, VAEOutput
from tokenizer.vqvae import VQVAE

REVIVAL_POOL = 2048  # encoder vectors from which dead codes are revived

log = logging.getLogger("palimpsest")


class VAETask(AutoencoderTask):
    """Reconstruction and KL."""

    def __init__(self, run: Run, name: str, stage: VAEStage, network: VAE | None = None) -> None:
        super().__init__(run, name, stage, network or seeded(run.recipe.seed, lambda: VAE(stage.model)))
        self.stage = stage
        self.warmth = 1.0

    def model(self) -> VAE:
        """The network."""
        return self.network  # type: ignore[return-value]

    def before(
        self, step: int, first: int, steps: int, generator: torch.Generator, read: Sequence[Batch]
    ) -> Sequence[Moved]:
        """Raise the weight of the KL term."""
        self.warmth = min(1.0, (step + 1) / max(1.0, self.stage.model.kl_warmup * first))
        return ()

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted negative ELBO of one draw, and how the picture looks."""
        x, config = self.shown(batch, generator), self.stage.model
        found: VAEOutput = network(x, generator)
        weight = self.warmth * config.weight
        terms = found.loss(x, kind=config.reconstruction, weight=weight, free=config.free_bits)
        scalars = {"reconstruction": terms.reconstruction.detach(), "kl": terms.kl.detach()}
        if found.log_scale is not None:
            scalars["scale"] = found.log_scale.detach().exp()
        if found.prior_nats is not None:
            scalars["prior_nats"] = found.prior_nats.detach()
        cost, looks = self.looks(found.x_hat, x, terms.reconstruction)
        return terms.total + cost, {**scalars, **looks}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """PSNR of held-out pictures from the posterior mean, the bound on their cost and -log p(z), where there are."""
        found = super().validate(network)
        if self.stage.model.variance == "none" and not self._learned:
            return found
        generator = step_generator(self.seed, 0, 0)
        for part in self.held_out.split(PART):
            x, share = part.to(device_of(network)), len(part) / len(self.held_out)
            drawn: VAEOutput = network(x, generator)
            if drawn.log_scale is not None:
                found["bits_per_dim"] = found.get("bits_per_dim", 0.0) + share * float(drawn.bound(x)) / math.log(2)
            if drawn.prior_nats is not None:
                found["prior_nats"] = found.get("prior_nats", 0.0) + share * float(drawn.prior_nats)
        return found

    def pictures(self, network: nn.Module) -> dict[str, Image.Image]:
        """Held-out pictures beside their reconstructions, and pictures from a learned prior."""
        found = super().pictures(network)
        if self._learned:
            model: VAE = network  # type: ignore[assignment]
            found["prior"] = grid(to_pil(model.sample(SHOWN, self.size, step_generator(self.seed, 0, 0)).cpu()))
        return found

    @property
    def _learned(self) -> bool:
        return isinstance(self.stage.model.prior, LearnedConfig)

    def reconstruct(self, network: nn.Module, x: Tensor) -> Tensor:
        """From the posterior mean."""
        model: VAE = network  # type: ignore[assignment]
        return model.decode(model.encode(x.to(device_of(network))).mean).cpu()


class VQVAETask(AutoencoderTask):
    """Reconstruction and commitment; the codebook starts from the data and its dead codes come back to life."""

    def __init__(self, run: Run, name: str, stage: VQVAEStage, network: VQVAE | None = None) -> None:
        super().__init__(run, name, stage, network or seeded(run.recipe.seed, lambda: VQVAE(stage.model)))
        self.stage = stage
        self.pretrained = network is not None  # its codebooks stand already
        if not self.pretrained:
            check_start(stage.model, len(self.train_split), *run.recipe.smallest)
        self.quantise = self.pretrained or not self._from_data()

    def beside(self, step: int, first: int, steps: int) -> Iterator[Batch] | None:
        """Training pictures from which codes start or revive, enough for the coarsest level."""
        if step == self._start(first):
            return self._pictures(self.stage.model.initial_vectors)
        return self._pictures(REVIVAL_POOL, offset=step) if self._revives(step, first, steps) else None

    def before(
        self, step: int, first: int, steps: int, generator: torch.Generator, read: Sequence[Batch]
    ) -> Sequence[Moved]:
        """Start the codebooks once the unquantised phase is over, and revive dead codes now and then.

        Coarse to fine, since the vectors of a level depend on the codes of the one above.
        """
        config, moved, levels = self.stage.model, list[Moved](), self._from_data()
        if not levels:
            return moved
        self.quantise = step >= self._start(first)
        if step == self._start(first):
            for level, quantizer in levels.items():
                moved += quantizer.initialise(self._vectors(read, level, config.initial_vectors), generator)
        elif self._revives(step, first, steps):
            for level, quantizer in levels.items():
                moved += quantizer.revive(self._vectors(read, level, REVIVAL_POOL, offset=step), generator)
        return moved

    def _start(self, first: int) -> int:
        """The step at which the codebooks start from the data; none where they stand, or need no data."""
        return -1 if self.pretrained or not self._from_data() else int(self.stage.model.unquantised * first)

    def _revives(self, step: int, first: int, steps: int) -> bool:
        """Whether dead codes are revived at a step."""
        phase = self._start(first) < step < self.stage.revive_until * steps
        return phase and bool(self._from_data()) and step % self.stage.model.revive_every == 0

    def rehearse(self, playing: bool) -> None:
        """Quantise, as all steps but the first do."""
        super().rehearse(playing)
        self.quantise = True

    def _from_data(self) -> dict[int, Quantizer]:
        """The levels whose codebooks start from the data, coarse to fine."""
        return {i: level for i, level in enumerate(self.model().levels) if level.starts_from_data}

    def after(self, step: int) -> None:
        """Let the codebook learn from the passes of the step."""
        super().after(step)
        if self.quantise:
            for level in self.model().levels:
                level.settle()

    def model(self) -> VQVAE:
        """The network."""
        return self.network  # type: ignore[return-value]

    def _pictures(self, count: int, offset: int = 0) -> Iterator[Batch]:
        """This rank's share of the training pictures that have `count` vectors of each level; offset: chooses them."""
        rank, world = place()
        config, coarsest, left = self.model().config, min(self._from_data()), -(-count // world)
        for batch, _ in self.stream(PART * world, self.seed + 1, rank, world).batches(64 * offset):
            yield batch
            images, _, *sides = batch["image"].shape
            left -= images * math.prod(side * 2**coarsest // config.multiple for side in sides)
            if left <= 0:
                return

    def _vectors(self, read: Sequence[Batch], level: int, count: int, offset: int = 0) -> Tensor:
        """This rank's share of `count` vectors (n, d) of a level, of the first pictures that have so many.

        Where those have more, they are drawn from all of them alike, by `offset`.
        """
        found, there = list[Tensor](), 0
        rank, world = place()
        wanted = -(-count // world)
        for batch in read:
            found.append(self.model().vectors(batch["image"].to(device_of(self.network)), level))
            there += len(found[-1])
            if there >= wanted:
                break
        drawn = torch.randperm(there, generator=step_generator(self.seed + 1, rank, offset))[:wanted]
        return torch.cat(found)[drawn if there > wanted else slice(None)]

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction plus beta times commitment."""
        x, config = self.shown(batch, generator), self.stage.model
        x_hat, quantized = network(x, quantise=self.quantise)
        if quantized is None:
            loss = reconstruction_loss(x_hat, x, config.reconstruction)
            cost, looks = self.looks(x_hat, x, loss)
            return loss + cost, {"reconstruction": loss.detach(), **looks}
        terms = vqvae_loss(x_hat, x, quantized.own, quantized.commitment, kind=config.reconstruction, beta=config.beta)
        scalars = {"reconstruction": terms.reconstruction.detach(), "commitment": terms.commitment.detach()}
        _, used = worst_grid(quantized.codes.cpu().numpy(), self.model().config)
        scalars |= {"own": terms.own.detach(), "batch_perplexity": torch.tensor(used.perplexity)}
        cost, looks = self.looks(x_hat, x, terms.reconstruction)
        return terms.total + cost, {**scalars, **looks}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """PSNR and the use of the worst level of the codebook on held-out pictures; one that collapses is warned of."""
        model: VQVAE = network  # type: ignore[assignment]
        parts = self.held_out.split(PART)
        codes = torch.cat([model.codes(part.to(device_of(network))).cpu() for part in parts]).numpy()
        grid, found = worst_grid(codes, model.config)
        if self.quantise and (warning := warning_of(model.config, grid, found)):
            log.warning("%s", warning)
        health = {"usage": found.usage, "perplexity": found.perplexity, "top_share": found.top_share}
        return {**super().validate(network), **health}

    def reconstruct(self, network: nn.Module, x: Tensor) -> Tensor:
        """From the codes."""
        model: VQVAE = network  # type: ignore[assignment]
        return model.decode_codes(model.codes(x.to(device_of(network))), *x.shape[-2:]).cpu()


def train_bpe(run: Run, name: str, stage: BPEStage) -> dict[str, Any]:
    """Train the text tokenizer on the captions of the training split and on texts alone, each once."""
    splits = [run.open("train"), *([open_sets(run.texts, "train")] if run.texts else [])]
    captions = track(chain.from_iterable(split.captions() for split in splits), name, sum(map(len, splits)))
    bpe = BPE.train(captions, stage.vocab_size, stage.length)
    folder = run.stage_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "bpe.json", bpe.save)
    return {"vocab_size": bpe.vocab_size, "length": bpe.length, "tokenizer": bpe.hash}


def train_vae(run: Run, name: str, stage: VAEStage) -> dict[str, Any]:
    """Train the VAE and take the statistics of its latents over the training split, or take a pretrained one as it is.

    The latter brings the statistics that stage two is to scale its latents by.
    """
    network, scaling = start_vae(stage, run.recipe.seed) or (None, None)
    task = VAETask(run, name, stage, network)
    facts = _trained(task, stage, run, name)
    if stage.training is not None or scaling is None:
        scaling = _scaling(task, name)
    return {**facts, "latent_mean": list(scaling.mean), "latent_std": list(scaling.std)}


def _trained(task: VAETask | VQVAETask, stage: AutoencoderStage, run: Run, name: str) -> dict[str, Any]:
    """Train where the stage asks for it, and load what is to be used; returns the facts."""
    folder, facts = run.stage_folder(name), {"pretrained": stage.pretrained} if stage.pretrained else {}
    if stage.training is None:
        save_weights(folder / "model.safetensors", task.network.state_dict())
    else:
        facts |= train(task, stage.training, folder, seed=run.recipe.seed, name=name)
        load_weights(task.network, best_weights(folder))
    config = task.model().config
    if task.perceptual is not None:
        facts["perceptual"] = task.perceptual.name
    return {**facts, "model": plain(config), "downsample": config.network.factor, "size": task.size}


def _scaling(task: VAETask, name: str) -> Scaling:
    """Return the statistics of the latents over the training split, of several sets by their shares."""
    model: VAE = task.network.eval()  # type: ignore[assignment]
    found = list[tuple[LatentMoments, float]]()
    for split, share in task.train_split.sets():
        moments = LatentMoments()
        with torch.no_grad():
            batches = once(split, task.decode, batch=READ)
            for batch in track(batches, f"{name} statistics", len(split), weight=READ):
                moments.update(model.encode(batch["image"].to(device_of(model))))
        found.append((moments, share))
    mean, std = LatentMoments.mixed(found).result()
    return Scaling(tuple(mean.tolist()), tuple(std.tolist()))


def train_vqvae(run: Run, name: str, stage: VQVAEStage) -> dict[str, Any]:
    """Train the VQ-VAE, or take a pretrained one as it is."""
    return _trained(VQVAETask(run, name, stage, start_vqvae(stage)), stage, run, name)
