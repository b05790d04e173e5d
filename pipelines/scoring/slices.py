"""Parts of sets of captioned pictures: by length of caption, by whether it was read whole, by what labels say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 12  # values of a label, beyond which it is no kind of picture but something of each
PLAIN = re.compile(r"[\w .,+-]{1,40}")  # what stands in the name of a figure
Labels = Sequence[Mapping[str, Any]]
Inside = NDArray[np.bool_]  # (n,)
Named = Mapping[str, tuple[Sequence[str], Inside, Labels]]  # captions, which of them were cut, labels


def slices_of(sets: Named) -> dict[str, dict[str, dict[str, Inside]]]:
    """Slices by kind and name, and of each set which pictures are in it; only kinds that part the pictures.

    words: A-B, B+: between the terciles of all captions, each counted once; caption: cut, whole; label.NAME: its
    values where they are few, of a list its length. Of kinds that part the pictures alike the first.
    """
    captions = {name: words for name, (words, _, _) in sets.items()}
    cut = {name: np.asarray(found, dtype=bool) for name, (_, found, _) in sets.items()}
    labels = {name: found for name, (_, _, found) in sets.items()}
    found = {"words": _by_words(captions), "caption": {"cut": cut, "whole": {name: ~of for name, of in cut.items()}}}
    for label, values in _kinds(labels.values()).items():
        found[f"label.{label}"] = {
            value: {name: _are(one, label, value) for name, one in labels.items()} for value in values
        }
    there = {kind: {part: _not_empty(of) for part, of in parts.items()} for kind, parts in found.items()}
    filled = {kind: {part: of for part, of in parts.items() if of} for kind, parts in there.items()}
    parted = dict[frozenset[bytes], str]()
    for kind, parts in filled.items():
        if len(parts) > 1:
            parted.setdefault(
                frozenset(
                    b"".join(inside.tobytes() + name.encode() for name, inside in of.items()) for of in parts.values()
                ),
                kind,
            )
    return {kind: filled[kind] for kind in parted.values()}


def _not_empty(members: Mapping[str, Inside]) -> dict[str, Inside]:
    return {name: inside for name, inside in members.items() if inside.any()}


def _by_words(captions: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Inside]]:
    lengths = {name: np.array([len(words.split()) for words in found]) for name, found in captions.items()}
    every = {words: len(words.split()) for found in captions.values() for words in found}
    return {
        part: {name: (length >= low) & (length < high) for name, length in lengths.items()}
        for part, low, high in _bounds(sorted(every.values()))
    }


def _bounds(lengths: Sequence[int]) -> list[tuple[str, int, float]]:
    """Names and ends [low, high) of the thirds of sorted lengths; fewer where many are equal."""
    cuts = np.quantile(lengths, [1 / 3, 2 / 3], method="inverted_cdf").astype(int) + 1  # behind the length that parts
    edges = [lengths[0], *(cut for cut in sorted(set(cuts.tolist())) if cut <= lengths[-1])]
    parts = [(f"{low}-{high - 1}" if high - low > 1 else f"{low}", low, float(high)) for low, high in pairwise(edges)]
    return [*parts, (f"{edges[-1]}+", edges[-1], np.inf)]


def _said(value: Any) -> str | None:
    """A value of a label as it stands in a name, of a list its length; None where it is no kind of picture."""
    if isinstance(value, list):
        return str(len(value))
    if isinstance(value, str | int) and PLAIN.fullmatch(str(value)):  # a bool is an int
        return str(value)
    return None


def _kinds(every: Iterable[Labels]) -> dict[str, list[str]]:
    """Labels that take from two to a few values, with their values sorted; null is no value."""
    found: dict[str, set[str | None]] = {}
    for labels in every:
        for one in labels:
            for name, value in one.items():
                if value is not None:
                    found.setdefault(name, set()).add(_said(value))
    return {
        name: sorted(value for value in values if value is not None)
        for name, values in found.items()
        if 1 < len(values) <= MOST and None not in values and PLAIN.fullmatch(name)
    }


def _are(labels: Labels, name: str, value: str) -> Inside:
    return np.array([one.get(name) is not None and _said(one[name]) == value for one in labels], dtype=bool)
