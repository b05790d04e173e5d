"""The kinds of data and stages that a recipe can hold, one frozen dataclass each; `kind` tells them apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

import discrete.schedule
import latent.schedule
from backbone.clip import TowerSizes
from discrete.model import MaskedTransformerConfig
from discrete.task import TaskMix
from latent.dit import DiTConfig
from latent.loss import TimeKind, Weighting
from latent.predict import Prediction, check
from pipelines.task import Training
from tokenizer.vae import VAEConfig
from tokenizer.vqvae import VQVAEConfig


@dataclass(frozen=True, kw_only=True)
class ScenesData:
    """The built-in captioned scenes, rendered on first use."""

    kind: Literal["scenes"] = "scenes"
    size: int = 32
    count: int = 20_000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ShardData:
    """WebDataset shards of captioned images; `--data DIR` says where they are."""

    kind: Literal["shards"] = "shards"
    path: str | None = None
    size: int = 32
    credit: str = ""  # the licence line that the report prints


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What every stage has: the stages that it needs."""

    needs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BPEStage(Stage):
    """Byte-pair encoding trained on the captions of the training split."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: int = 512
    length: int = 18  # tokens per caption, the end token included


@dataclass(frozen=True, kw_only=True)
class VAEStage(Stage):
    """Continuous autoencoder."""

    kind: Literal["vae"] = "vae"
    model: VAEConfig = field(default_factory=VAEConfig)
    training: Training


@dataclass(frozen=True, kw_only=True)
class VQVAEStage(Stage):
    """Discrete autoencoder."""

    kind: Literal["vqvae"] = "vqvae"
    model: VQVAEConfig = field(default_factory=VQVAEConfig)
    training: Training
    revive_until: float = 0.8  # share of the training after which the codebook is left in peace


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


@dataclass(frozen=True, kw_only=True)
class EncodeStage(Stage):
    """Latents, image tokens, text tokens and text embeddings of every split, cached in shards."""

    kind: Literal["encode"] = "encode"
    batch: int = 64


@dataclass(frozen=True, kw_only=True)
class LatentStage(Stage):
    """Latent flow matching or DDPM."""

    kind: Literal["latent"] = "latent"
    model: DiTConfig = field(default_factory=DiTConfig)
    schedule: Annotated[
        latent.schedule.Flow | latent.schedule.VP | latent.schedule.Cosine, Field(discriminator="kind")
    ] = field(default_factory=latent.schedule.Flow)
    prediction: Prediction = "velocity"
    times: TimeKind = "logit_normal"
    times_mean: float = 0.0
    times_std: float = 1.0
    weighting: Weighting = "none"
    caption_dropout: float = 0.1
    training: Training

    def __post_init__(self) -> None:
        """Refuse a prediction from which the path's first step cannot be read, and shares that are none."""
        check(self.prediction, self.schedule)
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout is {self.caption_dropout}, expected a share below 1; 0.1 is usual")


@dataclass(frozen=True, kw_only=True)
class MdlmStage(Stage):
    """Masked diffusion over one sequence of text and image tokens."""

    kind: Literal["mdlm"] = "mdlm"
    model: MaskedTransformerConfig = field(default_factory=MaskedTransformerConfig)
    sampling_schedule: Annotated[discrete.schedule.Linear | discrete.schedule.Cosine, Field(discriminator="kind")] = (
        field(default_factory=discrete.schedule.Cosine)
    )
    tasks: TaskMix = field(default_factory=TaskMix)
    training: Training


LATENT_SAMPLERS = ("euler", "heun", "ddim", "dpmpp_2m", "ancestral")
MASKED_SAMPLERS = ("confidence", "masked_ancestral")


@dataclass(frozen=True, kw_only=True)
class GenerateStage(Stage):
    """Pictures (and captions, from a masked model) for the held-out captions, ready to be judged."""

    kind: Literal["generate"] = "generate"
    count: int = 600  # held-out captions
    unseen: int = 200  # captions of unseen compositions
    texts: int = 200  # texts without a picture
    sampler: str = "dpmpp_2m"  # LATENT_SAMPLERS or MASKED_SAMPLERS, as the model is
    steps: int = 12
    guidance: float = 3.0
    temperature: float = 1.0  # below 1, tokens are drawn from a sharper law than the model's
    choice_temperature: float = 0.0  # noise on the order in which the confidence sampler reveals; MaskGIT's is 4.5
    caption_guidance: float = 2.0  # away from captions of no picture in particular; 1 is the model itself
    batch: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that draw nothing."""
        for name, least in (("count", 1), ("unseen", 0), ("texts", 1), ("steps", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if not self.choice_temperature >= 0:
            raise ValueError(f"choice_temperature is {self.choice_temperature}, expected 0 (pure confidence) or above")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, expected a number above 0; 1 is the model itself")


@dataclass(frozen=True, kw_only=True)
class EvalStage(Stage):
    """Figures and the report."""

    kind: Literal["eval"] = "eval"
    reconstructions: int = 1000  # held-out pictures behind PSNR, SSIM and codebook usage
    pictures: int = 64  # in each grid


AnyStage = (
    BPEStage
    | VAEStage
    | VQVAEStage
    | ClipStage
    | JudgeStage
    | SceneJudgeStage
    | EncodeStage
    | LatentStage
    | MdlmStage
    | GenerateStage
    | EvalStage
)
FORERUNNERS: dict[str, tuple[str, ...]] = {  # the kinds that a kind cannot do without
    "clip": ("bpe",),
    "judge": ("bpe",),
    "encode": ("vae", "vqvae", "bpe", "clip"),
    "latent": ("encode",),
    "mdlm": ("encode",),
}
