"""Names of samplers and guidance rules, and how to sample."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from pipelines.errors import PalimpsestError, nearest

ODE_SAMPLERS = ("euler", "heun", "midpoint", "rk4", "dormand_prince", "ddim", "dpmpp_2m", "dpmpp_3m", "unipc")
NOISY_SAMPLERS = (
    "ancestral",
    "ancestral_large",
    "dpmpp_2m_sde",
    "edm_stochastic",
    "euler_maruyama",
    "predictor_corrector",
    "annealed_langevin",
    "consistency",
)
LATENT_SAMPLERS = ODE_SAMPLERS + NOISY_SAMPLERS
SIGNAL_SAMPLERS = ("euler_maruyama", "predictor_corrector", "annealed_langevin")  # those that cannot start at alpha = 0
REMASKING_SAMPLERS = ("remask_cap", "remask_rescale", "remask_confidence", "remask_loop")
BY_TOKEN_SAMPLERS = ("masked_ancestral", "cached", *REMASKING_SAMPLERS)  # a coin for each token, at its own time
GRID_SAMPLERS = ("confidence", *BY_TOKEN_SAMPLERS)
MASKED_SAMPLERS = (*GRID_SAMPLERS, "first_hitting", "entropy_bound")
AUTOREGRESSIVE = "autoregressive"  # the one sampler of autoregressive models of pictures
OF_AUTOREGRESSIVE = {"sampler", "guidance", "temperature", "top_k", "top_p"}  # the settings that it makes use of
Grid = Literal["uniform", "karras", "log_snr", "levels"]
Reveal = Literal["own", "linear", "cosine", "square"]
Rule = Literal["plain", "rescaled", "projected", "zero_star"]
Variant = Literal["cosine", "square", "maskgit"]
"""Of masked samplers: `masked_ancestral` that reveals by another schedule; and `confidence` as MaskGIT has it
(arXiv:2202.04200), by the cosine schedule with noise on the order."""
MASKGIT_NOISE = 4.5


def check_samplers(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError where a name is not among the known ones."""
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"samplers {unknown} are unknown; there are {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class LatentOptions:
    """How a latent model is sampled, beyond sampler, steps and guidance scale."""

    grid: Grid = "uniform"  # where the steps lie
    start: float = 1.0  # time of the first step; below 1 for samplers that need some signal, such as 0.999
    rule: Rule = "plain"  # how the two branches of guidance are combined
    interval: tuple[float, float] = (0.0, 1.0)  # times at which guidance acts; elsewhere the model alone
    negative: str = ""  # what to keep away from; empty is the learned null condition
    weak: str = ""  # stage of a weaker model that guides in place of the null condition (autoguidance)
    classifier: str = ""  # stage of a classifier whose gradient guides as well, also at guidance 1
    classifier_scale: float = 1.0  # of that gradient; interval holds for it, too
    threshold: float | None = None  # dynamic thresholding: values of x beyond this size are scaled back
    tolerance: float = 1e-3  # of dormand_prince, which chooses its own steps
    langevin_steps: int = 8  # of annealed_langevin, at each level of the grid
    level: float | None = None  # noise on the small picture that an upscale model is told; None is 0

    def __post_init__(self) -> None:
        """Refuse what no sampler can use."""
        for name, known in (("grid", get_args(Grid)), ("rule", get_args(Rule))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        if not 0 < self.start <= 1:
            raise ValueError(f"start is {self.start}, expected a time above 0 and at most 1; 1 is pure noise")
        if self.start != 1 and self.grid in ("karras", "log_snr"):
            raise ValueError(
                f"start is {self.start:g}, but the grid {self.grid!r} has a start of its own: leave start out, or take "
                "the grid 'uniform'"
            )
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance interval {self.interval}, expected 0 <= low < high <= 1; (0, 1) is everywhere")
        if self.threshold is not None and not 0 < self.threshold < math.inf:
            raise ValueError(
                f"threshold is {self.threshold}, expected a size above 0; latents have unit variance, try 4"
            )
        if not 0 < self.tolerance < math.inf:
            raise ValueError(f"tolerance is {self.tolerance}, expected a number above 0, such as 1e-3")
        if self.langevin_steps < 1:
            raise ValueError(f"langevin_steps is {self.langevin_steps}, expected at least 1")
        if self.level is not None and not 0 <= self.level < 1:
            raise ValueError(f"level is {self.level}, expected a time from 0 (no noise) to below 1")
        if not 0 <= self.classifier_scale < math.inf:
            raise ValueError(f"classifier_scale is {self.classifier_scale}, expected 0 (no guidance) or above")
        if self.classifier_scale != 1 and not self.classifier:
            raise ValueError(f"classifier_scale is {self.classifier_scale}, but no stage is named as the classifier")
        if self.negative and self.weak:
            raise ValueError("negative and weak are two ways to guide: give one of them")


@dataclass(frozen=True, kw_only=True)
class MaskedOptions:
    """How a masked model is sampled, beyond sampler, steps, guidance scale and temperature.

    An autoregressive one makes use of top_k and top_p alone.
    """

    top_k: int = 0  # draw from so many of the likeliest tokens; 0 is all
    top_p: float = 1.0  # draw from the likeliest tokens that together have this probability
    bound: float = 0.1  # of entropy_bound, in nats, in place of steps
    eta: float = 0.05  # of the remask samplers but remask_confidence: how much is hidden again
    schedule: Reveal = "own"  # how fast a grid of times reveals; own is what the model was trained with
    loop: float = 0.5  # share of the steps that remask_loop stays at one time
    loop_at: float = 0.1  # that time
    block: int = 0  # tokens that are filled in before those behind them; 0 is all at once
    interval: tuple[float, float] = (0.0, 1.0)  # times at which guidance acts; elsewhere the model alone

    def __post_init__(self) -> None:
        """Refuse what no sampler can use."""
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_k {self.top_k} and top_p {self.top_p}: expected 0 (all) or more, and a share up to 1"
            )
        if self.schedule not in get_args(Reveal):
            raise ValueError(f"schedule is {self.schedule!r}, expected one of {', '.join(get_args(Reveal))}")
        if not 0 <= self.bound < math.inf:
            raise ValueError(f"bound is {self.bound}, expected 0 nats (one token at a time) or more, such as 0.1")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}, expected a probability; 0 never remasks and 0.05 is usual")
        if not 0 < self.loop < 1 or not 0 < self.loop_at < 1:
            raise ValueError(f"loop {self.loop} at {self.loop_at}: expected a share and a time between 0 and 1")
        if self.block < 0:
            raise ValueError(f"block is {self.block}, expected 0 (all at once) or a number of tokens")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance interval {self.interval}, expected 0 <= low < high <= 1; (0, 1) is everywhere")


