"""What the result of a stage depends on, as plain values: its configuration, files from elsewhere, models below it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.artefact import digest, file_hash
from pipelines.config import dump_recipe
from pipelines.judged_config import EvalStage, GenerateStage
from pipelines.recipe import Recipe
from pipelines.sampling_options import Settings
from pipelines.scoring.kinds import parsed, weights_of
from pipelines.stage_config import VAEStage, VQVAEStage

GONE = "the data folder is gone"


def foreign_files(stage: VAEStage | VQVAEStage) -> list[Path]:
    """Return the files from elsewhere that an autoencoder is made of."""
    look = stage.perceptual
    files = [Path(look.trunk), Path(look.heads)] if look is not None and look.trunk else []
    return files + (sorted(Path(stage.pretrained).glob("*.*")) if stage.pretrained else [])


def embedder_files(stage: EvalStage) -> dict[str, str]:
    """Return what each embedder that has weights is made of: the hash of its files and their names, not their place."""
    found = {}
    for number, asked in enumerate(stage.embedders):
        kind, path = parsed(asked)
        if path is not None:
            each = {one.name if path.is_dir() else "": content(one) for one in weights_of(asked)}
            found[f"{kind} {number}"] = digest(each) if each and GONE not in each.values() else GONE
    if stage.lpips:
        files = sorted(one for one in Path(stage.lpips).glob("*.pth"))
        found["lpips"] = digest({one.name: content(one) for one in files}) if files else GONE
    return found


def content(path: Path) -> str:
    """Return the hash of a file; GONE where there is none, since what was made of it stands."""
    if not path.is_file():
        return GONE
    about = path.stat()
    return _hashed(path, about.st_size, about.st_mtime_ns)


@cache
def _hashed(path: Path, size: int, changed: int) -> str:
    """Return the hash of a file, computed once while it stays as it is."""
    del size, changed
    return file_hash(path)[:16]


def plain_stage(recipe: Recipe, name: str) -> dict[str, Any]:
    """Return a stage's configuration as plain values, without what cannot change its result."""
    plain = dump_recipe(recipe)["stage"][name]
    training = plain.get("training") or {}
    chosen = ("validate_every",) if training.get("keep") != "best" else ()  # where it does not choose the weights
    idle = ("save_seconds", "compile", "minutes", "picture_every", "max_skipped")  # plan.json fixes the steps
    idle += ("keep_checkpoints", "keep_every", "posthoc", "shard", "shard_over")
    for key in (*idle, *chosen):
        training.pop(key, None)
    (plain.get("model") or {}).pop("checkpointing", None)  # the same numbers in less memory
    if plain["kind"] in ("encode", "generate"):
        plain.pop("batch", None)
    if plain["kind"] == "eval":
        plain["embedders"] = [parsed(asked)[0] for asked in plain["embedders"]]  # where weights lie is no matter
        plain["lpips"] = plain["lpips"] and "a folder"
    return plain


def latent_settings(settings: Settings) -> dict[str, Any]:
    """Return what matters of the settings of a latent model, as JSON has it."""
    plain = json.loads(json.dumps(dataclasses.asdict(settings)))
    return {key: plain[key] for key in ("sampler", "steps", "guidance", "latent")}


def of_the_usual_kind(config: Any, path: Sequence[str], known: Sequence[Sequence[str]]) -> bool:
    """Whether each table on the way to a value, of which an older artefact names nothing, is what stands by default."""
    for depth, part in enumerate(path[:-1], start=1):
        value = getattr(config, part, None)
        default = default_of(config, part)
        unknown = not any(len(other) > depth and list(other[:depth]) == list(path[:depth]) for other in known)
        if unknown and default is not dataclasses.MISSING and type(default) is not type(value):
            return False
        config = value
    return True


def default_of(config: Any, name: str) -> Any:
    """Return the default of a field of a configuration, MISSING where it has none."""
    for field in dataclasses.fields(config) if dataclasses.is_dataclass(config) else ():
        if field.name == name:
            factory = field.default_factory
            return field.default if factory is dataclasses.MISSING else factory()
    return dataclasses.MISSING


def is_default(config: Any, path: Sequence[str]) -> bool:
    """Whether a value of a configuration is the default of its field: artefacts of older versions do not name it."""
    for part in path[:-1]:
        config = getattr(config, part, None)
    if not path or (default := default_of(config, path[-1])) is dataclasses.MISSING:
        return False
    if isinstance(config, GenerateStage) and default is None:  # filled by the model; what Settings has is old
        default = getattr(Settings, path[-1], None)
    return getattr(config, path[-1]) == default


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one with dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
