"""The built-in pictures: coloured shapes placed so that their caption is true, rendered, never shipped.

A scene is a function of (seed, split, index) alone. Objects of a pair or a chain stand each in their own slot along the
relation's axis, so that they neither touch nor meet the border; a single object stands near the middle.
"""

import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pipelines.data.grammar import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    SPLITS,
    VERSION,
    Grammar,
    Item,
    Label,
    SplitName,
    for_size,
)
from pipelines.data.shard_writer import Record, SplitWriter, new_folder, read_manifest, write_manifest
from pipelines.errors import DataError
from pipelines.progress import Tick

SUPERSAMPLING = 4
# Diameters and jitters as shares of the side, by the largest number of objects: at 32 pixels 14.5 and 9.5 wide.
DIAMETERS = {2: {"large": 14.5 / 32, "small": 9.5 / 32}, 3: {"large": 19 / 64, "small": 12.5 / 64}}
GAP = 1.5 / 32  # at least this much background between two objects
JITTER_ALONE, JITTER_ALONG, JITTER_ACROSS = 4 / 32, 1.5 / 32, 2 / 32


def scene(size: int, seed: int, split: SplitName, index: int) -> tuple[Label, str]:
    """Label with positions and caption of one scene, a function of the arguments alone."""
    grammar = for_size(size)
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    label = place(grammar.sample_scene(rng, unseen=split == "unseen"), rng, len(grammar.counts))
    label["split"] = split
    return label, grammar.caption(label, rng)


def place(label: Label, rng: np.random.Generator, most: int = 2) -> Label:
    """Give every object its centre (x, y) in [0, 1], rounded to four digits; `most` objects can stand in a picture."""
    items, relation = label["objects"], label["relation"]
    slots = range(len(items)) if relation in ("left of", "above", None) else reversed(range(len(items)))
    placed = []
    for item, slot in zip(items, slots, strict=True):
        along, across = _position(DIAMETERS[most][item["size"]], slot, len(items), rng)
        x, y = (across, along) if relation in ("above", "below") else (along, across)
        placed.append(Item(**{**item, "x": round(x, 4), "y": round(y, 4)}))
    return Label(background=label["background"], objects=placed, relation=relation)


def _position(diameter: float, slot: int, slots: int, rng: np.random.Generator) -> tuple[float, float]:
    if slots == 1:
        along, across = 0.5 + rng.uniform(-JITTER_ALONE, JITTER_ALONE, 2)
        return float(along), float(across)
    slack = max(0.0, min(JITTER_ALONG, (1 / slots - diameter - GAP) / 2))
    along = (slot + 0.5) / slots + rng.uniform(-slack, slack)
    return float(along), float(0.5 + rng.uniform(-JITTER_ACROSS, JITTER_ACROSS))


def render(label: Label, size: int, pixels: int | None = None) -> Image.Image:
    """RGB picture of a label with positions, antialiased by supersampling.

    size: the side for which the scene was laid out; pixels: the side of the picture, `size` where it is None.
    """
    diameters, pixels = DIAMETERS[2 if size < 64 else 3], pixels or size
    side = pixels * SUPERSAMPLING
    image = Image.new("RGB", (side, side), BACKGROUNDS[label["background"]])
    draw = ImageDraw.Draw(image)
    for item in label["objects"]:
        assert "x" in item and "y" in item
        centre = (item["x"] * side, item["y"] * side)
        radius = diameters[item["size"]] * side / 2
        _draw_shape(draw, item["shape"], centre, radius, COLOURS[item["colour"]], BACKGROUNDS[label["background"]])
    return image.resize((pixels, pixels), Image.Resampling.BOX)


def _draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[float, float],
    radius: float,
    colour: tuple[int, int, int],
    background: tuple[int, int, int],
) -> None:
    if shape == "circle":
        draw.circle(centre, radius - 0.5, fill=colour)
    elif shape == "ring":
        draw.circle(centre, radius - 0.5, fill=colour)
        draw.circle(centre, radius * 0.5, fill=background)
    else:
        draw.polygon([(centre[0] + radius * x, centre[1] + radius * y) for x, y in OUTLINES[shape]], fill=colour)


