"""The stages that learn to generate, one frozen dataclass each: continuous and discrete diffusion, and their kin."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

import discrete.schedule
import latent.schedule
from discrete.model import MaskedTransformerConfig
from discrete.picture_prior import PicturePriorConfig
from discrete.task import TaskMix
from latent.classifier import MatchConfig
from latent.dit import DiTConfig
from latent.loss import Objective, Weighting
from latent.mmdit import MMDiTConfig
from latent.predict import Prediction, check
from latent.times import AnyTimes, LogitNormalTimes, UniformTimes
from latent.unet import UNetConfig
from pipelines.data.remote.address import check_no_secret
from pipelines.sampling_options import ODE_SAMPLERS, LatentOptions
from pipelines.stage import Stage
from pipelines.task import Training


def check_dropout(share: float) -> None:
    """Raise ValueError where captions could not be dropped in such a share of the pairs."""
    if not 0 <= share < 1:
        raise ValueError(f"caption_dropout is {share}, expected a share below 1; 0.1 is usual")


LatentConfig = Annotated[DiTConfig | MMDiTConfig | UNetConfig, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True)
class DenoisingStage(Stage):
    """What the stages that learn to denoise under a caption share: path, target and times."""

    schedule: Annotated[latent.schedule.AnySchedule, Field(discriminator="kind")] = field(
        default_factory=latent.schedule.Flow
    )
    prediction: Prediction = "velocity"
    times: Annotated[AnyTimes, Field(discriminator="kind")] = field(default_factory=LogitNormalTimes)
    shift: float = 1.0  # resolution shift of the training times and of the uniform grid that samples
    weighting: Weighting = "none"
    gamma: float | None = None  # of the weighting
    caption_dropout: float = 0.1
    training: Training

    def __post_init__(self) -> None:
        """Refuse a prediction from which the path's first step cannot be read, and shares that are none."""
        check(self.prediction, self.schedule)
        self.objective()
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift is {self.shift}, expected a factor above 0; 1 leaves the times as they are")
        check_dropout(self.caption_dropout)

    def objective(self) -> Objective:
        """Return what the network learns."""
        return Objective(schedule=self.schedule, prediction=self.prediction, weighting=self.weighting, gamma=self.gamma)


@dataclass(frozen=True, kw_only=True)
class LatentStage(DenoisingStage):
    """Latent flow matching or DDPM."""

    kind: Literal["latent"] = "latent"
    model: LatentConfig = field(default_factory=DiTConfig)
    coupling: Literal["independent", "transport"] = "independent"  # which noise meets which latent of a batch


