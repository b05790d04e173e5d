"""Laws of canonical labels and scores, and a judge that learns real scenes."""

import copy
import itertools

import numpy as np
import pytest
import torch

from eval.interval import wilson
from eval.scene import (
    RELATIONS,
    SceneJudge,
    SceneJudgeConfig,
    augment,
    canonical,
    chance,
    encode_label,
    read,
    scene_loss,
    score,
    score_caption,
    summarise,
)
from eval.scene_augment import ABSENT, degrade, mirror, transplant

ATTRIBUTES = {
    "background": ("sky", "grass", "sand"),
    "shape": ("circle", "square", "star", "ring"),
    "colour": ("red", "green", "blue", "white", "black"),
    "size": ("small", "large"),
}
CONFIG = SceneJudgeConfig(attributes=ATTRIBUTES, slots=3, widths=(16, 32))
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def thing(colour, shape, size="large"):
    return {"shape": shape, "colour": colour, "size": size, "x": 0.5, "y": 0.5}


def label(*objects, relation=None, background="sky"):
    return {"background": background, "objects": list(objects), "relation": relation}


RED, BLUE, GREEN = thing("red", "star"), thing("blue", "circle", "small"), thing("green", "square")
PAIR = label(RED, BLUE, relation="left of")


def random_label(rng, count):
    objects = [thing(*(str(rng.choice(ATTRIBUTES[n])) for n in ("colour", "shape", "size"))) for _ in range(count)]
    relation = None if count == 1 else str(rng.choice([r for r in RELATIONS if r]))
    return label(*objects, relation=relation, background=str(rng.choice(ATTRIBUTES["background"])))


def turned(scene):
    """The same scene told from its other end."""
    return {**scene, "objects": scene["objects"][::-1], "relation": INVERSE.get(scene["relation"])}


@pytest.mark.parametrize("relation", [r for r in RELATIONS if r])
def test_canonical_form_is_the_same_from_either_end(relation):
    scene = label(RED, BLUE, GREEN, relation=relation)
    assert canonical(scene) == canonical(turned(scene))
    assert canonical(scene) != canonical({**scene, "relation": INVERSE[relation]})


def test_slots_run_left_to_right_and_top_to_bottom():
    assert canonical(PAIR)["slots"][0]["colour"] == "red"
    assert canonical(label(RED, BLUE, relation="right of"))["slots"][0]["colour"] == "blue"
    assert canonical(label(RED, BLUE, relation="below"))["slots"][0]["colour"] == "blue"
    assert canonical(label(RED)) == {
        "background": "sky", "axis": "none", "count": 1, "slots": [{"shape": "star", "colour": "red", "size": "large"}],
    }  # fmt: skip


def test_unknown_relation_is_refused():
    with pytest.raises(ValueError, match="inside"):
        canonical(label(RED, BLUE, relation="inside"))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_scene_agrees_with_its_own_label(count):
    rng = np.random.RandomState(count)
    for _ in range(50):
        scene = random_label(rng, count)
        scores = score(canonical(turned(scene) if count > 1 else scene), scene)
        assert all(all(v) for v in scores.values())
        assert [len(scores[n]) for n in ("background", "shape", "colour", "size", "relation", "count")] == [
            1, count, count, count, int(count > 1), 1,
        ]  # fmt: skip


def test_swapped_colours_are_two_errors_and_leave_the_shapes():
    swapped = label(thing("blue", "star"), thing("red", "circle", "small"), relation="left of")
    scores = score(canonical(swapped), PAIR)
    assert scores["colour"] == [False, False]
    assert scores["shape"] == scores["size"] == [True, True]
    assert scores["relation"] == [True]  # two of three attributes still stand in the asked order


def test_objects_in_reversed_order_break_the_relation():
    scores = score(canonical(label(RED, BLUE, relation="right of")), PAIR)
    assert scores["relation"] == [False]
    assert scores["colour"] == [False, False]


def test_another_axis_breaks_the_relation_only():
    scores = score(canonical(label(RED, BLUE, relation="above")), PAIR)
    assert scores["relation"] == [False]
    assert scores["colour"] == scores["shape"] == [True, True]


def test_equal_objects_are_judged_on_the_axis_alone():
    asked = label(RED, RED, relation="right of")
    assert score(canonical(label(RED, RED, relation="left of")), asked)["relation"] == [True]
    assert score(canonical(label(GREEN, BLUE, relation="left of")), asked)["relation"] == [True]
    assert score(canonical(label(RED, RED, relation="above")), asked)["relation"] == [False]


def test_pictures_that_fit_both_orders_prove_no_relation():
    assert score(canonical(label(GREEN, GREEN, relation="left of")), PAIR)["relation"] == [False]


