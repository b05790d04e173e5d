"""From settings and what is asked for instead to the settings that a model samples with."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Literal

from pipelines.errors import PalimpsestError
from pipelines.sampling_options import (
    AUTOREGRESSIVE,
    OF_AUTOREGRESSIVE,
    LatentOptions,
    MaskedOptions,
    Settings,
    heeded,
    refuse_idle,
)

Kind = Literal["masked", "latent", "autoregressive"]  # of a model of pictures
SETTINGS = {field.name for field in dataclasses.fields(Settings)} - {"latent", "masked"}
MASKED_OPTIONS = {field.name for field in dataclasses.fields(MaskedOptions)}
LATENT_OPTIONS = {field.name for field in dataclasses.fields(LatentOptions)}
OF_LATENT = {"sampler", "steps", "guidance"} | LATENT_OPTIONS
OF_GUIDANCE = {"guidance", "caption_guidance", "interval"}  # without a condition there is none


def check_heeded(model: str, settings: Settings, changes: Mapping[str, Any], unused: Collection[str] = ()) -> None:
    """Raise PalimpsestError for changes to a masked model that its sampler, or what is asked of it, does not heed."""
    known = heeded(settings.sampler) - set(unused)
    refuse_idle(given(changes), known, f"{model}, which samples with {settings.sampler!r}")


def check_autoregressive(model: str, settings: Settings, changes: Mapping[str, Any]) -> None:
    """Raise PalimpsestError for changes to an autoregressive model of pictures that it does not heed."""
    if settings.sampler != AUTOREGRESSIVE:
        raise PalimpsestError(
            f"{model} draws one code after the other, by the sampler {AUTOREGRESSIVE!r} alone, not by "
            f"{settings.sampler!r}: leave it out"
        )
    refuse_idle(given(changes), OF_AUTOREGRESSIVE, f"{model}, which draws one code after the other")


def given(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes that change something."""
    return {key: value for key, value in changes.items() if value is not None}


def changed(base: Settings, kind: Kind, changes: Mapping[str, Any]) -> Settings:
    """Return settings with some fields of theirs, or of the options of a kind of model, instead; None changes nothing.

    Raises PalimpsestError for a name that is no setting, or an option of the other kind.
    """
    wanted = given(changes)
    if unknown := [key for key in wanted if key not in SETTINGS | LATENT_OPTIONS | MASKED_OPTIONS]:
        known = ", ".join(sorted(SETTINGS | LATENT_OPTIONS | MASKED_OPTIONS))
        raise PalimpsestError(f"{', '.join(unknown)}: no setting of sampling; there are {known}")
    part, other = ("latent", "masked") if kind == "latent" else ("masked", "latent")
    fitting = OF_LATENT if kind == "latent" else SETTINGS | MASKED_OPTIONS
    if wrong := [key for key in wanted if key not in fitting]:
        article = "an" if kind == "autoregressive" else "a"
        raise PalimpsestError(
            f"{', '.join(wrong)}: {article} {kind} model knows no such thing; leave it out, or name a {other} model "
            "with --model"
        )
    options = {key: wanted.pop(key) for key in list(wanted) if key not in SETTINGS}
    return dataclasses.replace(base, **wanted, **{part: dataclasses.replace(getattr(base, part), **options)})


def unbiased(settings: Settings, steps: int) -> Settings:
    """Return settings that draw from the model's own law: texts alone are cheap enough for the ancestral sampler."""
    plain = {"guidance": 1.0, "temperature": 1.0, "choice_temperature": 0.0, "masked": MaskedOptions()}
    return dataclasses.replace(settings, sampler="masked_ancestral", steps=steps, **plain)
