"""Sampled pictures in files: PNG, enlarged where asked for, each beside a JSON file that says how it was made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.artefact import write_atomically, write_json
from pipelines.errors import PalimpsestError
from pipelines.runs import Run


def check_scale(scale: int) -> None:
    """Raise PalimpsestError where a picture cannot be made so many times as large."""
    if scale < 1:
        raise PalimpsestError(f"scale is {scale}, expected at least 1, which leaves pictures as large as they are")


def enlarged(image: Image.Image, scale: int) -> Image.Image:
    """The picture with every pixel `scale` pixels wide."""
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def below(run: Run, model: str) -> dict[str, Any]:
    """Return how the models below in a cascade draw, for what says how a picture was made."""
    found = run.recipe.settings_below(model)
    return {"base_settings": {base: dataclasses.asdict(settings) for base, settings in found.items()}} if found else {}


def write_picture(path: Path, image: Image.Image) -> None:
    """Write a PNG, atomically."""
    write_atomically(path, lambda temporary: image.save(temporary, "PNG"))


def stem(number: int) -> str:
    """Return the name of a generated picture without its extension."""
    return f"{number:06d}"


def save_picture(folder: Path, stem: str, image: Image.Image, made: dict[str, Any]) -> Path:
    """Write a picture and its JSON sidecar."""
    path = folder / f"{stem}.png"
    write_picture(path, image)
    write_json(path.with_suffix(".json"), made)
    return path