def _cross(arm: float) -> list[tuple[float, float]]:
    corner = [(arm, -arm), (1.0, -arm), (1.0, arm)]  # the right arm, then turned by a quarter three times
    turns = [(1, 0), (0, 1), (-1, 0), (0, -1)]
    return [(c * x - s * y, s * x + c * y) for c, s in turns for x, y in corner]


def _star(inner: float) -> list[tuple[float, float]]:
    corners = []
    for i in range(10):  # five points and the notches between them, the box around them centred
        angle, length = math.pi * i / 5, inner if i % 2 else 1.08
        corners.append((length * math.sin(angle), 0.1 - length * math.cos(angle)))
    return corners


OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.93, -0.93), (0.93, -0.93), (0.93, 0.93), (-0.93, 0.93)],
    "triangle": [(0.0, -0.95), (1.0, 0.9), (-1.0, 0.9)],
    "star": _star(0.45),
    "cross": _cross(0.3),
}


def write(
    out: Path, *, count: int, size: int, seed: int, pixels: int | None = None, progress: Tick | None = None
) -> dict[str, Any]:
    """Write `count` training scenes, a test split and an unseen one as shards with a manifest; return the manifest.

    pixels: the side of the pictures; None is `size`, for which the scenes are laid out. The same arguments give the
    same bytes; a folder that already holds them is left alone. Raises DataError when the arguments are out of range or
    `out` holds something else.
    """
    _check_arguments(count, size, pixels or size)
    grammar = for_size(size)
    counts: dict[SplitName, int] = {"train": count, "test": _held_out(count // 10), "unseen": _held_out(count // 20)}
    made_of = {"kind": "scenes", "version": VERSION, "size": size, "seed": seed, "counts": counts}
    made_of |= {"pixels": pixels} if pixels else {}
    manifest = read_manifest(out) if out.is_dir() else None
    if manifest and made_of.items() <= manifest.items() and manifest.get("pixels") == pixels:
        return manifest
    with new_folder(out) as folder:
        with SplitWriter(folder) as writer:
            jobs: list[tuple[SplitName, int]] = [(split, index) for split in SPLITS for index in range(counts[split])]
            for done, (split, index) in enumerate(jobs, start=1):
                writer.add(split, _record(split, index, size, seed, pixels))
                if progress is not None:
                    progress(done, len(jobs))
        manifest = {**made_of, **describe(grammar), "shards": writer.entries()}
        write_manifest(folder, manifest)
    return manifest


def describe(grammar: Grammar) -> dict[str, Any]:
    """What a manifest says of the grammar: its values, the pairs left out of training and the exact entropy."""
    return {
        "attributes": {name: list(values) for name, values in ATTRIBUTES.items()},
        "objects": list(grammar.counts),
        "excluded": {
            "colour_shape": [list(pair) for pair in grammar.excluded_colours],
            "shape_relation": [list(pair) for pair in grammar.excluded_relations],
        },
        "caption_entropy_nats": grammar.entropy(),
    }


def _held_out(count: int) -> int:
    return min(2000, max(8, count))


def _check_arguments(count: int, size: int, pixels: int) -> None:
    if count < 1:
        raise DataError(f"--count is {count}: expected at least 1 training scene.")
    if not 16 <= size <= 512 or size % 8:
        raise DataError(f"--size is {size}: expected a multiple of 8 pixels from 16 to 512, such as 32 or 64.")
    if not size <= pixels <= 512:
        raise DataError(f"Scenes of size {size} at {pixels} pixels: expected {size} to 512 pixels.")


def _record(split: SplitName, index: int, size: int, seed: int, pixels: int | None) -> Record:
    label, caption = scene(size, seed, split, index)
    png = BytesIO()
    render(label, size, pixels).save(png, "PNG")
    return {"png": png.getvalue(), "txt": caption, "json": json.dumps(label)}
