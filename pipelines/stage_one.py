"""Stage one: autoencoders, the text tokenizer, the text towers and the two judges, as tasks of the one loop."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor, nn

from backbone.clip import (
    CONFIG,
    ContrastiveConfig,
    TowerSizes,
    caption_groups,
    contrastive_loss,
    find_weights,
    image_features,
    load_contrastive,
    save_contrastive,
)
from eval.reconstruction import psnr
from eval.scene import SceneJudge, SceneJudgeConfig, degrade, encode_label, scene_loss
from pipelines.artefact import load_weights
from pipelines.config import BPEStage, ClipStage, JudgeStage, SceneJudgeStage, VAEStage, VQVAEStage
from pipelines.data.decode import image_and_caption
from pipelines.data.stream import Stream, once
from pipelines.errors import PalimpsestError
from pipelines.loop import Batch, Task, Training, device_of, seeded, train
from pipelines.models import best_weights, plain
from pipelines.pictures import side_by_side, to_uint8
from pipelines.progress import track
from pipelines.runs import Run
from tokenizer.embed import TOKENIZER
from tokenizer.loss import reconstruction_loss, vae_loss, vqvae_loss
from tokenizer.posterior import LatentMoments
from tokenizer.quantize import code_counts, perplexity, usage
from tokenizer.text import BPE
from tokenizer.vae import VAE
from tokenizer.vqvae import VQVAE

HELD_OUT = 256  # pictures behind a validation figure while training
SHOWN = 16  # pictures in a grid while training
REVIVAL_POOL = 2048  # encoder vectors from which dead codes are revived


class ImageTask(Task):
    """What all stages that read pictures share: the streams and the held-out batch."""

    def __init__(self, run: Run, batch: int, *, shuffle_seed: int) -> None:
        self.run, self.batch, self.seed = run, batch, shuffle_seed
        self.size = run.recipe.data.size
        self.decode = image_and_caption(self.size)
        self.train_split = run.open("train")
        self.samples = next(once(run.held_out(), self.decode, batch=HELD_OUT))
        self.held_out: Tensor = self.samples["image"]  # (N, 3, H, W)

    def batches(self, cursor: int, rank: int, world: int) -> Iterator[tuple[Batch, int]]:
        """Shuffled training pictures, from `cursor`."""
        return self.stream(self.batch, self.seed, rank, world).batches(cursor)

    def stream(self, batch: int, seed: int, rank: int = 0, world: int = 1) -> Stream:
        """Return the shuffled training split."""
        return Stream(split=self.train_split, seed=seed, batch=batch, decode=self.decode, rank=rank, world=world)


class VAETask(ImageTask):
    """Reconstruction and KL."""

    def __init__(self, run: Run, stage: VAEStage) -> None:
        super().__init__(run, stage.training.batch, shuffle_seed=run.recipe.seed)
        self.stage = stage
        self.network = seeded(run.recipe.seed, lambda: VAE(stage.model))

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted negative ELBO of one draw."""
        x = batch["image"]
        x_hat, posterior = network(x, generator)
        terms = vae_loss(x_hat, x, posterior, kind=self.stage.model.reconstruction, weight=self.stage.model.kl_weight)
        return terms.total, {"reconstruction": terms.reconstruction.detach(), "kl": terms.kl.detach()}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """PSNR of the held-out pictures, decoded from the posterior mean."""
        return {"psnr": mean_psnr(self.held_out, self._reconstruct(network, self.held_out))}

    def pictures(self, network: nn.Module) -> dict[str, Image.Image]:
        """Held-out pictures beside their reconstructions."""
        return {"reconstruction": side_by_side(self.held_out, self._reconstruct(network, self.held_out[:SHOWN]))}

    def _reconstruct(self, network: nn.Module, x: Tensor) -> Tensor:
        model: VAE = network  # type: ignore[assignment]
        return model.decode(model.encode(x.to(device_of(network))).mean).cpu()


