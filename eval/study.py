"""A blinded pairwise study: two sets of pictures for the same prompts become a page and a sealed key.

    export(prompts, {"a": [...], "b": [...]}, folder, Design(seed=0))  ->  bundle/study.html  +  key.sealed.json
    votes = import_votes([...votes.json], key)                         ->  one long table
    write_results(votes, win_rates(votes), folder)                     ->  votes.csv, study.json

The page holds item ids, prompts and re-encoded pictures under random names; which model stands on which side is in the
key only. Every criterion is asked so that the better picture is chosen ("fewer defects"): no answer needs inverting.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from eval.page import as_uri, asset, environment, png, render, write_whole
from eval.preference import Outcome, StudyResult, win_rates, write_results
from eval.votes import Item, Key, Vote, VotesError, import_votes, read_key

__all__ = [
    "CRITERIA",
    "Criterion",
    "Design",
    "Exported",
    "Item",
    "Key",
    "Outcome",
    "StudyError",
    "StudyResult",
    "Vote",
    "VotesError",
    "export",
    "import_votes",
    "leaks",
    "read_key",
    "win_rates",
    "write_results",
]


PAYLOAD = re.compile(r"data:image/png;base64,([A-Za-z0-9+/]+={0,2})")


class StudyError(ValueError):
    """A study cannot be made of these pictures: the message names the item and the remedy."""


@dataclass(frozen=True)
class Criterion:
    """One question per pair; the answer is always the better picture."""

    name: str
    question: str


CRITERIA = (
    Criterion("relevance", "Which picture matches the description better?"),
    Criterion("aesthetics", "Which picture looks better, whatever the description says?"),
    Criterion("defects", "Which picture has fewer defects?"),
    Criterion("overall", "Which picture would you choose overall?"),
)


@dataclass(frozen=True, kw_only=True)
class Design:
    """How the study is laid out; `repeats` is the share of pairs shown again with their sides swapped."""

    seed: int
    title: str = "Which picture is better?"
    criteria: Sequence[Criterion] = CRITERIA
    repeats: float = 0.08

    def __post_init__(self) -> None:
        if not 0 <= self.repeats <= 1 / 3:
            raise StudyError(f"repeats = {self.repeats} is outside [0, 1/3]: give the share of pairs shown twice")
        names = [criterion.name for criterion in self.criteria]
        if not names or len(set(names)) < len(names):
            raise StudyError(f"criteria {names} must be at least one, each with its own name")


@dataclass(frozen=True)
class Exported:
    """What export wrote: the page to hand out, the key to keep, and the study's hash that both carry."""

    page: Path
    key: Path
    study: str
    items: int


def export(prompts: Sequence[str], pictures: Mapping[str, Sequence[Path]], folder: Path, design: Design) -> Exported:
    """Write `folder/bundle/study.html` and `folder/key.sealed.json`.

    pictures: model name -> one path per prompt, for exactly two models. Each model stands on the left in half of the
    pairs; repeats come in the last third, their originals in the first. Raises StudyError when pictures are missing,
    unreadable or differ in size within a pair, or when a model name would show on the page.
    """
    models = _check(prompts, pictures)
    rng = np.random.default_rng(design.seed)
    images, items = _lay_out(prompts, pictures, rng, design.repeats)
    data = _public(design, items, images)
    study = data["study"]
    shown = _page(data | {"items": [item | {"prompt": ""} for item in data["items"]]})
    if found := leaks(shown, models):
        raise StudyError(f"model names {found} would show on the study page; rename them or change title and criteria")
    key = Key(study, (models[0], models[1]), tuple(c.name for c in design.criteria), {item.id: item for item in items})
    page, sealed = folder / "bundle" / "study.html", folder / "key.sealed.json"
    if sealed.exists() and read_key(sealed).study != study:
        raise StudyError(
            f"{sealed} belongs to another study, whose votes nobody could read without it: give another --out"
        )
    write_whole(sealed, json.dumps(key.to_json() | {"seed": design.seed}, indent=1) + "\n")
    write_whole(page, _page(data))
    return Exported(page, sealed, study, len(items))


