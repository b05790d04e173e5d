"""The kinds of stages that draw with trained models and judge what they draw."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from pipelines.errors import PalimpsestError
from pipelines.power_average import LONGEST
from pipelines.sampling_options import (
    LATENT_SAMPLERS,
    MASKED_SAMPLERS,
    LatentOptions,
    MaskedOptions,
    Rule,
    Settings,
    Variant,
    check_rows,
    check_samplers,
)
from pipelines.scoring.kinds import parsed
from pipelines.stage import Stage

LENGTHS = (0.025, 0.05, 0.1, 0.15, 0.2)  # of averages, where a sweep does not say which
FEWEST = 32  # pictures of a line over 1 / n: 15 sizes from half of them on


@dataclass(frozen=True, kw_only=True)
class GenerateStage(Stage):
    """Pictures (and captions, from a masked model) for the held-out captions, ready to be judged."""

    kind: Literal["generate"] = "generate"
    count: int = 600  # held-out captions
    unseen: int = 200  # captions of unseen compositions
    texts: int = 200  # texts without a picture
    sampler: str | None = None  # as the model is (sampling_options.py); None, also below: its usual one
    steps: int | None = None
    guidance: float | None = None
    latent: LatentOptions = field(default_factory=LatentOptions)  # of a latent model
    masked: MaskedOptions = field(default_factory=MaskedOptions)  # of a masked or an autoregressive one
    temperature: float | None = None  # below 1, tokens are drawn from a sharper law than the model's
    choice_temperature: float = 0.0  # noise on the order in which the confidence sampler reveals; MaskGIT's is 4.5
    caption_guidance: float = 2.0  # away from captions of no picture in particular; 1 is the model itself
    batch: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that draw nothing."""
        for name, least in (("count", 1), ("unseen", 0), ("texts", 1), ("steps", 1), ("batch", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"guidance is {self.guidance}, expected a number; 1 is none and 3 is usual")
        if not 0 <= self.choice_temperature < math.inf:
            raise ValueError(f"choice_temperature is {self.choice_temperature}, expected 0 (pure confidence) or above")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}, expected a number above 0; 1 is the model itself")

    def settings(self) -> Settings:
        """Return how it samples; only in a recipe, which fills what is left open."""
        return Settings(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)})