def test_three_objects_need_their_whole_order():
    asked = label(RED, BLUE, GREEN, relation="left of")
    right = [
        order
        for order in itertools.permutations((RED, BLUE, GREEN))
        if score(canonical(label(*order, relation="left of")), asked)["relation"] == [True]
    ]
    assert right == [(RED, BLUE, GREEN)]
    twice = label(RED, RED, BLUE, relation="left of")  # exchanging the equal ones is no other order
    assert score(canonical(twice), twice)["relation"] == [True]


def test_missing_objects_are_wrong_and_superfluous_ones_break_count_and_relation():
    missing = score(canonical(label(RED)), PAIR)
    assert missing["colour"] == missing["shape"] == [True, False]
    assert missing["relation"] == missing["count"] == [False]
    more = score(canonical(label(RED, BLUE, GREEN, relation="left of")), PAIR)
    assert more["colour"] == [True, True]
    assert more["relation"] == more["count"] == [False]


def test_caption_is_right_where_every_object_is_in_order():
    assert score_caption(turned(PAIR), PAIR)["colour"] == [True]
    assert score_caption(label(RED, BLUE, relation="right of"), PAIR)["colour"] == [False]
    one_wrong = score_caption(label(RED, thing("green", "circle", "small"), relation="left of"), PAIR)
    assert (one_wrong["colour"], one_wrong["shape"], one_wrong["relation"]) == ([False], [True], [True])


def test_caption_that_names_too_few_or_nothing_is_wrong():
    for parsed in (None, label(RED), label(RED, BLUE, GREEN, relation="left of")):
        scores = score_caption(parsed, PAIR)
        assert scores["colour"] == scores["shape"] == scores["size"] == scores["relation"] == [False]
    assert score_caption(None, label(RED))["background"] == [False]
    assert score_caption(label(RED), PAIR)["background"] == [True]


def test_summary_counts_by_number_of_objects_and_clusters_by_prompt():
    rng = np.random.RandomState(0)
    prompts = [random_label(rng, 1 + i % 2) for i in range(200)]
    scores = [score(canonical(p if rng.rand() < 0.8 else random_label(rng, 1)), p) for p in prompts]
    found = summarise(scores, [len(p["objects"]) for p in prompts])
    assert {"background", "background.one", "colour.one", "colour.two", "relation", "relation.two"} <= set(found)
    assert "relation.one" not in found
    assert found["colour"].n == 200
    assert found["colour.one"].n == found["relation"].n == 100
    ones = [s["colour"][0] for s, p in zip(scores, prompts, strict=True) if len(p["objects"]) == 1]
    assert found["colour.one"] == wilson(sum(ones), 100)
    twice = summarise([*scores, *scores], [len(p["objects"]) for p in prompts] * 2, [*range(200)] * 2)
    assert twice["background"].n == 200
    assert twice["background"].high - twice["background"].low == pytest.approx(
        found["background"].high - found["background"].low, rel=0.1
    )


def test_random_guesses_score_at_chance():
    rng = np.random.RandomState(1)
    asked = [random_label(rng, 2) for _ in range(1000)]
    found = summarise([score(canonical(random_label(rng, 2)), p) for p in asked], [2] * 1000)
    levels = chance(CONFIG)
    for name in ("background", "shape", "colour", "size"):
        assert found[name].value == pytest.approx(levels[name], abs=0.05)
    assert found["relation"].value < levels["relation"]  # guesses that fit both orders prove none


@pytest.mark.parametrize("count", [1, 2, 3])
def test_reading_the_targets_gives_the_label_back(count):
    rng = np.random.RandomState(count)
    labels = [random_label(rng, count) for _ in range(20)]
    targets = stack(labels)
    logits = {
        name: torch.nn.functional.one_hot(targets[name].clamp(min=0), size[-1]).float()
        for name, size in CONFIG.sizes().items()
    }
    assert read(logits, CONFIG) == [canonical(x) for x in labels]
    assert float(scene_loss({n: 50 * v for n, v in logits.items()}, targets)) < 1e-6


def stack(labels, config=CONFIG):
    rows = [encode_label(x, config) for x in labels]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def test_empty_slots_cost_nothing():
    targets = stack([label(RED)])
    assert targets["colour"].tolist() == [[0, ABSENT, ABSENT]]
    logits = {name: torch.zeros(1, *size) for name, size in CONFIG.sizes().items()}
    before = scene_loss(logits, targets)
    logits["colour"][0, 1:] = torch.randn(2, 5)
    assert scene_loss(logits, targets) == before
    targets["colour"].fill_(ABSENT)
    assert torch.isfinite(scene_loss(logits, targets))


def test_labels_that_the_judge_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="4 objects"):
        encode_label(label(RED, RED, RED, RED, relation="left of"), CONFIG)
    with pytest.raises(ValueError, match="unknown colour 'pink'"):
        encode_label(label(thing("pink", "star")), CONFIG)
    with pytest.raises(ValueError, match="'size'"):
        SceneJudgeConfig(attributes={**ATTRIBUTES, "size": ("large",)})


