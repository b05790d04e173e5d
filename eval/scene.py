"""Reading and scoring of scenes: a small CNN judge, and exact scores that bind attributes to objects.

A label lists objects in the caption's order; its canonical form lists them in slots along the relation's axis, left to
right or top to bottom, so that "a left of b" and "b right of a" are one scene and swapped colours are two errors.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.interval import Interval, share_interval
from eval.scene_augment import ABSENT, AXES
from eval.scene_augment import augment as augment

Label = Mapping[str, Any]  # {"background", "objects": [{"shape", "colour", "size"}, ...], "relation"}
Canonical = dict[str, Any]  # {"background", "axis", "count", "slots": [{"shape", "colour", "size"}, ...]}
Scores = dict[str, list[bool]]

OBJECT = ("shape", "colour", "size")
RELATIONS = {  # relation -> (axis, whether the listing runs against the slots)
    None: ("none", False),
    "left of": ("horizontal", False),
    "right of": ("horizontal", True),
    "above": ("vertical", False),
    "below": ("vertical", True),
}
NAMES = ("one", "two", "three", "four")


def canonical(label: Label) -> Canonical:
    """The label with its objects in slots along the axis of its relation. Raises ValueError for an unknown relation."""
    if label["relation"] not in RELATIONS:
        raise ValueError(f"unknown relation {label['relation']!r}, expected one of {list(RELATIONS)}")
    axis, against = RELATIONS[label["relation"]]
    slots = [{name: item[name] for name in OBJECT} for item in label["objects"]]
    return {
        "background": label["background"],
        "axis": axis,
        "count": len(slots),
        "slots": slots[::-1] if against else slots,
    }


@dataclass(frozen=True, kw_only=True)
class SceneJudgeConfig:
    """Values of background, shape, colour and size; the most objects in a scene; the network's size."""

    attributes: Mapping[str, Sequence[str]]
    slots: int = 2
    widths: tuple[int, ...] = (48, 64, 96)  # channels per level, each level at half the side of the one before
    patch: int = 2  # side of the square folded into channels at the input

    def __post_init__(self) -> None:
        """Refuse missing attributes, single values and impossible sizes."""
        for name in ("background", *OBJECT):
            if len(self.attributes.get(name, ())) < 2:
                raise ValueError(f"attributes[{name!r}] needs at least two values, got {self.attributes.get(name)}")
        if not 1 <= self.slots <= len(NAMES):
            raise ValueError(f"slots={self.slots}, expected 1 to {len(NAMES)}")
        if not self.widths or self.patch < 1:
            raise ValueError(f"widths={self.widths} and patch={self.patch}: expected channels and a positive side")

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Shape of the logits of each head, without the batch."""
        heads = {"background": (len(self.attributes["background"]),), "axis": (len(AXES),), "count": (self.slots,)}
        return heads | {name: (self.slots, len(self.attributes[name])) for name in OBJECT}


class SceneJudge(nn.Module):
    """Residual CNN that reads a picture's background, axis, count and the attributes per slot.

    Batch norm, not group norm: on a CPU it is several times cheaper, and a judge trains without averaged weights.
    """

    def __init__(self, config: SceneJudgeConfig) -> None:
        super().__init__()
        self.config = config
        first, *rest = config.widths
        layers = [nn.PixelUnshuffle(config.patch), *_conv(3 * config.patch**2, first), _Residual(first)]
        for narrow, wide in zip(config.widths, rest, strict=False):
            layers += [*_conv(narrow, wide, stride=2), _Residual(wide)]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.heads = nn.Linear(16 * config.widths[-1], sum(torch.Size(s).numel() for s in config.sizes().values()))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # halves a step's time on a CPU

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) in [-1, 1] to logits: background (B, K), axis (B, 3), count (B, slots), rest (B, slots, K)."""
        logits = self.heads(self.trunk(x.contiguous(memory_format=torch.channels_last))).float()
        sizes = self.config.sizes()
        parts = logits.split([torch.Size(s).numel() for s in sizes.values()], dim=1)
        return {name: part.unflatten(1, size) for (name, size), part in zip(sizes.items(), parts, strict=True)}


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_conv(channels, channels), *_conv(channels, channels)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.branch(x))


def _conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def encode_label(label: Label, config: SceneJudgeConfig) -> dict[str, Tensor]:
    """Targets of one label: background, axis, count (), others (slots,) int64 with ABSENT behind the last object.

    Raises ValueError for an unknown value and for more objects than slots.
    """
    truth = canonical(label)
    if not 1 <= truth["count"] <= config.slots:
        raise ValueError(f"{truth['count']} objects in a label, the judge has {config.slots} slots")
    targets = {
        "background": torch.tensor(_index(config, "background", truth["background"])),
        "axis": torch.tensor(AXES.index(truth["axis"])),
        "count": torch.tensor(truth["count"] - 1),
    }
    padding = [ABSENT] * (config.slots - truth["count"])
    for name in OBJECT:
        targets[name] = torch.tensor([_index(config, name, slot[name]) for slot in truth["slots"]] + padding)
    return targets