class VQVAETask(ImageTask):
    """Reconstruction and commitment; the codebook starts from the data and its dead codes come back to life."""

    def __init__(self, run: Run, stage: VQVAEStage) -> None:
        super().__init__(run, stage.training.batch, shuffle_seed=run.recipe.seed)
        self.stage = stage
        self.network = seeded(run.recipe.seed, lambda: VQVAE(stage.model))
        self.quantise = False

    def before(self, step: int, steps: int, generator: torch.Generator) -> None:
        """Start the codebook once the unquantised phase is over, and revive dead codes now and then."""
        config = self.stage.model
        first = int(config.unquantised * steps)
        self.quantise = step >= first
        if step == first:
            self._model().quantizer.initialise(self._vectors(config.initial_vectors), generator)
        elif self.quantise and step % config.revive_every == 0 and step < self.stage.revive_until * steps:
            self._model().quantizer.revive(self._vectors(REVIVAL_POOL, offset=step), generator)

    def _model(self) -> VQVAE:
        return self.network  # type: ignore[return-value]

    def _vectors(self, count: int, offset: int = 0) -> Tensor:
        """Encoder vectors (count, d) of training pictures; which ones depends on `offset` alone."""
        found: list[Tensor] = []
        for batch, _ in self.stream(64, self.seed + 1).batches(64 * offset):
            found.append(self._model().vectors(batch["image"].to(device_of(self.network))))
            if sum(map(len, found)) >= count:
                break
        return torch.cat(found)[:count]

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction plus beta times commitment."""
        x = batch["image"]
        config = self.stage.model
        x_hat, quantized = network(x, quantise=self.quantise)
        if quantized is None:
            loss = reconstruction_loss(x_hat, x, config.reconstruction)
            return loss, {"reconstruction": loss.detach()}
        terms = vqvae_loss(
            x_hat, x, quantized.codebook, quantized.commitment, kind=config.reconstruction, beta=config.beta
        )
        scalars = {"reconstruction": terms.reconstruction.detach(), "commitment": terms.commitment.detach()}
        return terms.total, {**scalars, "batch_perplexity": quantized.perplexity}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """PSNR, usage and perplexity on the held-out pictures."""
        model: VQVAE = network  # type: ignore[assignment]
        codes = model.codes(self.held_out.to(device_of(network)))
        counts = code_counts(codes, self.stage.model.quantizer.codes)
        return {
            "psnr": mean_psnr(self.held_out, self._reconstruct(network, self.held_out)),
            "usage": float(usage(counts)),
            "perplexity": float(perplexity(counts)),
        }

    def pictures(self, network: nn.Module) -> dict[str, Image.Image]:
        """Held-out pictures beside their reconstructions."""
        return {"reconstruction": side_by_side(self.held_out, self._reconstruct(network, self.held_out[:SHOWN]))}

    def _reconstruct(self, network: nn.Module, x: Tensor) -> Tensor:
        model: VQVAE = network  # type: ignore[assignment]
        return model.decode_codes(model.codes(x.to(device_of(network)))).cpu()


class ContrastiveTask(ImageTask):
    """Text and image towers by contrast; equal captions are positives of each other."""

    def __init__(self, run: Run, sizes: TowerSizes, training: Training, bpe: BPE, seed: int) -> None:
        super().__init__(run, training.batch, shuffle_seed=seed)
        self.bpe = bpe
        self.config = ContrastiveConfig(
            **vars(sizes), image_size=self.size, vocab_size=bpe.vocab_size, context_length=bpe.length,
            end_id=bpe.end_id, pad_id=bpe.pad_id,
        )  # fmt: skip
        self.network = Towers(self.config.build(seed=seed))
        self.held_out_tokens = bpe.encode(self.samples["caption"]).tokens

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Symmetric multi-positive cross-entropy."""
        tokens = self.bpe.encode(batch["caption"]).tokens.to(batch["image"].device)
        image, text, scale = network(batch["image"], tokens)
        return contrastive_loss(image, text, scale, caption_groups(tokens)), {"scale": scale.detach()}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Loss and image-to-text retrieval on held-out pairs."""
        device = device_of(network)
        tokens = self.held_out_tokens.to(device)
        image, text, scale = network(self.held_out.to(device), tokens)
        groups = caption_groups(tokens)
        found = groups[(image @ text.T).argmax(1)] == groups
        return {"loss": float(contrastive_loss(image, text, scale, groups)), "recall": float(found.double().mean())}


class Towers(nn.Module):
    """open_clip's model behind one call, so that every rank's gradients meet."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit features (B, P) of images (B, 3, H, W) and of tokens (B, L), and the scale of their logits ()."""
        image = nn.functional.normalize(image_features(self.model, images).float(), dim=-1)
        text = nn.functional.normalize(self.model.encode_text(tokens).float(), dim=-1)  # type: ignore[operator]
        return image, text, self.model.logit_scale.exp()  # type: ignore[operator]


class SceneJudgeTask(ImageTask):
    """Reading every object's attributes from a scene with exact labels."""

    def __init__(self, run: Run, stage: SceneJudgeStage, config: SceneJudgeConfig) -> None:
        super().__init__(run, stage.training.batch, shuffle_seed=run.recipe.seed + 7)
        self.config = config
        self.network = seeded(run.recipe.seed + 7, lambda: SceneJudge(config))

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the cross-entropies of all heads, on slightly damaged pictures, as generated ones are."""
        x = degrade(batch["image"], generator)
        return scene_loss(network(x), self._targets(batch["label"], x.device)), {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Loss on held-out scenes."""
        device = device_of(network)
        targets = self._targets(self.samples["label"], device)
        return {"loss": float(scene_loss(network(self.held_out.to(device)), targets))}

    def _targets(self, labels: list[dict[str, Any]], device: torch.device) -> dict[str, Tensor]:
        rows = [encode_label(label, self.config) for label in labels]
        return {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}


