"""Write a study: a folder for raters in which nothing tells models apart, the sealed key, and what was registered.

OUT/bundle/            pages, pictures, files for platforms, instructions: all that raters may see
OUT/key.sealed.json    which model stood where; nobody who rates may see it
OUT/registered.json    the study as it was fixed before the first vote, with its hash
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.human.bundle import Shown, write_bundle
from eval.human.errors import StudyError, named
from eval.human.gold import corrupted
from eval.human.key import Key, item_of, make_key, read_key
from eval.human.layout import Block, Place, lay_out
from eval.human.leaks import giveaways, leaks
from eval.human.pages import page_mark
from eval.human.pictures import Picture, check_counts, encode, make_alike, opened, opened_together, secret_name
from eval.human.study import Study, check_prompts, registered, study_hash
from eval.page import write_whole

PICTURES = "pictures"


@dataclass(frozen=True)
class Exported:
    """What was written: the folder to hand out, the key to keep, the study's hash, and how much there is to do."""

    bundle: Path
    key: Path
    study: str
    blocks: int
    items: int


@dataclass(frozen=True)
class _Given:
    """The pictures of a study, and how they are named."""

    study: Study
    prompts: Sequence[str]
    pictures: Mapping[str, Sequence[Picture]]
    truth: Sequence[Picture] | None
    secret: str
    folder: Path

    def file(self, *parts: object) -> Path:
        return self.folder / f"{secret_name(self.secret, 'picture', *parts)}.{self.study.encoder}"


def export(
    study: Study,
    prompts: Sequence[str],
    pictures: Mapping[str, Sequence[Picture]],
    out: Path,
    *,
    truth: Sequence[Picture] | None = None,
    secret: str | None = None,
) -> Exported:
    """Write the study of these pictures, one per prompt and model, into `out`.

    truth: real pictures of the prompts, for controls. secret: of the names; a new one by default, or that of the key
    in `out` where it belongs to the same study. Raises StudyError for bad pictures, for a study that would give its
    models away, and where `out` holds another study.
    """
    check_prompts(prompts)
    check_counts(prompts, {**pictures, **({"truth": truth} if truth is not None else {})})
    sealed = out / "key.sealed.json"
    before = read_key(sealed) if sealed.exists() else None
    chosen = secret or (before.secret if before else secrets.token_hex(16))
    making = out / f".bundle.{os.getpid()}.tmp"
    shutil.rmtree(making, ignore_errors=True)
    try:
        (making / PICTURES).mkdir(parents=True)
        given = _Given(study, prompts, pictures, truth, chosen, making / PICTURES)
        content = registered(study, prompts, _save_models(given))
        identity = study_hash(content)
        if before and before.study != identity:
            raise StudyError(f"{sealed} belongs to another study, whose votes nobody could read without it: "
                             "give another --out")  # fmt: skip
        seed = int(secret_name(chosen, "layout", study.seed, identity), 16)
        blocks = lay_out(study, len(prompts), np.random.default_rng(seed), truth=truth is not None)
        shown = [_show(given, block, place) for block in blocks for place in range(len(block.places))]
        make_alike(making / PICTURES)
        key = make_key(study, identity, chosen, page_mark(), [one.item for one in shown])
        write_bundle(study, identity, chosen, blocks, shown, making)
        _check_blind(study, making, key, given)
        write_whole(sealed, json.dumps(key.to_json(), indent=1) + "\n")
        write_whole(out / "registered.json", json.dumps({"hash": identity, **content}, indent=1) + "\n")
        shutil.rmtree(out / "bundle", ignore_errors=True)
        making.rename(out / "bundle")
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return Exported(out / "bundle", sealed, identity, len(blocks), len(shown))


def _save_models(given: _Given) -> dict[str, str]:
    """Encode every model's pictures; returns a hash of each model's pixels."""
    found = {model: hashlib.sha256() for model in given.pictures}
    for i, prompt in enumerate(given.prompts):
        images = opened_together(prompt, {model: paths[i] for model, paths in given.pictures.items()})
        for model, image in images.items():
            found[model].update(f"{image.size}".encode() + image.tobytes())
            given.file(model, i).write_bytes(encode(image, given.study.encoder))
    return {model: digest.hexdigest() for model, digest in found.items()}


def _show(given: _Given, block: Block, at: int) -> Shown:
    """One item with its pictures and its row of the key."""
    place = block.places[at]
    prompt = given.prompts[place.unit.prompt]
    item = item_of(given.study, given.secret, block, at, prompt)
    if place.gold is None:
        files = [given.file(model, place.unit.prompt) for model in (item.first, item.second) if model]
    else:
        files = _gold(given, place, item.id)
    left = files if place.first_left or len(files) == 1 else files[::-1]
    return Shown(item, prompt, tuple(path.name for path in left))


def _gold(given: _Given, place: Place, name: str) -> list[Path]:
    """Make the pictures of a control; the first is the better one, or the only one."""
    model, i = given.study.models[place.unit.first], place.unit.prompt
    image = opened(given.pictures[model][i])
    if place.gold in ("right", "wrong") and given.truth is not None:
        pair = [opened(given.truth[j]).resize(image.size) for j in (i, place.other)]
    else:
        rng = np.random.default_rng(int(secret_name(given.secret, "gold", name), 16))
        pair = [image, image if place.gold == "same" else corrupted(image, rng)]
    kept = pair[1:] if given.study.mode == "likert" else pair
    files = [given.file("gold", name, number) for number in range(len(kept))]
    for path, one in zip(files, kept, strict=True):
        path.write_bytes(encode(one, given.study.encoder))
    return files


def _check_blind(study: Study, bundle: Path, key: Key, given: _Given) -> None:
    """Refuse a bundle that gives its models away."""
    hidden = [*study.models, *(source.stage for source in study.model.values() if source.stage)]
    if found := leaks(bundle, hidden):
        raise StudyError(f"raters could tell the models apart: {named(found)}; rename the models or change the title")
    owner = {given.file(model, i).name: model for model in study.models for i in range(len(given.prompts))}
    if found := giveaways(bundle / PICTURES, owner, key):
        raise StudyError(f"raters could tell the models apart: {named(found)}")
