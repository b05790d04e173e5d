"""The caption grammar of the built-in scenes: what may stand in a scene, and every way to say it.

Each value has its own words and each caption names every attribute once, so that a caption has exactly one derivation.
Hence the probability of a caption and the entropy of the grammar are closed forms, not estimates.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NotRequired, TypedDict

import numpy as np

VERSION = 2
SplitName = Literal["train", "test", "unseen"]
SPLITS: tuple[SplitName, ...] = ("train", "test", "unseen")
Wordings = Mapping[str, tuple[tuple[str, float], ...]]  # value -> ((words, probability), ...)

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 20, 35),
    "orange": (255, 128, 0),
    "yellow": (255, 238, 0),
    "green": (0, 125, 40),
    "blue": (10, 40, 235),
    "purple": (180, 30, 210),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "sky": (110, 190, 255),
    "grass": (140, 210, 80),
    "sand": (208, 172, 118),
    "night": (50, 50, 105),
    "rose": (255, 150, 190),
    "stone": (128, 128, 128),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES: Wordings = {
    "large": (("large", 0.6), ("big", 0.4)),
    "small": (("small", 0.6), ("tiny", 0.4)),
}
RELATIONS: Wordings = {
    "left of": (("left of", 0.5), ("to the left of", 0.5)),
    "right of": (("right of", 0.5), ("to the right of", 0.5)),
    "above": (("above", 0.6), ("over", 0.4)),
    "below": (("below", 0.6), ("under", 0.4)),
}
RELATION_WEIGHTS = {"left of": 0.35, "right of": 0.15, "above": 0.35, "below": 0.15}  # people read left and top first
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
TEMPLATES: tuple[tuple[str, float], ...] = (
    ("{objects} on a {background} background", 0.4),
    ("{objects} against a {background} backdrop", 0.3),
    ("a {background} background with {objects}", 0.2),
    ("a {background} backdrop behind {objects}", 0.1),
)
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "background": tuple(BACKGROUNDS),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "relation": tuple(RELATIONS),
}
EXCLUDED_COLOURS = (
    ("red", "triangle"),
    ("yellow", "circle"),
    ("green", "star"),
    ("blue", "cross"),
    ("purple", "square"),
    ("white", "ring"),
)
EXCLUDED_RELATIONS = (("star", "left of"), ("square", "above"))


class Item(TypedDict):
    """One object of a scene; x and y are its centre as shares of the side, from the top left."""

    shape: str
    colour: str
    size: str
    x: NotRequired[float]
    y: NotRequired[float]


class Label(TypedDict):
    """What a scene holds: the relation stands between each object and the next."""

    background: str
    objects: list[Item]
    relation: str | None
    split: NotRequired[str]


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """Scenes and captions of the training distribution.

    p(scene) = p(count) w(relation) / sum_r w(r) N(count, r): uniform over the allowed scenes of a count of objects and
    a relation, which has a weight because people name what stands left or on top first. A scene is allowed when
    no object has an excluded (colour, shape) and no object stands in an excluded (shape, relation) to its neighbour,
    whichever of the two is named first: (star, left of) also forbids a star named second after "right of".
    """

    counts: tuple[float, ...] = (0.4, 0.6)  # p(one object), p(two objects), ...
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    colours: tuple[str, ...] = tuple(COLOURS)
    shapes: tuple[str, ...] = SHAPES
    excluded_colours: tuple[tuple[str, str], ...] = EXCLUDED_COLOURS
    excluded_relations: tuple[tuple[str, str], ...] = EXCLUDED_RELATIONS
    patterns: tuple[tuple[re.Pattern[str], float], ...] = field(init=False, repr=False, compare=False)
    scenes: tuple[dict[str | None, int], ...] = field(init=False, repr=False, compare=False)  # by count and relation

    def __post_init__(self) -> None:
        """Compile one pattern for each template and count the allowed scenes."""
        item = f"a (?:{_either(SIZES)}) (?:{'|'.join(self.colours)}) (?:{'|'.join(self.shapes)})"
        groups = {
            "objects": f"(?P<objects>{item}(?: (?:{_either(RELATIONS)}) {item}){{0,{len(self.counts) - 1}}})",
            "background": f"(?P<background>{'|'.join(self.backgrounds)})",
        }
        object.__setattr__(self, "patterns", tuple((re.compile(t.format(**groups)), p) for t, p in TEMPLATES))
        object.__setattr__(self, "scenes", tuple(self._scenes(k) for k in range(1, len(self.counts) + 1)))

    def allowed(self, label: Label) -> bool:
        """Whether training may show the scene."""
        return not self.violations(label)

    def violations(self, label: Label) -> list[tuple[str, str]]:
        """Excluded pairs that the scene shows: (colour, shape) and (shape, relation)."""
        pairs = [(item["colour"], item["shape"]) for item in label["objects"]]
        found = [pair for pair in pairs if pair in self.excluded_colours]
        for first, second in pairwise(label["objects"]):
            relation = str(label["relation"])
            held = ((first["shape"], relation), (second["shape"], INVERSE[relation]))
            found += [pair for pair in held if pair in self.excluded_relations]
        return found

    def sample_scene(self, rng: np.random.Generator, *, unseen: bool = False) -> Label:
        """Draw a scene without positions of the training distribution, or an `unseen` one: with an excluded pair."""
        count = 1 + int(rng.choice(len(self.counts), p=self.counts))
        while True:  # rejection: about 0.6 of the free draws are allowed
            label = self._free_scene(rng, count)
            if self.allowed(label) != unseen:
                return label

    def _free_scene(self, rng: np.random.Generator, count: int) -> Label:
        def pick(values: Sequence[str]) -> str:
            return values[int(rng.integers(len(values)))]

        sizes = ATTRIBUTES["size"]
        objects = [Item(shape=pick(self.shapes), colour=pick(self.colours), size=pick(sizes)) for _ in range(count)]
        weights = [RELATION_WEIGHTS[relation] for relation in RELATIONS]
        relation = ATTRIBUTES["relation"][int(rng.choice(len(weights), p=weights))] if count > 1 else None
        return Label(background=pick(self.backgrounds), objects=objects, relation=relation)

    def caption(self, label: Label, rng: np.random.Generator) -> str:
        """Say a scene in words drawn by the grammar."""
        words = []
        for i, item in enumerate(label["objects"]):
            if i:
                words.append(_draw(RELATIONS[str(label["relation"])], rng))
            words.append(f"a {_draw(SIZES[item['size']], rng)} {item['colour']} {item['shape']}")
        return _draw(TEMPLATES, rng).format(objects=" ".join(words), background=label["background"])

    def parse(self, caption: str) -> Label | None:
        """Label of a caption without positions, None outside the grammar; case and spacing do not matter.

        Excluded pairs parse: the grammar covers them, only the training distribution leaves them out.
        """
        derivation = self._derive(caption)
        return derivation[0] if derivation else None

    def log_probability(self, caption: str) -> float:
        """Exact ln p(caption) in nats under the training distribution; -inf outside it."""
        derivation = self._derive(caption)
        if derivation is None or not self.allowed(derivation[0]):
            return -math.inf
        label, log_words = derivation
        count = len(label["objects"])
        if not self.counts[count - 1]:
            return -math.inf
        weighted = sum(_weight(relation) * n for relation, n in self.scenes[count - 1].items())
        return math.log(self.counts[count - 1] * _weight(label["relation"]) / weighted) + log_words

    def _derive(self, caption: str) -> tuple[Label, float] | None:
        """The one derivation of a caption: its label and ln p(words | scene)."""
        text = " ".join(caption.lower().split())
        matches = [(match, p) for pattern, p in self.patterns if (match := pattern.fullmatch(text))]
        if not matches:
            return None
        match, p_template = matches[0]
        found = re.findall(rf"({_either(RELATIONS)})? ?a ({_either(SIZES)}) (\S+) (\S+)", match["objects"])
        relations = {_meaning(RELATIONS, words) for words, *_ in found[1:]}
        if len(relations) > 1:  # a chain keeps one relation
            return None
        objects = [Item(shape=shape, colour=colour, size=_meaning(SIZES, size)) for _, size, colour, shape in found]
        p_words = [_share(SIZES, size) for _, size, *_ in found] + [_share(RELATIONS, words) for words, *_ in found[1:]]
        label = Label(background=match["background"], objects=objects, relation=next(iter(relations), None))
        return label, math.log(p_template) + sum(map(math.log, p_words))

    def entropy(self) -> float:
        """Exact entropy of a caption of the training distribution in nats, by enumeration in closed form.

        H = H(count) + sum_k p_k [H(template) + k H(size words) + H(r | k)
                                  + sum_r p(r | k) (ln N_kr + (k - 1) H(words of r))]
        """
        total = _entropy(self.counts)
        size_words = sum(_entropy([p for _, p in options]) for options in SIZES.values()) / len(SIZES)
        for count, p in enumerate(self.counts, start=1):
            if not p:
                continue
            shares = {r: _weight(r) * n for r, n in self.scenes[count - 1].items()}
            whole = sum(shares.values())
            given = 0.0  # of scene and relation words, given the relation
            for r, n in self.scenes[count - 1].items():
                relation_words = 0.0 if r is None else _entropy([q for _, q in RELATIONS[r]])
                given += shares[r] / whole * (math.log(n) + (count - 1) * relation_words)
            words = _entropy([q for _, q in TEMPLATES]) + count * size_words
            total += p * (words + _entropy([share / whole for share in shares.values()]) + given)
        return total

    def _scenes(self, count: int) -> dict[str | None, int]:
        """Allowed scenes with so many objects for each relation, positions aside; their sum is N(count)."""
        if count == 1:
            return {None: len(self.backgrounds) * self._items(())}
        scenes: dict[str | None, int] = {}
        for relation in RELATIONS:
            middle = self._items((relation, INVERSE[relation])) ** (count - 2)
            ends = self._items((relation,)) * self._items((INVERSE[relation],))
            scenes[relation] = len(self.backgrounds) * ends * middle
        return scenes

    def _items(self, held: tuple[str, ...]) -> int:
        """Allowed objects that stand in the given relations to their neighbours."""
        shapes = [s for s in self.shapes if not any((s, r) in self.excluded_relations for r in held)]
        return len(SIZES) * sum((c, s) not in self.excluded_colours for c in self.colours for s in shapes)


def for_size(size: int) -> Grammar:
    """The grammar of pictures of so many pixels: up to two objects below 64, up to three from there."""
    return Grammar() if size < 64 else Grammar(counts=(0.3, 0.4, 0.3))


def _weight(relation: str | None) -> float:
    return 1.0 if relation is None else RELATION_WEIGHTS[relation]


def _either(wordings: Wordings) -> str:
    return "|".join(words for options in wordings.values() for words, _ in options)


def _meaning(wordings: Wordings, words: str) -> str:
    return next(value for value, options in wordings.items() if words in dict(options))


def _share(wordings: Wordings, words: str) -> float:
    return dict(wordings[_meaning(wordings, words)])[words]


def _draw(options: Sequence[tuple[str, float]], rng: np.random.Generator) -> str:
    return options[int(rng.choice(len(options), p=[p for _, p in options]))][0]


def _entropy(shares: Sequence[float]) -> float:
    return -sum(p * math.log(p) for p in shares if p)
