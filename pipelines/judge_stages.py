"""Stages that train against captions and labels: contrastive towers, and the judge of scenes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from backbone.clip import (
    CONFIG,
    ContrastiveConfig,
    TowerSizes,
    caption_groups,
    contrastive_loss,
    find_weights,
    load_contrastive,
    pair_features,
    save_contrastive,
)
from eval.scene import SceneJudge, SceneJudgeConfig, encode_label, scene_loss
from eval.scene_augment import augment
from pipelines.artefact import load_weights
from pipelines.errors import PalimpsestError
from pipelines.hardware import device_of, seeded
from pipelines.image_task import ImageTask
from pipelines.loop import train
from pipelines.models import best_weights, plain
from pipelines.runs import Run
from pipelines.stage_config import ClipStage, JudgeStage, SceneJudgeStage
from pipelines.task import Batch, Training
from tokenizer.embed import TOKENIZER
from tokenizer.text import BPE


class ContrastiveTask(ImageTask):
    """Text and image towers by contrast; equal captions are positives of each other."""

    divisible = False

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
        return pair_features(self.model, images, tokens)


class SceneJudgeTask(ImageTask):
    """Reading every object's attributes from a scene with exact labels."""

    def __init__(self, run: Run, stage: SceneJudgeStage, config: SceneJudgeConfig) -> None:
        super().__init__(run, stage.training.batch, shuffle_seed=run.recipe.seed + 7)
        self.config = config
        self.network = seeded(run.recipe.seed + 7, lambda: SceneJudge(config))

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the cross-entropies of all heads, on views that break what only the training split links."""
        targets = self._targets(batch["label"], batch["image"].device)
        x, targets = augment(batch["image"], targets, generator)
        return scene_loss(network(x), targets), {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Loss on held-out scenes."""
        device = device_of(network)
        targets = self._targets(self.samples["label"], device)
        return {"loss": float(scene_loss(network(self.held_out.to(device)), targets))}

    def _targets(self, labels: list[dict[str, Any]], device: torch.device) -> dict[str, Tensor]:
        rows = [encode_label(label, self.config) for label in labels]
        return {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}


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
        building = folder / ".towers"
        save_contrastive(building, task.config, task.network.model)  # type: ignore[arg-type]
        bpe.save(building / TOKENIZER)
        for path in building.iterdir():
            path.replace(folder / path.name)
        building.rmdir()
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
    if "attributes" not in described or "objects" not in described:
        folders, alike = ", ".join(str(one.place) for one in run.pictures), " that agree" if run.pictures[1:] else ""
        raise PalimpsestError(
            f"{folders}: no exact labels{alike}, which stage kind 'scene_judge' needs: take that stage out of the "
            "recipe, or use data made by `palimpsest data scenes`."
        )
    return SceneJudgeConfig(attributes=described["attributes"], slots=len(described["objects"]), widths=stage.widths)
