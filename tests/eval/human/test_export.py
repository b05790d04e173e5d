"""The bundle: blind, balanced, complete, and refused with a name where pictures or models are wrong."""

import base64
import csv
import io
import json
import shutil
from collections import Counter, defaultdict
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from PIL import Image, PngImagePlugin
from scipy import stats

from eval.human.errors import StudyError
from eval.human.export import export
from eval.human.gold import as_expected, has_answer
from eval.human.key import read_key
from eval.human.leaks import giveaways, leaks
from tests.eval.human.made import NAMES, data_of, pictures, prompts, study

PARTS = {b"IHDR", b"IDAT", b"IEND"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    given = pictures(folder / "in", 24, 3)
    return export(study(3, block=20), prompts(24), given, folder / "out", truth=given[NAMES[2]], secret="s")


def pages(made):
    return [path.read_text(encoding="utf-8") for path in sorted((made.bundle / "pages").iterdir())]


def test_the_bundle_names_no_model_in_any_byte(made):
    files = [path for path in made.bundle.rglob("*") if path.is_file()]
    assert len(files) > 12 + 72
    for path in files:
        content = path.read_bytes() + str(path).encode()
        if path.suffix == ".html" and path.parent.name == "pages":
            content += b"".join(
                base64.b64decode(uri.split(",")[1]) for uri in data_of(path.read_text())["images"].values()
            )
        assert not [name for name in NAMES if name.encode() in content], path
    assert leaks(made.bundle, NAMES) == []


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("pages/block-01.html", "Thank you", f"Thank {NAMES[0].upper()}"),
        ("pages/block-01.html", '"block": 1', '"block": 1, "hint": "\\u006ddlm-kx9"'),
        ("mturk.html", "<p>", f"<p>{NAMES[2]} "),
        ("labelstudio/tasks-set-1.json", '"study"', f'"{NAMES[1]}": 1, "study"'),
        ("prolific.csv", "block,", f"block {NAMES[0]},"),
        ("instructions.md", "Relevance", NAMES[1]),
    ],
)
def test_a_planted_name_is_found(made, tmp_path, place, old, new):
    bundle = shutil.copytree(made.bundle, tmp_path / "bundle")
    path = bundle / place
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    found = leaks(bundle, NAMES)
    assert len(found) == 1 and place in found[0]


def test_names_of_files_and_parts_beside_the_pixels_are_found(made, tmp_path):
    bundle = shutil.copytree(made.bundle, tmp_path / "bundle")
    first = next((bundle / "pictures").iterdir())
    first.rename(first.with_name(f"{NAMES[0]}.png"))
    assert NAMES[0] in leaks(bundle, NAMES)[0]
    note = PngImagePlugin.PngInfo()
    note.add_text("seed", "1")
    Image.new("RGB", (4, 4)).save(bundle / "pictures" / "x.png", pnginfo=note)
    assert any("tEXt" in found and "x.png" in found for found in leaks(bundle, ()))
    (bundle / "pictures" / "x.png").write_bytes(first.with_name(f"{NAMES[0]}.png").read_bytes().rstrip(b"\0") + b"flow")
    assert any("after its end" in found for found in leaks(bundle, ()))
    page = bundle / "pages" / "block-01.html"
    uri = next(iter(data_of(page.read_text())["images"].values()))
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG", pnginfo=note)
    page.write_text(
        page.read_text().replace(uri, f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}")
    )
    assert any("block-01.html" in found for found in leaks(bundle, ()))


def test_prompts_may_hold_the_name_of_a_model(tmp_path):
    given = pictures(tmp_path / "in", 6)
    words = [f"a {NAMES[0]} and {i}" for i in range(6)]
    assert export(study(block=6), words, given, tmp_path / "out").items