def leaks(page: str, names: Iterable[str]) -> list[str]:
    """The names that a reader of the page's source could find: in its text and data, or in a picture beside the pixels.

    The page's own style and script are left out (they are the same for every study). Whole words, any case.
    """
    text = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    carried = [_beside_pixels(base64.b64decode(found)) for found in PAYLOAD.findall(text)]
    everything = "\n".join([_unescape(PAYLOAD.sub("", text)), *carried])
    return [name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", everything, re.IGNORECASE)]


def _check(prompts: Sequence[str], pictures: Mapping[str, Sequence[Path]]) -> list[str]:
    models = list(pictures)
    if len(models) != 2 or models[0].strip().lower() == models[1].strip().lower():
        raise StudyError(f"a pairwise study compares exactly two models of different name, got {models}")
    if not prompts:
        raise StudyError("the study has no prompts: sample both models on the same prompts first")
    for model, paths in pictures.items():
        if len(paths) != len(prompts):
            raise StudyError(f"{model} has {len(paths)} pictures for {len(prompts)} prompts: give one for each prompt")
    return models


def _lay_out(
    prompts: Sequence[str], pictures: Mapping[str, Sequence[Path]], rng: np.random.Generator, repeats: float
) -> tuple[dict[str, bytes], list[Item]]:
    """Pictures under random names, and items in the order shown with their sides."""
    n, names = len(prompts), iter(_names(rng, 4 * len(prompts)))
    first_left = rng.permutation(np.arange(n) % 2 == 0)  # the first model stands left in half of the pairs
    images: dict[str, bytes] = {}
    items = []
    for i in map(int, rng.permutation(n)):
        pair = _pair(i, pictures)
        stored = [next(names), next(names)]
        images |= dict(zip(stored, pair, strict=True))
        items.append(_item(next(names), prompts[i], stored, bool(first_left[i]), None))
    again = rng.permutation(max(n // 3, 1))[: min(round(repeats * n), n // 3)]
    for twin in [items[i] for i in sorted(again, reverse=True)]:
        copy = _item(next(names), twin.prompt, list(twin.pictures), not twin.first_left, twin.id)
        items.insert(int(rng.integers(2 * n // 3, len(items) + 1)), copy)
    return dict(sorted(images.items())), items  # sorted: random names hide the order of models


def _item(name: str, prompt: str, stored: Sequence[str], first_left: bool, repeat_of: str | None) -> Item:
    prompt_id = hashlib.sha256(prompt.encode("utf-8", "backslashreplace")).hexdigest()[:12]
    return Item(name, prompt_id, prompt, (stored[0], stored[1]), first_left, repeat_of)


def _pair(index: int, pictures: Mapping[str, Sequence[Path]]) -> list[bytes]:
    opened = {paths[index]: _open(paths[index]) for paths in pictures.values()}
    sizes = {str(path): image.size for path, image in opened.items()}
    if len(set(sizes.values())) > 1:
        raise StudyError(
            f"the pictures of pair {index} differ in size, which tells the models apart: {sizes}; resize them"
        )
    return [png(opened[paths[index]]) for paths in pictures.values()]


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (FileNotFoundError, IsADirectoryError) as error:
        raise StudyError(f"picture {path} is missing: sample again or take its prompt off the list") from error
    except (UnidentifiedImageError, OSError) as error:
        raise StudyError(f"picture {path} cannot be read ({error}): sample it again") from error


def _public(design: Design, items: Sequence[Item], images: Mapping[str, bytes]) -> dict[str, Any]:
    """All that the page knows, with the study's hash over exactly this content."""
    shown = []
    for item in items:
        left, right = item.pictures if item.first_left else item.pictures[::-1]
        shown.append({"id": item.id, "prompt": item.prompt, "left": left, "right": right})
    data = {
        "schema": 1,
        "title": design.title,
        "criteria": [{"name": c.name, "question": c.question} for c in design.criteria],
        "items": shown,
        "images": {name: as_uri("image/png", content) for name, content in images.items()},
    }
    return data | {"study": hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]}


def _page(data: Mapping[str, Any]) -> str:
    style = asset("page.css") + asset("study.css")
    return render(environment(), "study.html", style, asset("study.js"), data=data)


def _names(rng: np.random.Generator, count: int) -> list[str]:
    return [rng.bytes(8).hex() for _ in range(count)]


def _unescape(text: str) -> str:
    """HTML and JSON escapes as the characters they stand for."""
    units = re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), html.unescape(text))
    return units.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _beside_pixels(content: bytes) -> str:
    """What a PNG carries beside its pixels, as text; any other file whole."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content.decode("latin-1")
    kept, at = [], 8
    while at + 8 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        kept.append(kind + (b"" if kind in (b"IDAT", b"IHDR", b"PLTE") else content[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"\n".join([*kept, content[at:]]).decode("latin-1")
