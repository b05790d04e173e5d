"""Contrastive text-and-image towers, built from open_clip's own classes and kept as its hub layout.

Unusual: a folder holds `open_clip_config.json` and safetensors, whether we trained it or it was downloaded, and nothing
unpickles; open_clip is imported late and through `import_open_clip`, because torchvision may need a cure first.
"""

import copy
import hashlib
import importlib
import json
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from backbone.cure import cure_torchvision as cure_torchvision
from backbone.cure import import_open_clip

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "ema.safetensors", "model.safetensors")
MAX_SCALE = 100.0  # arXiv:2103.00020, section 2.5


@dataclass(frozen=True, kw_only=True)
class TowerSizes:
    """Sizes of a contrastive model: an image tower and a causal text transformer pooled at the end token.

    layers: four numbers of bottleneck blocks make open_clip's ResNet (stride 32, 32 `width` channels at the end,
    `patch_size` unused); one number makes a ViT of that depth. In half a minute on one core the ResNet learns far more.
    """

    layers: int | tuple[int, int, int, int] = (1, 1, 1, 1)
    width: int = 16
    heads: int = 16
    patch_size: int = 8
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 2
    embed_dim: int = 128
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        for width, heads in ((self.final_width, self.heads), (self.text_width, self.text_heads)):
            if width % heads:
                raise ValueError(f"width {width} is not a multiple of heads {heads}")

    @property
    def stride(self) -> int:
        """Pixels of a side per position of the image tower's last layer."""
        return self.patch_size if isinstance(self.layers, int) else 32

    @property
    def final_width(self) -> int:
        """Channels of the image tower's last layer."""
        return self.width if isinstance(self.layers, int) else 32 * self.width


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(TowerSizes):
    """The sizes, and what pictures and tokenizer decide."""

    vocab_size: int
    end_id: int
    pad_id: int = 0
    context_length: int = 32
    image_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.stride:
            raise ValueError(f"image_size {self.image_size} is not a multiple of the tower's stride {self.stride}")
        for name in ("end_id", "pad_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(f"{name} {getattr(self, name)} is outside the vocabulary of {self.vocab_size}")

    def model_cfg(self) -> dict[str, Any]:
        """The same sizes as open_clip's `model_cfg`."""
        vision = {
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "width": self.width,
            "layers": self.layers if isinstance(self.layers, int) else list(self.layers),
            "head_width": self.final_width // self.heads,
            "mlp_ratio": self.mlp_ratio,
            "pool_type": "avg",
            "final_ln_after_pool": True,
        }
        text = {
            "context_length": self.context_length,
            "vocab_size": self.vocab_size,
            "width": self.text_width,
            "layers": self.text_layers,
            "heads": self.text_heads,
            "mlp_ratio": self.mlp_ratio,
            "pad_id": self.pad_id,
            "eos_id": self.end_id,
            "pool_type": "eos",
        }
        return {"embed_dim": self.embed_dim, "vision_cfg": vision, "text_cfg": text}

    def document(self) -> dict[str, Any]:
        """Content of `open_clip_config.json`; mean and deviation 1/2 mean that images in [-1, 1] enter as they are."""
        return {"model_cfg": self.model_cfg(), "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}

    def build(self, *, seed: int) -> nn.Module:
        """A new `open_clip.CLIP`, a function of the configuration and the seed; global random state stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return construct(self.document())


def construct(document: dict[str, Any]) -> nn.Module:
    """Untrained model of a configuration document, on the CPU, with its preprocessing attached as open_clip does."""
    open_clip = import_open_clip()
    cfg = copy.deepcopy(document["model_cfg"])
    if "multimodal_cfg" in cfg:
        raise ValueError("CoCa models (multimodal_cfg) are not supported; use a CLIP or SigLIP model of open_clip")
    if cfg["vision_cfg"].get("timm_model_name"):
        cfg["vision_cfg"]["timm_model_pretrained"] = False  # the weights come from the folder, never from a hub
    custom = cfg.pop("custom_text", False)
    model = open_clip.CustomTextCLIP(**cfg) if custom else open_clip.CLIP(**cfg)
    preprocess = {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        **document.get("preprocess_cfg", {}),
        "size": model.visual.image_size,
    }
    open_clip.set_model_preprocess_cfg(model, preprocess)
    return model


def image_features(model: Any, images: Tensor) -> Tensor:
    """Image tower; other sizes are resized (bicubic, antialiased) to the model's.

    images: (B, 3, H, W) in [-1, 1]. Returns (B, P), not normalised.
    """
    size = model.visual.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    if images.shape[-2:] != size:
        images = F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)
    with _attention(images.device):
        return model.encode_image(_pixels(model.visual, images))


def image_maps(visual: Any, images: Tensor) -> list[Tensor]:
    """Feature maps of an image tower, (B, C, h, w) each: a ResNet's stem and stages, a transformer's blocks.

    visual: `model.visual`; images: (B, 3, H, W) in [-1, 1] of the tower's size.
    """
    with _attention(images.device):
        found = visual.forward_intermediates(_pixels(visual, images), intermediates_only=True)
    return found["image_intermediates"]


def _pixels(visual: Any, images: Tensor) -> Tensor:
    """Images in [-1, 1] as the tower takes them."""
    mean, std = (images.new_tensor(visual.preprocess_cfg[name])[:, None, None] for name in ("mean", "std"))
    return (((images + 1) / 2 - mean) / std).contiguous(memory_format=torch.channels_last)  # faster convolutions


def _attention(device: torch.device) -> AbstractContextManager[object]:
    """On a CPU the plain attention: the fused one is slow in bfloat16, backward above all."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class TextStates(NamedTuple):
    """What the text tower knows of a caption: `sequence` (B, L, D) after the final norm, `pooled` (B, P) projected."""

    sequence: Tensor
    pooled: Tensor


def text_states(model: Any, tokens: Tensor) -> TextStates:
    """Token sequence and pooled vector of the text tower.

    tokens: (B, L) int64, L the context length. `pooled` is the vector that meets the image features, not normalised.
    """
    with _attention(tokens.device):
        out = model.forward_intermediates(text=tokens, text_indices=1, normalize=False, normalize_intermediates=True)
    return TextStates(out["text_intermediates"][-1], out["text_features"])


def caption_groups(tokens: Tensor) -> Tensor:
    """Group of each caption: equal rows of tokens share one. tokens: (B, L). Returns (B,) int64."""
    return torch.unique(tokens, dim=0, return_inverse=True)[1]


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, groups: Tensor) -> Tensor:
    """Symmetric cross-entropy in which all pairs of one caption are positives of each other (arXiv:2103.00020, fig. 3).

        target_ij = [g_i = g_j] / #{k : g_i = g_k}

    image_features, text_features: (B, P) of unit length; logit_scale: (); groups: (B,). With all groups different this
    is open_clip's ClipLoss; its gradient is the same, too, where the features of a group are equal. In a distributed
    run each rank contrasts its own batch. Returns ().
    """
    logits = logit_scale.float() * image_features.float() @ text_features.float().T
    same = (groups[:, None] == groups[None, :]).to(logits.dtype)
    target = same / same.sum(1, keepdim=True)  # (B, B), symmetric
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def cap(log_scale: Tensor) -> None:
    """Bring a learned log of the scale back to where the scale is at most 100 (arXiv:2103.00020, section 2.5).

    Clamping the scale itself would leave no gradient beyond, and no way back.
    """
    log_scale.clamp_(max=math.log(MAX_SCALE))


def pair_features(model: Any, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `contrastive_loss` compares: unit features (B, P) float32 of images and of captions, and their scale ().

    images: (B, 3, H, W) in [-1, 1]; tokens: (B, L).
    """
    if model.training:
        cap(model.logit_scale)
    with _attention(tokens.device):
        text = model.encode_text(tokens)
    image = image_features(model, images)
    return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1), model.logit_scale.exp()


def paired_loss(model: Any, images: Tensor, tokens: Tensor) -> Tensor:
    """`contrastive_loss` of a batch of pairs. images: (B, 3, H, W) in [-1, 1]; tokens: (B, L). Returns ()."""
    return contrastive_loss(*pair_features(model, images, tokens), caption_groups(tokens))


def save_contrastive(folder: Path, config: ContrastiveConfig, model: nn.Module) -> None:
    """Write configuration and weights as open_clip's hub layout; `load_contrastive` and open_clip itself read it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config.document(), indent=2) + "\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS[0])


def load_contrastive(folder: Path) -> nn.Module:
    """Model of a local folder, in evaluation mode on the CPU: ours or a downloaded open_clip one.

    Reads `open_clip_config.json` and the first of `open_clip_model`, `ema`, `model` `.safetensors`. Raises
    FileNotFoundError where one is missing and ValueError where they do not fit or only a pickle is there.
    """
    document = read_document(folder)
    weights = find_weights(folder)
    model = construct(document)
    load_checkpoint = importlib.import_module("open_clip.factory").load_checkpoint
    try:
        load_checkpoint(model, str(weights))
    except SafetensorError as error:
        raise ValueError(f"{weights} is not a whole safetensors file ({error}); copy it again") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{weights} does not fit {folder / CONFIG}: {reason}; take both from one model") from error
    return model.eval()


def read_document(folder: Path) -> dict[str, Any]:
    """The checked content of `open_clip_config.json`."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}; give the folder of a clip stage or of open_clip's hub")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        cfg = document["model_cfg"]
        text, _, _ = cfg["text_cfg"], cfg["vision_cfg"], cfg["embed_dim"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not an open_clip configuration ({error!r}); copy it again") from error
    if "hf_model_name" in text:
        name = text["hf_model_name"]
        raise ValueError(
            f"{path} takes its text tower from Hugging Face ({name!r}), which is not supported: use a model with "
            "open_clip's own text tower, e.g. ViT-B-32, ViT-B-16 or ViT-L-14"
        )
    return document


def find_weights(folder: Path) -> Path:
    """The safetensors file of a folder; a folder with a pickle alone is refused, with the way out."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    if not pickles:
        raise FileNotFoundError(f"{folder} has no weights; expected one of {', '.join(WEIGHTS)}")
    raise ValueError(
        f"{folder / pickles[0]} is a pickle, which can run code when it is loaded, so it is refused. Convert it once: "
        'python -c "import sys, torch; from safetensors.torch import save_file; '
        'save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])" '
        f"{pickles[0]} {WEIGHTS[0]}"
    )


def contrastive_hash(folder: Path) -> str:
    """sha256 over configuration and weights: what a manifest records of a judge or a text encoder."""
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    with find_weights(folder).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