def test_a_title_with_a_model_name_is_refused_and_nothing_is_left(tmp_path):
    given = pictures(tmp_path / "in", 6)
    with pytest.raises(StudyError, match=r"latent-flow-zq7.*block-01.html.*rename"):
        export(study(title=f"Is {NAMES[0]} better?"), prompts(6), given, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_sizes_and_order_of_files_say_nothing(made, tmp_path):
    """Later models of the fixture are smoother, so that their files would be shorter."""
    bundle = shutil.copytree(made.bundle, tmp_path / "bundle")
    files = sorted((bundle / "pictures").iterdir())
    assert len({path.stat().st_size for path in files}) == 1 and len({path.stat().st_mtime for path in files}) == 1
    key = read_key(made.key)
    owner = {path.name: NAMES[at % 3] for at, path in enumerate(files)}
    assert giveaways(bundle / "pictures", owner, key) == []
    ordered = {path.name: NAMES[at * 3 // len(files)] for at, path in enumerate(files)}
    assert "order of the models" in giveaways(bundle / "pictures", ordered, key)[0]
    files[0].write_bytes(files[0].read_bytes() + b"\0")
    assert "differ in size" in giveaways(bundle / "pictures", owner, key)[0]


def test_pictures_keep_their_pixels_and_lose_the_rest(made):
    uris = {uri for page in pages(made) for uri in data_of(page)["images"].values()}
    for uri in uris:
        content = base64.b64decode(uri.split(",")[1]).rstrip(b"\0")
        parts, at = set(), 8
        while at < len(content):
            parts.add(content[at + 4 : at + 8])
            at += 12 + int.from_bytes(content[at : at + 4], "big")
        assert parts == PARTS


def test_the_key_agrees_with_the_pixels_that_the_pages_show(made):
    """The side in the key is checked against the pictures, not against the code that wrote both."""
    key = read_key(made.key)
    folder = made.key.parent.parent / "in"
    source = {Image.open(path).convert("RGB").tobytes(): path.name.rsplit("-", 1) for path in folder.iterdir()}
    checked = 0
    for page in pages(made):
        data = data_of(page)
        for shown in data["items"]:
            item = key.items[shown["id"]]
            if item.kind == "gold":
                continue
            images = {side: Image.open(made.bundle / "pictures" / shown[side]).tobytes() for side in ("left", "right")}
            sides = {side: source[pixels] for side, pixels in images.items()}
            left, right = (item.first, item.second) if item.first_left else (item.second, item.first)
            assert (sides["left"][0], sides["right"][0]) == (left, right)
            assert shown["prompt"] == f"a red star, number {sides['left'][1].removesuffix('.png')}"
            checked += 1
    assert checked == 24 * 3 * 4 + sum(item.kind == "repeat" for item in key.items.values())


def test_every_pair_stands_equally_often_on_both_sides_and_comes_once_to_a_rater(made):
    key = read_key(made.key)
    main = [item for item in key.items.values() if item.kind == "pair"]
    sides = defaultdict(Counter)
    for item in main:
        sides[item.prompt_id, item.first, item.second][item.first_left] += 1
    assert len(sides) == 24 * 3 and all(count == {True: 2, False: 2} for count in sides.values())
    for block in range(1, made.blocks + 1):
        seen = [(item.prompt_id, item.first, item.second) for item in main if item.block == block]
        assert len(seen) == len(set(seen)) == 18


def test_repeats_swap_the_sides_and_come_late(made):
    key = read_key(made.key)
    order = {name: at for at, name in enumerate(key.items)}
    again = [item for item in key.items.values() if item.kind == "repeat"]
    assert len(again) == made.blocks
    for item in again:
        twin = key.items[item.repeat_of]
        assert twin.kind == "pair" and (twin.first, twin.second, twin.prompt_id) == (
            item.first,
            item.second,
            item.prompt_id,
        )
        assert twin.first_left != item.first_left and twin.block == item.block
        assert order[item.id] - order[twin.id] >= 6


def test_controls_of_every_kind_are_there_and_their_better_picture_is_on_both_sides(made):
    key = read_key(made.key)
    gold = [item for item in key.items.values() if item.kind == "gold"]
    assert Counter(item.first for item in gold).keys() == {"gold:right", "gold:clean", "gold:same"}
    assert len(gold) == 2 * made.blocks and {item.first_left for item in gold} == {True, False}
    assert has_answer("gold:right", "relevance") and not has_answer("gold:right", "defects")
    assert as_expected("gold:same", "both_bad") and not as_expected("gold:clean", "tie")


def test_sides_change_by_chance_from_item_to_item(made):
    main = [item for item in read_key(made.key).items.values() if item.kind == "pair"]
    changes = sum(a.first_left != b.first_left for a, b in pairwise(main))
    assert stats.binomtest(changes, len(main) - 1).pvalue > 0.001


def test_likert_shows_one_picture_at_a_time(tmp_path):
    given = pictures(tmp_path / "in", 10, 2)
    made = export(study(mode="likert", block=10, raters=2), prompts(10), given, tmp_path / "out", truth=given[NAMES[0]])
    data = data_of(pages(made)[0])
    assert all(item["right"] is None for item in data["items"]) and len(data["criteria"][0]["anchors"]) == 5
    key = read_key(made.key)
    assert {item.first for item in key.items.values() if item.kind == "gold"} <= {"gold:wrong", "gold:corrupt"}


def test_the_same_study_again_gives_the_same_bytes_and_another_is_refused(tmp_path):
    given = pictures(tmp_path / "in", 8)

    def files():
        return {p.relative_to(tmp_path): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}

    export(study(block=8), prompts(8), given, tmp_path / "out")
    before = files()
    export(study(block=8), prompts(8), given, tmp_path / "out")
    assert files() == before
    with pytest.raises(StudyError, match="belongs to another study"):
        export(study(block=8, seed=1), prompts(8), given, tmp_path / "out")
    assert files() == before
    registered = json.loads((tmp_path / "out" / "registered.json").read_text())
    assert registered["hash"] == read_key(tmp_path / "out" / "key.sealed.json").study
    assert registered["study"]["exclude"]["min_gold"] == 0.8 and registered["prompts"] == prompts(8)


def test_the_hash_changes_with_pixels_prompts_and_rules(tmp_path):
    given = pictures(tmp_path / "in", 6)
    other = {**given, NAMES[0]: given[NAMES[0]][::-1]}
    asked = [(study(), prompts(6), given), (study(raters=2), prompts(6), given), (study(), prompts(6), other),
             (study(), [*prompts(5), "x"], given)]  # fmt: skip
    found = [export(*one, tmp_path / str(at)).study for at, one in enumerate(asked)]
    assert len(set(found)) == 4


def test_files_for_platforms_hold_every_item_with_its_pictures(made):
    key = read_key(made.key)
    tasks = [
        one["data"] for path in (made.bundle / "labelstudio").glob("*.json") for one in json.loads(path.read_text())
    ]
    toloka = list(csv.DictReader((made.bundle / "toloka.tsv").open(encoding="utf-8"), delimiter="\t"))
    mturk = list(csv.DictReader((made.bundle / "mturk.csv").open(encoding="utf-8")))
    assert (
        {task["item"] for task in tasks}
        == {row["INPUT:item"] for row in toloka}
        == {r["item"] for r in mturk}
        == set(key.items)
    )
    for task in tasks:
        assert (made.bundle / task["left"].replace("{BASE_URL}/", "")).exists() and task["study"] == made.study
    root = ElementTree.fromstring((made.bundle / "labelstudio" / "config.xml").read_text())
    assert [node.get("name") for node in root.iter("Choices")][:5] == list(key.criteria)
    visits = list(csv.DictReader((made.bundle / "prolific.csv").open(encoding="utf-8")))
    assert len(visits) == made.blocks and "PROLIFIC_PID={{%PROLIFIC_PID%}}" in visits[0]["url"]
    assert data_of(pages(made)[0])["code"] == visits[0]["completion_code"]
    assert "## Defects" in (made.bundle / "instructions.md").read_text()


def test_hostile_prompts_stay_text_in_every_file(tmp_path):
    words = [
        "</script><script>alert(1)</script>",
        'a "quoted", comma\tand\nline',
        "שלום עולם \u202e",
        "😀 café",
        "'<b>&amp;",
    ]
    given = pictures(tmp_path / "in", 5)
    made = export(study(block=5, base_url="https://example.org/x/"), words, given, tmp_path / "out")
    assert {item["prompt"] for page in pages(made) for item in data_of(page)["items"]} == set(words)
    assert all(page.count("<script") == 2 for page in pages(made))
    mturk = (made.bundle / "mturk.csv").read_text()
    assert mturk.isascii() and "<script>" not in mturk and "https://example.org/x/pictures/" in mturk
    rows = list(csv.DictReader((made.bundle / "toloka.tsv").open(encoding="utf-8"), delimiter="\t"))
    assert len(rows) == made.items and {" ".join(word.split()) for word in words} == {
        row["INPUT:prompt"] for row in rows
    }


def test_bad_pictures_and_prompts_are_refused_by_name(tmp_path):
    given, out = pictures(tmp_path / "in", 4), tmp_path / "out"
    first, second = NAMES[:2]

    def refused(sentence, words, changed):
        with pytest.raises(StudyError, match=sentence):
            export(study(), words, {**given, **changed}, out)
        assert not out.exists() or not list(out.iterdir())

    refused("mdlm-kx9 has 3 pictures for 4 prompts", prompts(4), {second: given[second][:3]})
    refused("no prompts", [], {first: [], second: []})
    refused(r"1 prompts come more than once \('a red star, number 0'\)", [*prompts(3), prompts(1)[0]], {})
    refused("prompts 1 have no words", ["a", " ", "b", "c"], {})
    refused("none.png is missing", prompts(4), {first: [tmp_path / "none.png", *given[first][1:]]})
    broken = tmp_path / "broken.png"
    broken.write_bytes(given[first][0].read_bytes()[:60])
    refused("broken.png cannot be read", prompts(4), {first: [broken, *given[first][1:]]})
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    refused("number 0' differ in size.*8 x 8", prompts(4), {first: [tmp_path / "small.png", *given[first][1:]]})