def scene_loss(logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Sum over heads of the mean cross-entropy of the targets that are not ABSENT. targets: stacked by the batch."""
    losses = []
    for name, values in logits.items():
        target = targets[name].flatten()
        loss = F.cross_entropy(values.flatten(0, -2), target, ignore_index=ABSENT, reduction="sum")
        losses.append(loss / (target != ABSENT).sum().clamp(min=1))  # a head may have no target in a small batch
    return torch.stack(losses).sum()


def read(logits: Mapping[str, Tensor], config: SceneJudgeConfig) -> list[Canonical]:
    """The most likely value of every head as canonical labels, one per picture."""
    best = {name: values.argmax(-1).tolist() for name, values in logits.items()}
    labels = []
    for i, count in enumerate(best["count"]):
        slots = [{name: config.attributes[name][best[name][i][slot]] for name in OBJECT} for slot in range(count + 1)]
        background = config.attributes["background"][best["background"][i]]
        labels.append({"background": background, "axis": AXES[best["axis"][i]], "count": count + 1, "slots": slots})
    return labels


def score(predicted: Canonical, prompt: Label) -> Scores:
    """Verdicts per attribute: one per asked object, in canonical slots; a missing object is wrong in all of them.

    `relation` is right where axis and order are (absent for a single object); `count` where the number of objects is.
    """
    asked = canonical(prompt)
    pairs = [(slot, predicted["slots"][i] if i < predicted["count"] else {}) for i, slot in enumerate(asked["slots"])]
    scores: Scores = {"background": [predicted["background"] == asked["background"]]}
    scores |= {name: [found.get(name) == slot[name] for slot, found in pairs] for name in OBJECT}
    scores["relation"] = [_relation_holds(predicted, asked)] if asked["count"] > 1 else []
    scores["count"] = [predicted["count"] == asked["count"]]
    return scores


def score_caption(parsed: Label | None, truth: Label) -> Scores:
    """Verdicts on a caption of a known scene, one per attribute: every object's value in order, or wrong.

    `parsed` is the label that the caption states, None where it states none; then everything is wrong.
    """
    nothing: Canonical = {"background": None, "axis": None, "count": 0, "slots": []}
    stated = nothing if parsed is None else canonical(parsed)
    scores = score(stated, truth)
    whole = stated["count"] == len(truth["objects"])
    return scores | {name: [whole and all(scores[name])] for name in OBJECT}


def summarise(
    scores: Sequence[Scores], counts: Sequence[int], prompts: Sequence[Hashable] | None = None
) -> dict[str, Interval]:
    """Shares per attribute with intervals clustered by prompt, over all pictures and by the number of asked objects.

    Names are `colour`, `colour.one`, `colour.two` and so on; attributes without a verdict are left out. scores, counts
    and prompts have one entry per picture; by default every picture has a prompt of its own.
    """
    ids = range(len(scores)) if prompts is None else prompts
    verdicts: dict[str, tuple[list[bool], list[Hashable]]] = {}
    for found, count, prompt in zip(scores, counts, ids, strict=True):
        for attribute, values in found.items():
            for name in (attribute, f"{attribute}.{NAMES[count - 1]}"):
                right, clusters = verdicts.setdefault(name, ([], []))
                right.extend(values)
                clusters.extend([prompt] * len(values))
    return {name: share_interval(right, ids) for name, (right, ids) in verdicts.items() if right}


def chance(config: SceneJudgeConfig) -> dict[str, float]:
    """Share that a uniform guess gets right per attribute; a relation is one of two axes in one of two orders."""
    levels = {name: 1 / len(config.attributes[name]) for name in ("background", *OBJECT)}
    return levels | {"relation": 1 / 4}


def _index(config: SceneJudgeConfig, name: str, value: str) -> int:
    values = list(config.attributes[name])
    if value not in values:
        raise ValueError(f"unknown {name} {value!r} in a label, expected one of {values}")
    return values.index(value)


def _relation_holds(predicted: Canonical, asked: Canonical) -> bool:
    """Right axis and count, and attributes that fit the asked order better than any other; equal objects have none."""
    if predicted["axis"] != asked["axis"] or predicted["count"] != asked["count"]:
        return False
    slots = asked["slots"]
    others = [order for order in permutations(slots) if list(order) != slots]
    fit = _matches(predicted["slots"], slots)
    return all(fit > _matches(predicted["slots"], order) for order in others)


def _matches(found: Sequence[Mapping[str, str]], wanted: Sequence[Mapping[str, str]]) -> int:
    return sum(f[name] == w[name] for f, w in zip(found, wanted, strict=True) for name in OBJECT)