@dataclass(frozen=True, kw_only=True)
class UpscaleStage(DenoisingStage):
    """A model of pixels that enlarges what its base, the first picture model in `needs`, draws.

    noise: a diffusion that starts from noise and is told the small picture. pair: a flow from the small picture, made
    as large as the result, to the result (arXiv:2310.03725), sampled by an ODE.
    """

    kind: Literal["upscale"] = "upscale"
    size: int  # side of its pictures
    source: int  # side of the pictures that it starts from
    model: UNetConfig = field(default_factory=lambda: UNetConfig(patch=4))
    prediction: Prediction = "x"  # a small network cannot carry the noise of as many numbers as a patch has
    start: Literal["noise", "pair"] = "noise"
    level: float = 0.1  # noise on the small picture: each training item draws its own level up to this one

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit, and pairs on a path that does not end in the small picture."""
        super().__post_init__()
        if not 0 < self.source < self.size or self.size % self.source:
            raise ValueError(f"from {self.source} to {self.size} pixels: expected a size that is a multiple of source")
        if self.size % self.model.factor:
            raise ValueError(
                f"size is {self.size}, which the model's patch and levels do not divide: expected a multiple of "
                f"{self.model.factor}, or a smaller patch or fewer multipliers"
            )
        if not 0 <= self.level < 1:
            raise ValueError(f"level is {self.level}, expected a time from 0 (no noise) to below 1; 0.1 is usual")
        if self.prediction == "edm":
            raise ValueError("prediction is 'edm', which is made for unit variance: for pixels take x, v or velocity")
        if self.start == "pair" and self.schedule != latent.schedule.Flow():
            raise ValueError(f"start = 'pair' on {self.schedule}: only the straight path, flow, ends in a picture")

    def unfit(self, sampler: str, options: LatentOptions) -> str:
        """Return why it cannot be sampled so, or nothing where it can."""
        if guide := options.weak or options.classifier:
            return f"{guide} cannot guide a model that enlarges: leave it out, the text guides alone"
        if self.start == "noise":
            return ""
        if sampler not in ODE_SAMPLERS:
            known = ", ".join(ODE_SAMPLERS)
            return f"{sampler!r} adds noise, but a model with start = 'pair' goes from picture to picture: use {known}"
        if options.start != 1 or options.grid != "uniform":
            return (
                f"start = {options.start:g} on the grid {options.grid!r}, but a model with start = 'pair' starts from "
                "a picture at time 1: leave both out"
            )
        return ""


@dataclass(frozen=True, kw_only=True)
class DistillStage(Stage):
    """A student that starts as its teacher, the latent model or student in `needs`, and learns to take few steps.

    progressive: one step of the student does the work of two of its teacher; a chain of such stages halves the steps
    again and again. reflow: the teacher's samples and their noise become pairs, between which paths are straight.
    consistency: the estimate of x is the same all along a path of the teacher.
    """

    kind: Literal["distill"] = "distill"
    method: Literal["progressive", "reflow", "consistency"]
    steps: int = 4  # of the student: those it is trained for; for consistency the levels between which it is trained
    guidance: float = 3.0  # of the teacher; the student has it inside, and is sampled, and teaches, with 1
    pairs: int = 5000  # samples that the teacher draws for reflow
    teacher_steps: int = 16  # with which it draws them (dpmpp_2m)
    training: Training

    def __post_init__(self) -> None:
        """Refuse numbers that teach nothing."""
        for name in ("steps", "pairs", "teacher_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance is {self.guidance}, expected a number; 1 is none and 3 is usual")
        if self.method == "consistency" and self.steps < 2:
            raise ValueError(f"consistency between {self.steps} levels, expected at least 2; 16 is usual")


@dataclass(frozen=True, kw_only=True)
class ClassifierStage(Stage):
    """A match of captions to noisy latents, whose gradient guides a latent model of the same path and cache."""

    kind: Literal["classifier"] = "classifier"
    model: MatchConfig = field(default_factory=MatchConfig)
    schedule: Annotated[latent.schedule.AnySchedule, Field(discriminator="kind")] = field(
        default_factory=latent.schedule.Flow
    )
    times: Annotated[AnyTimes, Field(discriminator="kind")] = field(default_factory=UniformTimes)
    training: Training


@dataclass(frozen=True, kw_only=True)
class TextShards:
    """Shards of texts without pictures (`KEY.txt` in *train*.tar) that a masked model reads beside its pairs."""

    path: str
    share: float = 0.5  # texts for each pair of a batch

    def __post_init__(self) -> None:
        """Refuse a share that reads nothing, and secrets."""
        check_no_secret(self.path, "texts.path")
        if not 0 < self.share < math.inf:
            raise ValueError(f"texts.share is {self.share}, expected a number above 0, such as 0.5")


@dataclass(frozen=True, kw_only=True)
class MdlmStage(Stage):
    """Masked diffusion over one sequence of text and image tokens."""

    kind: Literal["mdlm"] = "mdlm"
    model: MaskedTransformerConfig = field(default_factory=MaskedTransformerConfig)
    sampling_schedule: Annotated[discrete.schedule.AnySchedule, Field(discriminator="kind")] = field(
        default_factory=discrete.schedule.Cosine
    )
    tasks: TaskMix = field(default_factory=TaskMix)
    texts: TextShards | None = None  # texts without pictures, mixed in
    pair_schedule_steps: int = 0  # after training, to learn which side of a pair is revealed first; 0: both alike
    training: Training

    def __post_init__(self) -> None:
        """Refuse a share of texts that makes no whole number of them, and steps below 0."""
        if self.pair_schedule_steps < 0:
            raise ValueError(
                f"pair_schedule_steps is {self.pair_schedule_steps}, expected 0 (none) or more, such as 100"
            )
        count = self.texts.share * self.training.batch if self.texts else 1.0
        if count < 1 or not math.isclose(count, round(count)):
            raise ValueError(
                f"texts.share makes {count:g} texts for a batch of {self.training.batch} pairs: expected a whole "
                "number of at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class ArStage(Stage):
    """An autoregressive prior over the codes of pictures, with the text in front."""

    kind: Literal["ar"] = "ar"
    model: PicturePriorConfig = field(default_factory=PicturePriorConfig)
    text_weight: float = 0.125  # of the text's nats per token beside the image's
    caption_dropout: float = 0.1  # share of the pairs whose text is hidden: the null branch of guidance
    training: Training

    def __post_init__(self) -> None:
        """Refuse a weight below 0, and a share that is none."""
        check_dropout(self.caption_dropout)
        if not 0 <= self.text_weight < math.inf:
            raise ValueError(f"text_weight is {self.text_weight}, expected 0 (no text) or above; 0.125 is usual")

    def unfit(self, guidance: float) -> str:
        """Return why it cannot be sampled with so much guidance, or nothing where it can."""
        if guidance == 1 or self.caption_dropout > 0:
            return ""
        return (
            f"guidance {guidance:g} needs an unconditional branch, but caption_dropout is 0: use guidance 1, or train "
            "with 0.1"
        )
