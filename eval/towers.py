"""Networks as embedders, from weights on this machine: Inception, open_clip and DINOv2. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backbone.clip import contrastive_hash, image_features, load_contrastive
from backbone.cure import cure_torchvision
from eval.features import Tower
from eval.inception import DIM, SIZE, Variant, load_inception
from eval.resize import Resize

FID_WEIGHTS = "6726825d"  # how the sha256 of the published file begins: only these features make an FID
FID_RESIZE = f"tf1-{SIZE}"
DINO_SIZE = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = 32  # pictures at once, of large networks


def inception(path: Path, variant: Variant = "2015-12-05", *, how: Resize | None = None, device: str = "cpu") -> Tower:
    """The network of FID from a .pth or safetensors file in torch-fidelity's layout, or torchvision's.

    how: tf1 for 2015-12-05, as FID was published with, and clean for torchvision's, unless another rule is asked for.
    Raises ValueError where the file is another one.
    """
    return Tower(
        name=f"inception-{variant}",
        sha256=file_sha256(path),
        dim=DIM,
        size=SIZE,
        network=load_inception(path, variant).to(device),
        how=how or ("tf1" if variant == "2015-12-05" else "clean"),
        device=device,
        batch=SMALL,
    )


def is_fid(name: str, sha256: str, resize: str) -> bool:
    """Whether a Fréchet distance on these features may be called FID."""
    return name == "inception-2015-12-05" and sha256.startswith(FID_WEIGHTS) and resize == FID_RESIZE


def openclip(
    folder: Path, *, name: str = "openclip", unit: bool = False, how: Resize = "clean", device: str = "cpu"
) -> Tower:
    """The image tower of an open_clip folder (`open_clip_config.json` and safetensors); its text side is elsewhere.

    unit: features scaled to length sqrt(P), see `unit_scale`.
    """
    model: Any = load_contrastive(folder).to(device)
    size = model.visual.image_size
    side = size if isinstance(size, int) else int(size[0])

    def network(x: Tensor) -> Tensor:
        features = image_features(model, x)
        return unit_scale(features) if unit else features

    with torch.inference_mode():
        dim = network(torch.zeros(1, 3, side, side, device=device)).shape[1]
    return Tower(
        name=name, sha256=contrastive_hash(folder), dim=dim, size=side, network=network, how=how, device=device,
        batch=SMALL if side > 128 else Tower.batch,
    )  # fmt: skip


def dinov2(folder: Path, *, device: str = "cpu") -> Tower:
    """The class token behind the last norm (arXiv:2306.04675) of a DINOv2 folder in the layout of transformers.

    Pictures become squares of 224 pixels, or of what the network was trained on where that is less. Raises ValueError
    where the folder holds something else.
    """
    cure_torchvision()
    from transformers import Dinov2Config, Dinov2Model
    from transformers.utils.logging import disable_progress_bar

    if not (folder / "config.json").exists() or not (folder / "model.safetensors").exists():
        raise ValueError(
            f"{folder} has no config.json with model.safetensors beside it: give a folder of DINOv2 weights"
        )
    disable_progress_bar()
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != "dinov2":
        raise ValueError(f"{folder} holds a model of type {kind!r}, expected 'dinov2'")
    config = Dinov2Config.from_pretrained(folder, local_files_only=True)
    side = config.image_size if isinstance(config.image_size, int) else min(config.image_size)
    model = Dinov2Model.from_pretrained(folder, config=config, local_files_only=True, use_safetensors=True)
    model = model.eval().requires_grad_(False).to(device)  # type: ignore[arg-type]
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))

    def network(x: Tensor) -> Tensor:
        return model(pixel_values=((x + 1) / 2 - mean) / std).last_hidden_state[:, 0]

    return Tower(
        name="dinov2",
        sha256=_both(folder / "config.json", folder / "model.safetensors"),
        dim=config.hidden_size,
        size=min(DINO_SIZE, side),
        network=network,
        how="clean",
        device=device,
        batch=SMALL,
    )


def unit_scale(features: Tensor) -> Tensor:
    """Features (B, P) scaled to length sqrt(P): contrastive training gives meaning to their direction alone."""
    return F.normalize(features.float(), dim=-1) * features.shape[-1] ** 0.5


def file_sha256(path: Path) -> str:
    """Hash of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _both(config: Path, weights: Path) -> str:
    return hashlib.sha256((file_sha256(config) + file_sha256(weights)).encode()).hexdigest()
