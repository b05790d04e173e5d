"""How a text model can be sampled, and how it is where nothing is said."""

from __future__ import annotations

from collections.abc import Iterable

from discrete.objective import Autoregressive, Blocks, Masked
from discrete.replaced import D3PM, Uniform
from pipelines.errors import PalimpsestError, nearest
from pipelines.sampling_options import GRID_SAMPLERS, MASKED_SAMPLERS, Settings, differing, heeded, refuse_idle
from pipelines.text.config import AnyObjective


def samplers_of(objective: AnyObjective) -> tuple[str, ...]:
    """Names of the samplers of a model, its usual one first."""
    match objective:
        case Autoregressive():
            return ("one_by_one",)
        case Masked():
            return ("masked_ancestral", *(name for name in MASKED_SAMPLERS if name != "masked_ancestral"))
        case Blocks():
            return ("masked_ancestral", *(name for name in GRID_SAMPLERS if name not in ("masked_ancestral", "cached")))
        case Uniform():
            return ("uniform_ancestral",)
        case _:
            return ("all_steps",)


def usual_settings(objective: AnyObjective, length: int, sampler: str | None = None) -> Settings:
    """How a model writes `length` tokens, or a block of so many, where nothing is said, or nothing but the sampler.

    Half as many steps as tokens; of models of blocks four for each token of a block, since blocks are read cheaply and
    tokens that are revealed together do not know each other; of a chain all its steps; of first hitting one for each
    token, since its law is the model's own then alone.
    """
    match objective:
        case Masked() if sampler == "first_hitting":
            count = length
        case D3PM(steps=steps):
            count = steps
        case Blocks(size=size):
            count = 4 * size
        case _:
            count = max(2, length // 2)
    return Settings(sampler=sampler or samplers_of(objective)[0], steps=count, guidance=1.0)


def check_settings(objective: AnyObjective, settings: Settings, given: Iterable[str] = ()) -> None:
    """Raise PalimpsestError for a sampler that a model does not have, and for settings that it would not heed.

    given: names of settings that were asked for, which may be those that a model has anyway.
    """
    known = samplers_of(objective)
    if settings.sampler not in known:
        close = nearest(settings.sampler, known) if len(known) > 1 else ""
        raise PalimpsestError(
            f"a model of kind {objective.kind!r} does not write with {settings.sampler!r}{close}; it can use "
            f"{', '.join(known)}"
        )
    match objective:
        case Autoregressive():
            fields = {"sampler", "temperature", "top_k", "top_p"}
        case Uniform() | D3PM():
            fields = {"sampler", "steps"}
        case _:
            fields = heeded(settings.sampler) - {"guidance", "caption_guidance", "interval"}
    if isinstance(objective, Blocks):
        fields -= {"block", "schedule"}
    names = {*differing(settings), *given}
    refuse_idle(names, fields, f"a model of kind {objective.kind!r} that writes with {settings.sampler!r}")
