"""The kinds of data and stages that a recipe can hold, one frozen dataclass each; `kind` tells them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.data.order import BLOCK, check_block
from pipelines.data.shard_writer import PER_SHARD
from pipelines.judged_config import EvalStage, GenerateStage, MaskedSweepStage, SweepStage
from pipelines.stage import Stage
from pipelines.stage_one_config import (
    BPEStage,
    ClipStage,
    JudgeStage,
    SceneJudgeStage,
    VAEStage,
    VQVAEStage,
)
from pipelines.stage_two_config import (
    ArStage,
    ClassifierStage,
    DistillStage,
    LatentStage,
    MdlmStage,
    UpscaleStage,
)
from pipelines.text.config import TextEvalStage, TextModelStage, TextSweepStage, TextTokensStage


@dataclass(frozen=True, kw_only=True)
class ScenesData:
    """The built-in captioned scenes, rendered on first use."""

    kind: Literal["scenes"] = "scenes"
    size: int = 32
    count: int = 20_000
    seed: int = 0
    render: int | None = None  # pixels of the pictures in the shards, from which stages read smaller ones; None is size
    block: int = BLOCK  # shards that are shuffled together; with as many as there are, all samples are

    def __post_init__(self) -> None:
        """Refuse pictures that would have to be enlarged."""
        check_block(self.block)
        if self.render is not None and self.render < self.size:
            raise ValueError(f"render is {self.render}, expected at least size = {self.size}, or nothing for just that")


@dataclass(frozen=True, kw_only=True)
class ShardData:
    """WebDataset shards of captioned images; `--data DIR` says where they are."""

    kind: Literal["shards"] = "shards"
    path: str | None = None
    size: int = 32
    block: int = BLOCK  # shards that are shuffled together; with as many as there are, all samples are
    credit: str = ""  # the licence line that the report prints

    def __post_init__(self) -> None:
        """Refuse blocks of nothing."""
        check_block(self.block)


@dataclass(frozen=True, kw_only=True)
class EncodeStage(Stage):
    """Latents, image tokens, text tokens and text embeddings of every split, cached in shards."""

    kind: Literal["encode"] = "encode"
    batch: int = 64
    shard: int = PER_SHARD  # samples that are encoded as one piece, by one process

    def __post_init__(self) -> None:
        """Refuse pieces and batches of nothing."""
        for name in ("batch", "shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1 sample")

    @property
    def by_all(self) -> bool:
        """Each process makes some of the shards."""
        return True


AnyStage = (
    BPEStage
    | VAEStage
    | VQVAEStage
    | ClipStage
    | JudgeStage
    | SceneJudgeStage
    | EncodeStage
    | LatentStage
    | UpscaleStage
    | DistillStage
    | ClassifierStage
    | MdlmStage
    | ArStage
    | TextTokensStage
    | TextModelStage
    | TextSweepStage
    | TextEvalStage
    | GenerateStage
    | SweepStage
    | MaskedSweepStage
    | EvalStage
)
FORERUNNERS: dict[str, tuple[str, ...]] = {  # the kinds that a kind cannot do without
    "clip": ("bpe",),
    "judge": ("bpe",),
    "encode": ("vae", "vqvae", "bpe", "clip"),
    "latent": ("encode",),
    "upscale": ("encode",),
    "distill": ("latent",),
    "classifier": ("encode",),
    "sweep": ("latent", "judge"),
    "mdlm": ("encode",),
    "ar": ("encode",),
    "masked_sweep": ("mdlm", "judge"),
    "text_model": ("text_tokens",),
    "text_sweep": ("text_model",),
    "text_eval": ("text_model",),
}
PICTURE_MODELS = ("latent", "distill", "upscale", "mdlm", "ar")  # kinds that draw pictures
