"""The kinds of embedders, and how one is asked for: KIND, or KIND=PATH where its weights lie in a file or a folder."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import PalimpsestError

KINDS = {
    "inception": "FILE: Inception 2015-12-05, the only one whose distance is called FID",
    "inception-torchvision": "FILE: torchvision's Inception",
    "openclip": "FOLDER: open_clip_config.json and safetensors; also gives the CLIP score",
    "dinov2": "FOLDER: config.json and model.safetensors of transformers",
    "judge": "FOLDER: a stage of kind judge of a run; also gives a CLIP score of its own",
    "random-conv": "random convolutions; without a file",
    "pixels-pca": "leading directions of the reference's pixels; without a file",
}


READ = (".json", ".safetensors")  # of what lies in a folder of weights


def parsed(asked: str) -> tuple[str, Path | None]:
    """Return the kind and the path of an embedder that is asked for; None where it has no weights.

    Raises PalimpsestError for an unknown kind, and for a path that is missing or not wanted.
    """
    kind, _, path = asked.partition("=")
    if kind not in KINDS:
        known = "\n".join(f"  {name}{' = ' if ':' in about else '  '}{about}" for name, about in KINDS.items())
        raise PalimpsestError(f"There is no embedder {kind!r}. There are\n{known}")
    wanted = KINDS[kind].partition(":")[0] if ":" in KINDS[kind] else ""
    if bool(path) != bool(wanted):
        raise PalimpsestError(f"{asked}: expected {kind}{'=' + wanted if wanted else ''}.")
    return kind, Path(path) if path else None


def weights_of(asked: str) -> list[Path]:
    """Return the files of an embedder that is asked for, sorted; none where it has no weights or they are gone."""
    _, path = parsed(asked)
    if path is None:
        return []
    return sorted(one for one in path.iterdir() if one.suffix in READ) if path.is_dir() else [path]


def missing_weights(asked: str) -> str:
    """Return what is wrong with the path of an embedder that is asked for, nothing where something lies there."""
    kind, path = parsed(asked)
    wanted = KINDS[kind].partition(":")[0]
    if path is None or (path.is_file() if wanted == "FILE" else path.is_dir()):
        return ""
    return (
        f"there is no {wanted.lower()} {path} for the embedder {kind}: nothing is downloaded, so put its weights there"
    )