@pytest.fixture(scope="module")
def scenes():
    data = pytest.importorskip("pipelines.data.scenes")
    from pipelines.data.grammar import ATTRIBUTES as REAL

    config = SceneJudgeConfig(attributes=REAL, slots=2, widths=(16, 24))
    labels = [data.scene(32, 0, "train", i)[0] for i in range(48)]
    pictures = np.stack([np.asarray(data.render(x, 32)) for x in labels])
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    return config, labels, x, stack(labels, config)


def test_mirrored_pictures_keep_true_labels(scenes):
    config, labels, x, targets = scenes
    flipped, turned_targets = mirror(x, targets, torch.Generator().manual_seed(0))
    for i, scene in enumerate(labels):
        for left_right, top_bottom in itertools.product((False, True), repeat=2):
            sides = [side for side, flip in ((-1, left_right), (-2, top_bottom)) if flip]
            if torch.equal(x[i].flip(sides), flipped[i]):
                against = {"left of": left_right, "right of": left_right, "above": top_bottom, "below": top_bottom}
                told = {**scene, "relation": INVERSE[scene["relation"]]} if against.get(scene["relation"]) else scene
                found = {name: t[i].tolist() for name, t in turned_targets.items()}
                assert found == {name: t.tolist() for name, t in encode_label(told, config).items()}
                break
        else:
            pytest.fail("a mirrored picture is none of the four mirror images")


def test_transplanted_pictures_are_what_the_renderer_draws(scenes):
    config, labels, x, targets = scenes
    data = pytest.importorskip("pipelines.data.scenes")
    painted, found = transplant(x, targets, torch.Generator().manual_seed(0))
    changed = (painted != x).flatten(1).any(1)
    assert 10 < int(changed.sum()) < 40
    for name in ("shape", "size", "axis", "count"):
        assert torch.equal(found[name], targets[name])
    for i, told in enumerate(labels):
        wanted = copy.deepcopy(told)
        wanted["background"] = config.attributes["background"][found["background"][i]]
        slots = wanted["objects"] if told["relation"] in ("left of", "above", None) else wanted["objects"][::-1]
        for item, colour in zip(slots, found["colour"][i], strict=False):
            item["colour"] = config.attributes["colour"][colour]
        drawn = torch.from_numpy(np.array(data.render(wanted, 32))).permute(2, 0, 1) / 127.5 - 1
        assert torch.allclose(painted[i], drawn, atol=2.5 / 127.5), told  # two roundings to uint8


def test_transplants_bring_pairs_that_training_never_shows(scenes):
    config, labels, x, targets = scenes
    pairs = set()
    for seed in range(30):
        _, found = transplant(x, targets, torch.Generator().manual_seed(seed))
        pairs |= {
            (config.attributes["colour"][c], config.attributes["shape"][s])
            for c, s in zip(found["colour"].flatten(), found["shape"].flatten(), strict=True)
            if c != ABSENT
        }
    shown = {(o["colour"], o["shape"]) for y in labels for o in y["objects"]}
    assert ("red", "triangle") in pairs - shown
    assert len(pairs) == 8 * 6


def test_degraded_pictures_stay_in_range_and_some_stay_untouched(scenes):
    x = scenes[2]
    seen = degrade(x, torch.Generator().manual_seed(0))
    assert seen.abs().max() <= 1
    assert 3 < int((seen == x).flatten(1).all(1).sum()) < 30


def test_judge_learns_real_scenes_and_shuffled_labels_do_not_fit(scenes):
    config, labels, x, targets = scenes
    torch.manual_seed(0)
    judge = SceneJudge(config)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        scene_loss(judge(x), targets).backward()
        optimizer.step()
    with torch.no_grad():
        found = read(judge(x), config)
    for told, low, high in ((labels, 0.97, 1), (labels[1:] + labels[:1], 0, 0.5)):
        summary = summarise([score(f, y) for f, y in zip(found, told, strict=True)], [len(y["objects"]) for y in told])
        assert all(low <= summary[name].value <= high for name in ("background", "colour", "shape", "relation"))


def test_a_verdict_does_not_depend_on_the_batch(scenes):
    config, _, x, _ = scenes
    torch.manual_seed(0)
    judge = SceneJudge(config).eval()
    together, alone = judge(x)["shape"][:1], judge(x[:1])["shape"]
    assert torch.allclose(together, alone, atol=1e-5)


def test_augmentation_is_a_function_of_its_generator(scenes):
    _, _, x, targets = scenes
    views = [augment(x, copy.copy(targets), torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(views[0][0], views[1][0])
    assert not torch.equal(views[0][0], views[2][0])
    assert all(torch.equal(views[0][1][n], views[1][1][n]) for n in targets)