@dataclass(frozen=True, kw_only=True)
class SweepStage(Stage):
    """Every sampler at several numbers of network evaluations, guidance at several scales, and training, judged."""

    kind: Literal["sweep"] = "sweep"
    count: int = 100  # held-out captions behind every figure
    samplers: tuple[str, ...] = tuple(name for name in LATENT_SAMPLERS if name != "consistency")
    evaluations: tuple[int, ...] = (4, 8, 16, 32)
    guidance: float = 3.0  # while samplers are compared
    rules: tuple[Rule, ...] = ("plain", "rescaled", "projected", "zero_star")
    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 8.0)
    student_steps: tuple[int, ...] = (1, 2, 4)
    likelihoods: int = 32  # held-out latents whose density is measured; below 2 none is
    weak: str = ""  # the latent stage in `needs` that is there only to guide the others (autoguidance)
    ema_lengths: tuple[float, ...] | None = None  # of averages from snapshots; None: LENGTHS of models that have any
    checkpoints: int = 8  # steps of the training, at most, whose weights are judged, of those that were kept; 0 is none
    line: int = 400  # pictures as the model is usually sampled, for the Fréchet distance over 1 / n; 0 is none
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse samplers that there are not, and numbers that measure nothing."""
        check_samplers(self.samplers, LATENT_SAMPLERS)
        if not self.evaluations or min((self.count, *self.evaluations, *self.student_steps)) < 1:
            raise ValueError("count, evaluations and student_steps: expected at least 1 each")
        if not all(math.isfinite(scale) for scale in (self.guidance, *self.scales)):
            raise ValueError(f"guidance is {self.guidance} and scales are {self.scales}, expected numbers")
        check_trained(self.ema_lengths, self.checkpoints, self.line)


@dataclass(frozen=True, kw_only=True)
class MaskedSweepStage(Stage):
    """Models of codes over guidance, temperature and training; masked ones with every sampler, captions too, judged."""

    kind: Literal["masked_sweep"] = "masked_sweep"
    count: int = 100  # held-out captions, and pictures, behind every figure
    samplers: tuple[str, ...] = MASKED_SAMPLERS
    variants: tuple[Variant, ...] = get_args(Variant)  # of those samplers
    steps: tuple[int, ...] = (4, 8, 16, 32, 64)
    bounds: tuple[float, ...] = (30.0, 10.0, 3.0, 1.0, 0.3)  # nats, of entropy_bound, in place of steps
    guidance: float = 2.5
    temperature: float = 0.7
    caption_guidance: float = 2.0
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
    temperatures: tuple[float, ...] = (0.4, 0.55, 0.7, 0.85, 1.0)  # of pictures and of captions
    ema_lengths: tuple[float, ...] | None = None  # of averages from snapshots; None: LENGTHS of models that have any
    checkpoints: int = 8  # steps of the training, at most, whose weights are judged, of those that were kept; 0 is none
    line: int = 400  # pictures as the model is usually sampled, for the Fréchet distance over 1 / n; 0 is none
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse samplers that there are not, and numbers that measure nothing."""
        check_samplers(self.samplers, MASKED_SAMPLERS)
        check_rows(self.samplers, self.variants, self.bounds)
        if not self.steps or min(self.steps) < 2 or self.count < 1:
            raise ValueError(f"count {self.count} and steps {self.steps}: expected at least 1 picture and 2 steps")
        if not all(map(math.isfinite, (*self.scales, self.guidance, self.caption_guidance, self.temperature))):
            raise ValueError(f"scales are {self.scales} and guidance {self.guidance}, expected numbers")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}, expected a number above 0; 1 is the model itself")
        if not all(0 < temperature < math.inf for temperature in self.temperatures):
            raise ValueError(f"temperatures are {self.temperatures}, expected numbers above 0; 1 is the model itself")
        check_trained(self.ema_lengths, self.checkpoints, self.line)


def check_trained(ema_lengths: tuple[float, ...] | None, checkpoints: int, line: int) -> None:
    """Raise ValueError for lengths that no average has, and for numbers that measure nothing."""
    for length in ema_lengths or ():
        if not 0 < length <= LONGEST:
            raise ValueError(f"ema_lengths has {length:g}, expected shares above 0, up to {LONGEST:.3f}, such as 0.1")
    if checkpoints < 0 or line < 0 or 0 < line < FEWEST:
        raise ValueError(
            f"checkpoints is {checkpoints} and line {line}: expected 0 (none) or more steps, and 0 (none) or at least "
            f"{FEWEST} pictures"
        )


@dataclass(frozen=True, kw_only=True)
class EvalStage(Stage):
    """Figures and the report."""

    kind: Literal["eval"] = "eval"
    reconstructions: int = 1000  # held-out pictures behind PSNR, SSIM and codebook usage
    pictures: int = 64  # in each grid
    embedders: tuple[str, ...] = ()  # beside the judge, KIND or KIND=PATH: inception=FILE, dinov2=FOLDER, ...
    searched: int = 5000  # training pictures in which copies are looked for; 0: none is
    lpips: str = ""  # folder with torchvision's trunk and the lpips package's heads; "" measures no LPIPS

    def __post_init__(self) -> None:
        """Refuse embedders that there are not, and numbers that judge nothing."""
        for name, least in (("reconstructions", 1), ("pictures", 1), ("searched", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        try:
            kinds = [parsed(asked) for asked in self.embedders]
        except PalimpsestError as error:
            raise ValueError(f"embedders: {error}") from error
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"embedders {list(self.embedders)} name one twice: name each once")