def train_bpe(run: Run, name: str, stage: BPEStage) -> dict[str, Any]:
    """Train the text tokenizer on the captions of the training split."""
    split = run.open("train")
    captions = track(split.captions(), name, len(split))
    bpe = BPE.train(captions, stage.vocab_size, stage.length)
    folder = run.stage_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save(folder / "bpe.json")
    return {"vocab_size": bpe.vocab_size, "length": bpe.length, "tokenizer": bpe.hash}


def train_vae(run: Run, name: str, stage: VAEStage) -> dict[str, Any]:
    """Train the VAE, then take the statistics of its latents over the training split."""
    task, folder = VAETask(run, stage), run.stage_folder(name)
    facts = train(task, stage.training, folder, seed=run.recipe.seed, name=name)
    load_weights(task.network, best_weights(folder))
    model: VAE = task.network.eval()  # type: ignore[assignment]
    moments = LatentMoments()
    with torch.no_grad():
        batches = once(task.train_split, task.decode, batch=128)
        for batch in track(batches, f"{name} statistics", len(task.train_split), weight=128):
            moments.update(model.encode(batch["image"].to(device_of(model))))
    mean, std = moments.result()
    return {
        **facts,
        "model": plain(stage.model),
        "latent_mean": mean.tolist(),
        "latent_std": std.tolist(),
        "downsample": model.downsample,
        "size": task.size,
    }


def train_vqvae(run: Run, name: str, stage: VQVAEStage) -> dict[str, Any]:
    """Train the VQ-VAE."""
    task = VQVAETask(run, stage)
    facts = train(task, stage.training, run.stage_folder(name), seed=run.recipe.seed, name=name)
    return {**facts, "model": plain(stage.model), "downsample": stage.model.factor, "size": task.size}


def train_contrastive(run: Run, name: str, stage: ClipStage | JudgeStage) -> dict[str, Any]:
    """Train text and image towers, or copy pretrained ones: open_clip's layout, with their tokenizer."""
    if stage.pretrained is not None:
        return _copy_towers(Path(stage.pretrained), run.stage_folder(name))
    assert stage.training is not None
    bpe_name, _ = run.need(name, "bpe")
    bpe = BPE.load(run.stage_folder(bpe_name) / "bpe.json")
    seed = run.recipe.seed + (0 if stage.kind == "clip" else 1000)  # the judge never shares a draw with the conditioner
    task, folder = ContrastiveTask(run, stage.model, stage.training, bpe, seed), run.stage_folder(name)
    facts = train(task, stage.training, folder, seed=seed, name=name)
    load_weights(task.network, best_weights(folder))
    PartialState().wait_for_everyone()  # all ranks have read the weights
    if PartialState().is_main_process:
        save_contrastive(folder, task.config, task.network.model)  # type: ignore[arg-type]
        bpe.save(folder / "bpe.json")
        for extra in ("model.safetensors", "ema.safetensors"):
            (folder / extra).unlink(missing_ok=True)
    return facts


def _copy_towers(source: Path, folder: Path) -> dict[str, Any]:
    """Copy a pretrained open_clip folder into a stage, once it is seen to load."""
    load_contrastive(source)
    weights = find_weights(source)
    for path, name in ((source / CONFIG, CONFIG), (weights, weights.name), (source / TOKENIZER, TOKENIZER)):
        if path.exists():
            shutil.copyfile(path, folder / name)
    return {"pretrained": str(source)}


def train_scene_judge(run: Run, name: str, stage: SceneJudgeStage) -> dict[str, Any]:
    """Train the judge of scenes."""
    config = scene_judge_config(run, stage)
    task = SceneJudgeTask(run, stage, config)
    facts = train(task, stage.training, run.stage_folder(name), seed=run.recipe.seed + 7, name=name)
    return {**facts, "model": plain(config)}


def scene_judge_config(run: Run, stage: SceneJudgeStage) -> SceneJudgeConfig:
    """Return the judge's configuration from the attributes that the data's manifest lists."""
    described = run.data_manifest()
    if "attributes" not in described:
        raise PalimpsestError(
            f"{run.data} has no exact labels, which stage kind 'scene_judge' needs: take that stage out of the recipe, "
            "or use data made by `palimpsest data scenes`."
        )
    return SceneJudgeConfig(attributes=described["attributes"], slots=len(described["objects"]), widths=stage.widths)


def mean_psnr(x: Tensor, x_hat: Tensor) -> float:
    """Mean over pictures of the PSNR in dB, both (B, 3, H, W) in [-1, 1]."""
    return float(psnr(to_uint8(x), to_uint8(x_hat)).mean())
