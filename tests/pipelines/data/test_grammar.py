import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.grammar import (
    ATTRIBUTES,
    INVERSE,
    RELATION_WEIGHTS,
    RELATIONS,
    SIZES,
    TEMPLATES,
    Grammar,
    Item,
    Label,
    for_size,
)

SMALL = Grammar(
    counts=(0.3, 0.7),
    backgrounds=("sky", "night"),
    colours=("red", "blue"),
    shapes=("star", "square", "ring"),
    excluded_colours=(("red", "square"),),
    excluded_relations=(("star", "left of"), ("ring", "above")),
)
THREE = Grammar(
    counts=(0.2, 0.3, 0.5),
    backgrounds=("sky",),
    colours=("red",),
    shapes=("star", "ring"),
    excluded_colours=(),
    excluded_relations=(("star", "left of"),),
)


def every_label(grammar):
    items = [Item(shape=s, colour=c, size=z) for s in grammar.shapes for c in grammar.colours for z in SIZES]
    for background in grammar.backgrounds:
        for item in items:
            yield Label(background=background, objects=[item], relation=None)
        for count in range(2, len(grammar.counts) + 1):
            for objects in itertools.product(items, repeat=count):
                for relation in RELATIONS:
                    yield Label(background=background, objects=list(objects), relation=relation)


def every_caption(grammar, label):
    """All the ways to say a label, spelled out apart from the grammar's own code, with their probability."""
    parts = []
    for i, item in enumerate(label["objects"]):
        if i:
            parts.append(RELATIONS[label["relation"]])
        parts.append([(f"a {word} {item['colour']} {item['shape']}", p) for word, p in SIZES[item["size"]]])
    for (template, p), *chosen in itertools.product(TEMPLATES, *parts):
        text = template.format(objects=" ".join(words for words, _ in chosen), background=label["background"])
        yield text, p * math.prod(q for _, q in chosen)


def is_allowed(grammar, label):
    """The rule of excluded pairs in its own words: on the left of something is the same as something on its right."""
    items = label["objects"]
    if any((item["colour"], item["shape"]) in grammar.excluded_colours for item in items):
        return False
    for a, b in itertools.pairwise(items):
        if (a["shape"], label["relation"]) in grammar.excluded_relations:
            return False
        if (b["shape"], INVERSE[label["relation"]]) in grammar.excluded_relations:
            return False
    return True


@pytest.mark.parametrize("grammar", [SMALL, THREE], ids=["two", "three"])
def test_entropy_and_log_probability_equal_brute_force_enumeration(grammar):
    allowed = [label for label in every_label(grammar) if is_allowed(grammar, label)]
    weight = {None: 1.0, **RELATION_WEIGHTS}
    scenes = [
        sum(weight[label["relation"]] for label in allowed if len(label["objects"]) == k)
        for k in range(1, len(grammar.counts) + 1)
    ]
    law = {}
    for label in allowed:
        count = len(label["objects"])
        for text, p in every_caption(grammar, label):
            assert text not in law  # one derivation for each string
            law[text] = grammar.counts[count - 1] * weight[label["relation"]] / scenes[count - 1] * p
    assert math.isclose(sum(law.values()), 1, rel_tol=1e-12)
    assert math.isclose(grammar.entropy(), -sum(p * math.log(p) for p in law.values()), rel_tol=1e-12)
    for text, p in law.items():
        assert math.isclose(grammar.log_probability(text), math.log(p), rel_tol=1e-12)


@pytest.mark.parametrize("size", [32, 64])
def test_entropy_is_the_mean_of_minus_log_probability_over_drawn_captions(size):
    grammar, rng = for_size(size), np.random.default_rng(0)
    surprise = [-grammar.log_probability(grammar.caption(grammar.sample_scene(rng), rng)) for _ in range(3000)]
    error = np.std(surprise) / np.sqrt(len(surprise))
    assert abs(np.mean(surprise) - grammar.entropy()) < 4 * error


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([32, 64]), unseen=st.booleans())
def test_parse_is_the_inverse_of_caption(seed, size, unseen):
    grammar, rng = for_size(size), np.random.default_rng(seed)
    label = grammar.sample_scene(rng, unseen=unseen)
    caption = grammar.caption(label, rng)
    assert grammar.parse(caption) == label
    assert grammar.parse(f"  {caption.upper()}\n") == label
    assert (grammar.log_probability(caption) == -math.inf) == unseen


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a large red star",
        "a red star on a sky background",
        "a large pink star on a sky background",
        "a large red star on a sky background and more",
        "a large red star left of a small red ring on a sky background on a sky background",
        "a large red star left of a big red ring above a small red ring on a sky background",
        "a big red ring above a big red ring above a big red ring above a big red ring on a sky background",
    ],
)
def test_what_the_grammar_cannot_say_does_not_parse(text):
    assert for_size(64).parse(text) is None
    assert for_size(64).log_probability(text) == -math.inf


def test_the_example_of_the_readme_parses():
    label = for_size(32).parse("a large red star on a sky background")
    assert label == Label(background="sky", objects=[Item(shape="star", colour="red", size="large")], relation=None)


def test_three_objects_are_beyond_the_small_pictures():
    text = "a big red ring above a big red ring above a big red ring on a sky background"
    assert for_size(32).parse(text) is None
    assert for_size(64).parse(text) is not None


def test_captions_of_small_pictures_have_at_most_seventeen_words():
    grammar = for_size(32)
    longest = Label(background="sky", objects=[Item(shape="ring", colour="red", size="large")] * 2, relation="left of")
    assert max(len(text.split()) for text, _ in every_caption(grammar, longest)) <= 17


@pytest.mark.parametrize("size", [32, 64])
def test_every_single_value_occurs_in_training_and_no_excluded_pair_does(size):
    grammar, rng = for_size(size), np.random.default_rng(1)
    seen = {name: set() for name in ATTRIBUTES}
    for _ in range(2000):
        label = grammar.sample_scene(rng)
        assert is_allowed(grammar, label)
        seen["background"].add(label["background"])
        seen["relation"] |= {label["relation"]} - {None}
        for item in label["objects"]:
            for name in ("colour", "shape", "size"):
                seen[name].add(item[name])
    assert seen == {name: set(values) for name, values in ATTRIBUTES.items()}


def test_every_unseen_scene_has_an_excluded_pair():
    grammar, rng = for_size(32), np.random.default_rng(2)
    assert not any(is_allowed(grammar, grammar.sample_scene(rng, unseen=True)) for _ in range(500))


def test_at_least_half_of_the_small_pictures_have_two_objects():
    grammar, rng = for_size(32), np.random.default_rng(3)
    two = np.mean([len(grammar.sample_scene(rng)["objects"]) == 2 for _ in range(2000)])
    assert abs(two - 0.6) < 0.05
