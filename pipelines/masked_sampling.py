"""From the settings of a masked model to one of its samplers."""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import torch
from torch import Tensor

from backbone.noise import Randomness
from discrete import sample
from discrete.predict import Logits, Sharpen, denoiser, sharpener
from discrete.sample import Remasking, looped
from discrete.sample.block import Sampler
from discrete.sample.draw import unmade
from discrete.schedule import Cosine, Linear, Polynomial, Schedule
from latent.grid import uniform as uniform_times
from pipelines.errors import PalimpsestError, nearest
from pipelines.sampling_options import GRID_SAMPLERS, Settings, check_masked

GAP = re.compile(r"\[mask(?::(\d+))?\]", re.IGNORECASE)  # in a prompt: one token that is to be filled in, or so many
ORDERED = ("confidence", "entropy_bound")  # rank by the model's own law, whatever sharpens the draws
REVEAL: dict[str, Schedule] = {"linear": Linear(), "cosine": Cosine(), "square": Polynomial(power=2)}


def fill_in(
    logits: Logits,
    schedule: Schedule,
    x: Tensor,
    known: Tensor,
    settings: Settings,
    *,
    mask_id: int,
    generator: Randomness,
    window: int | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Fill in what is masked and not known, x (B, L) -> (B, L), as the settings say.

    allowed: (L, V + 1) or (V + 1,) bool, what may be drawn; window: the longest sequence that the model reads, where x
    is longer and goes by blocks. `cached` samples as `masked_ancestral` does: what remembers stands around the network.
    Raises PalimpsestError for a sampler that masked models do not have, for blocks with one that has no grid of times
    or of a size that does not fit, and for a mask of another shape.
    """
    check_masked(settings.sampler)
    if not len(x):
        return x
    if known.shape != x.shape:
        raise PalimpsestError(
            f"The mask of known positions has the shape {tuple(known.shape)}, but the tokens have {tuple(x.shape)}: "
            "give one bool for each token"
        )
    schedule = REVEAL.get(settings.masked.schedule, schedule)
    denoise = denoiser(logits, mask_id=mask_id, allowed=allowed, sharpen=of_denoiser(settings))
    options, common = settings.masked, {"mask_id": mask_id, "generator": generator, "known": known}
    size = options.block or (0 if window is None else block_within(window))
    if settings.sampler in GRID_SAMPLERS:
        sampler, times = on_a_grid(settings)
        if not size:
            return sampler(denoise, schedule, x, times, **common)
        try:
            return sample.block(denoise, schedule, x, times, sampler=sampler, size=size, window=window, **common)
        except ValueError as error:
            raise PalimpsestError(str(error)) from error
    if size:
        raise PalimpsestError(
            f"The text goes by blocks of {size} tokens, but {settings.sampler!r} chooses its own steps: take "
            f"{', '.join(GRID_SAMPLERS)}"
        )
    if settings.sampler == "entropy_bound":
        return sample.entropy_bound(denoise, schedule, x, options.bound, sharpen=of_draws(settings), **common)
    if settings.sampler == "first_hitting":
        opened = unmade(x, known, mask_id).sum(-1)  # (B,)
        at_once = (opened / settings.steps).ceil().long().clamp_min(1)
        return sample.first_hitting(denoise, schedule, x, at_once=at_once, **common)
    raise AssertionError(settings.sampler)


def of_draws(settings: Settings) -> Sharpen | None:
    """What the settings do to the logits that are drawn from; None where they leave them as they are."""
    options = settings.masked
    return sharpener(temperature=settings.temperature, top_k=options.top_k, top_p=options.top_p)


def of_denoiser(settings: Settings) -> Sharpen | None:
    """What they do to all laws that the sampler sees: nothing where it sharpens its draws by itself."""
    return None if settings.sampler in ORDERED else of_draws(settings)


def block_within(window: int) -> int:
    """Tokens of the blocks in which a text is written that is longer than what the model reads at once."""
    return max(1, window // 4)


def remembers(settings: Settings, *, timed: bool) -> bool:
    """Whether what a network said of a sequence is kept until the sequence changes.

    The adaptive samplers then pay nothing for sequences that are done. Raises PalimpsestError for `cached` with a
    network that sees the time.
    """
    if settings.sampler == "cached" and timed:
        raise PalimpsestError(
            "The sampler 'cached' remembers what the network said, but this network sees the time, which never stands "
            "still: take masked_ancestral, or train with model.time = false."
        )
    return not timed and settings.sampler in ("cached", "entropy_bound", "first_hitting")


def on_a_grid(settings: Settings) -> tuple[Sampler, Tensor]:
    """A sampler that takes a grid of times, and its grid of `steps` steps. Raises PalimpsestError for another.

    One of ORDERED sharpens by itself, for the others the denoiser does (`of_denoiser`).
    """
    options, times = settings.masked, uniform_times(settings.steps)
    match settings.sampler:
        case "confidence":
            own = {"temperature": settings.choice_temperature, "sharpen": of_draws(settings)}
            return partial(sample.confidence, **own), times
        case "remask_cap" | "remask_rescale" | "remask_confidence" | "remask_loop":
            if settings.sampler == "remask_loop":
                times = _loop_grid(settings.steps, options.loop, options.loop_at)
            return partial(sample.remask, remasking=_remasking(settings)), times
        case "masked_ancestral" | "cached":
            return sample.ancestral, times
        case _:
            raise PalimpsestError(
                f"{settings.sampler!r} has no grid of times{nearest(settings.sampler, GRID_SAMPLERS)}; there are "
                f"{', '.join(GRID_SAMPLERS)}"
            )


def _loop_grid(steps: int, share: float, at: float) -> Tensor:
    """A grid from 1 to 0 that spends a share of its steps at one time, and passes it evenly before and after."""
    if steps < 2:
        raise PalimpsestError(f"remask_loop has {steps} step, but it needs two at least: to come to its time and to go")
    staying = min(round(share * steps), steps - 2)
    moving = steps - staying
    above = min(max(1, round((1 - at) * moving)), moving - 1)
    upper, lower = uniform_times(above, 1.0, at), uniform_times(moving - above, at, 0.0)
    return looped(torch.cat([upper, lower[1:]]), at, staying)


def _remasking(settings: Settings) -> Remasking:
    options = settings.masked
    plain = Remasking(eta=options.eta)
    match settings.sampler:
        case "remask_rescale":
            return dataclasses.replace(plain, rule="rescale")
        case "remask_confidence":
            return Remasking(eta=1.0, confidence=True)  # the shares of a sequence sum to 1
        case "remask_loop":
            return dataclasses.replace(plain, window=(options.loop_at, options.loop_at))
        case _:
            return plain
