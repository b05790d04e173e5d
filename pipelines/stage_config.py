"""The kinds of stages that a recipe can hold, one frozen dataclass each; `kind` tells them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
class EncodeStage(Stage):
    """Latents, text tokens and text embeddings of every split, cached in shards; where it has a VQ-VAE image tokens.

    With `data.buckets` each picture has the shape of its bucket, and there are no image tokens.
    """

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
    "encode": ("vae", "bpe", "clip"),
    "latent": ("encode",),
    "upscale": ("encode",),
    "distill": ("latent",),
    "classifier": ("encode",),
    "sweep": ("latent", "judge"),
    "mdlm": ("encode",),
    "ar": ("encode",),
    "masked_sweep": ("judge",),
    "text_model": ("text_tokens",),
    "text_sweep": ("text_model",),
    "text_eval": ("text_model",),
}
PICTURE_MODELS = ("latent", "distill", "upscale", "mdlm", "ar")  # kinds that draw pictures
