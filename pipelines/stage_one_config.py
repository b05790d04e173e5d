"""The kinds of stages that stage one is made of: tokenizers, autoencoders, towers and judges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from backbone.clip import TowerSizes
from pipelines.adversary import AdversarialConfig
from pipelines.stage import Stage
from pipelines.task import Training
from tokenizer.perceptual import PerceptualConfig
from tokenizer.vae import VAEConfig
from tokenizer.vqvae import VQVAEConfig


@dataclass(frozen=True, kw_only=True)
class BPEStage(Stage):
    """Byte-pair encoding trained on the captions of the training split."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: int = 512
    length: int = 18  # tokens per caption, the end token included


@dataclass(frozen=True, kw_only=True)
class AutoencoderStage(Stage):
    """An autoencoder that is trained here, taken from the local folder `pretrained`, or trained on from there.

    Such a folder is one of diffusers' (config.json and safetensors), or one that `palimpsest export` wrote.
    """

    training: Training | None = None
    pretrained: str | None = None
    perceptual: PerceptualConfig | None = None  # a distance of features beside that of colours
    adversarial: AdversarialConfig | None = None  # a critic that trains against it
    flip: bool = False  # half of the training pictures are mirrored, at random: no caption plays a part here

    def __post_init__(self) -> None:
        """Ask for one of the ways, and for losses only where there is training."""
        if self.training is None and self.pretrained is None:
            raise ValueError("an autoencoder needs [training], pretrained = FOLDER, or both")
        for table in ("perceptual", "adversarial"):
            if self.training is None and getattr(self, table) is not None:
                raise ValueError(f"[{table}] does nothing without [training]: leave it out, or train on")
        if self.training is None and self.flip:
            raise ValueError("flip = true does nothing without [training]: leave it out, or train on")
        self.check_model()

    def check_model(self) -> None:
        """Refuse what `pretrained` decides, and settings of a training that there is none of."""


@dataclass(frozen=True, kw_only=True)
class VAEStage(AutoencoderStage):
    """Continuous autoencoder."""

    kind: Literal["vae"] = "vae"
    model: VAEConfig = field(default_factory=VAEConfig)

    @property
    def multiple(self) -> int:
        """What the sides of a picture must be multiples of."""
        return self.model.network.factor

    def check_model(self) -> None:
        """Refuse what `pretrained` decides, and settings of a training that there is none of."""
        default = VAEConfig()
        own, known = ((model.network, model.latent_channels) for model in (self.model, default))
        if self.pretrained and own != known:
            raise ValueError("model.network and model.latent_channels come from `pretrained`: leave them out")
        if self.training is None and self.model != default:
            raise ValueError("[model] does nothing without [training]: leave it out, or train on")


@dataclass(frozen=True, kw_only=True)
class VQVAEStage(AutoencoderStage):
    """Discrete autoencoder."""

    kind: Literal["vqvae"] = "vqvae"
    model: VQVAEConfig = field(default_factory=VQVAEConfig)

    revive_until: float = 0.8  # share of the training after which the codebook is left in peace

    @property
    def multiple(self) -> int:
        """What the sides of a picture must be multiples of."""
        return self.model.multiple

    def check_model(self) -> None:
        """Refuse what `pretrained` decides, settings of a training that there is none of, and a share of nothing."""
        default = VQVAEConfig()
        if not 0 <= self.revive_until <= 1:
            raise ValueError(f"revive_until is {self.revive_until}, expected a share of the training. Use 0.8.")
        own, known = ((model.network, model.quantizer, model.top) for model in (self.model, default))
        if self.pretrained and own != known:
            raise ValueError("model.network, quantizer and top come from `pretrained`: leave them out")
        started = [(model.unquantised, model.initial_vectors) for model in (self.model, default)]
        if self.pretrained and started[0] != started[1]:
            raise ValueError("the codebook comes from `pretrained`: leave model.unquantised and initial_vectors out")
        if self.training is None and (self.model, self.revive_until) != (default, VQVAEStage.revive_until):
            raise ValueError("[model] and revive_until do nothing without [training]: leave them out, or train on")
        if self.revive_until != VQVAEStage.revive_until and not self.model.started_codes:
            raise ValueError(
                f"revive_until is {self.revive_until}, but a quantizer of kind {self.model.quantizer.kind!r} does not "
                "start from the data. Leave revive_until out."
            )


@dataclass(frozen=True, kw_only=True)
class ContrastiveStage(Stage):
    """Contrastive towers: trained here, or taken from the local open_clip folder `pretrained`."""

    model: TowerSizes = field(default_factory=TowerSizes)
    training: Training | None = None
    pretrained: str | None = None

    def __post_init__(self) -> None:
        """Ask for one of the two ways."""
        if (self.training is None) == (self.pretrained is None):
            raise ValueError("a contrastive stage needs either [training] or pretrained = FOLDER")


@dataclass(frozen=True, kw_only=True)
class ClipStage(ContrastiveStage):
    """The text tower that conditions stage two."""

    kind: Literal["clip"] = "clip"


@dataclass(frozen=True, kw_only=True)
class JudgeStage(ContrastiveStage):
    """Towers that only judge: features for distances, and CLIP score."""

    kind: Literal["judge"] = "judge"


@dataclass(frozen=True, kw_only=True)
class SceneJudgeStage(Stage):
    """A small network that reads each object's attributes from a scene; it only judges."""

    kind: Literal["scene_judge"] = "scene_judge"
    widths: tuple[int, ...] = (48, 64, 96)  # channels per level
    training: Training