def check_rows(samplers: Sequence[str], variants: Sequence[str], bounds: Sequence[float]) -> None:
    """Raise ValueError where a sweep of masked samplers would measure nothing, or what cannot be sampled."""
    if not samplers and not variants:
        raise ValueError("samplers and variants are both empty: name at least one")
    for bound in bounds:
        MaskedOptions(bound=bound)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to sample."""

    sampler: str
    steps: int
    guidance: float
    latent: LatentOptions = field(default_factory=LatentOptions)  # of a latent model
    masked: MaskedOptions = field(default_factory=MaskedOptions)  # of a masked or an autoregressive one
    temperature: float = 1.0
    choice_temperature: float = 0.0  # of the confidence sampler's order
    caption_guidance: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        if self.steps < 1:
            raise PalimpsestError(f"steps is {self.steps}, expected at least 1; 12 is usual for pictures")
        if not math.isfinite(self.guidance):
            raise PalimpsestError(f"guidance is {self.guidance}, expected a number; 1 is none and 3 is usual")
        if not 0 < self.temperature < math.inf:
            raise PalimpsestError(
                f"temperature is {self.temperature}, expected a number above 0; 1 is the model itself"
            )
        if not 0 <= self.choice_temperature < math.inf:
            raise PalimpsestError(
                f"choice_temperature is {self.choice_temperature}, expected 0 (pure confidence) or above; 4.5 is usual"
            )


def check_masked(sampler: str) -> None:
    """Raise PalimpsestError where masked models have no such sampler."""
    if sampler not in MASKED_SAMPLERS:
        raise PalimpsestError(
            f"a masked model does not sample with {sampler!r}{nearest(sampler, MASKED_SAMPLERS)}; there are "
            f"{', '.join(MASKED_SAMPLERS)}"
        )


def heeded(sampler: str) -> set[str]:
    """Return the fields of Settings and MaskedOptions that a sampler of masked models makes use of.

    Raises PalimpsestError for another name.
    """
    check_masked(sampler)
    names = {"sampler", "steps", "guidance", "caption_guidance", "temperature", "top_k", "top_p", "interval"}
    if sampler in GRID_SAMPLERS:
        names |= {"schedule", "block"}
    if sampler in REMASKING_SAMPLERS and sampler != "remask_confidence":
        names.add("eta")
    match sampler:
        case "confidence":
            names.add("choice_temperature")
        case "remask_loop":
            names |= {"loop", "loop_at"}
        case "entropy_bound":
            names = (names | {"bound"}) - {"steps"}
    return names


def differing(settings: Settings) -> set[str]:
    """Return the fields beside sampler, steps and guidance in which settings of a masked model are not plain."""
    plain = Settings(sampler=settings.sampler, steps=settings.steps, guidance=settings.guidance)
    found = {name for name in vars(plain) if getattr(plain, name) != getattr(settings, name)} - {"masked", "latent"}
    options = vars(plain.masked)
    return found | {name for name in options if options[name] != getattr(settings.masked, name)}


def refuse_idle(names: Iterable[str], known: Iterable[str], who: str) -> None:
    """Raise PalimpsestError where there are names that `who` does not heed."""
    if without := sorted(set(names) - set(known)):
        raise PalimpsestError(f"{', '.join(without)}: no use to {who}; leave it out, or take another sampler")


def variant_of(plain: Settings, variant: Variant) -> Settings:
    """Return the settings of a variant at as many steps as `plain` has."""
    if variant == "maskgit":
        masked = dataclasses.replace(plain.masked, schedule="cosine")
        return dataclasses.replace(plain, sampler="confidence", choice_temperature=MASKGIT_NOISE, masked=masked)
    masked = dataclasses.replace(plain.masked, schedule=variant)
    return dataclasses.replace(plain, sampler="masked_ancestral", masked=masked)
