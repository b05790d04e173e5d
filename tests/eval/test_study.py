"""The blinded study: the page names no model, sides are balanced, votes find their model again, intervals hold."""

import base64
import csv
import html
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from scipy import stats

from eval import study
from eval.page import fingerprint
from eval.preference import holm, sign_test
from eval.report import Report, Section, to_html
from eval.votes import unblind
from tests.eval.test_report import HOSTILE, provenance

MODELS = ("latent-flow-zq7", "mdlm-kx9")


def pictures(folder, count, size=16):
    """Two pictures per prompt whose files carry the model's name wherever a file can."""
    made = {}
    for m, model in enumerate(MODELS):
        made[model] = []
        for i in range(count):
            pixels = np.random.RandomState(2 * i + m).randint(0, 256, (size, size, 3), dtype=np.uint8)
            note = PngImagePlugin.PngInfo()
            note.add_text("model", model)
            path = Path(folder) / f"{model}-{i}.png"
            Image.fromarray(pixels).save(path, pnginfo=note, icc_profile=model.encode())
            made[model].append(path)
    return made


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    prompts = [f"a red star, number {i // 2}" for i in range(60)]
    return study.export(prompts, pictures(folder, 60), folder / "out", study.Design(seed=3, repeats=0.1))


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="study">(.*?)</script>', page, re.DOTALL)[1])


AT = "2026-01-02T03:04:05.678Z"


def answer(key, better, rater, *, position=0.0, seed=0):
    """A rater who prefers the first model with probability better(prompt) and, with `position`, the left side."""
    rng = np.random.RandomState(seed)
    votes = []
    for item in key.items.values():
        for criterion in key.criteria:
            first = rng.rand() < better(item)
            side = "left" if first == item.first_left or rng.rand() < position else "right"
            votes.append({"item": item.id, "criterion": criterion, "choice": side, "rt_ms": 900, "at": AT})
    return {"schema": 1, "study": key.study, "rater": rater, "votes": votes}


def saved(folder, content, name="votes.json"):
    path = Path(folder) / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_bundle_names_no_model(exported):
    files = [path for path in exported.page.parent.rglob("*") if path.is_file()]
    assert files == [exported.page]
    page = exported.page.read_text(encoding="utf-8")
    everything = page.encode() + b"".join(base64.b64decode(u.split(",")[1]) for u in data_of(page)["images"].values())
    assert not [model for model in MODELS if model.encode() in everything]
    assert study.leaks(page, MODELS) == []


def test_the_check_finds_a_planted_name(exported, tmp_path):
    page = exported.page.read_text(encoding="utf-8")
    assert study.leaks(page.replace("Some pairs", f"Some {MODELS[0].upper()} pairs"), MODELS) == [MODELS[0]]
    assert study.leaks(page.replace("A, B, or", "A, B, \\u006ddlm-kx9 or"), MODELS) == [MODELS[1]]
    planted = base64.b64encode(pictures(tmp_path, 1)[MODELS[1]][0].read_bytes()).decode()
    first = next(iter(data_of(page)["images"].values())).split(",")[1]
    assert study.leaks(page.replace(first, planted), MODELS) == [MODELS[1]]


def test_a_title_with_a_model_name_is_refused(tmp_path):
    design = study.Design(seed=0, title=f"Is {MODELS[0]} better?")
    with pytest.raises(study.StudyError, match=r"latent-flow-zq7.*rename"):
        study.export(["p"], pictures(tmp_path, 1), tmp_path / "out", design)
    assert not (tmp_path / "out").exists()


def test_pictures_keep_their_pixels_and_lose_the_rest(exported):
    for uri in data_of(exported.page.read_text())["images"].values():
        content = base64.b64decode(uri.split(",")[1])
        assert set(re.findall(rb"(?s)[\x00-\xff]{4}(IHDR|IDAT|IEND|tEXt|iCCP|eXIf)", content)) == {
            b"IHDR",
            b"IDAT",
            b"IEND",
        }


def test_sides_are_balanced_and_repeats_swap_them(exported):
    key = study.read_key(exported.key)
    main = [item for item in key.items.values() if item.repeat_of is None]
    again = [item for item in key.items.values() if item.repeat_of is not None]
    assert len(main) == 60 and Counter(item.first_left for item in main) == {True: 30, False: 30}
    order = {item.id: at for at, item in enumerate(key.items.values())}
    assert len(again) == 6
    for item in again:
        twin = key.items[item.repeat_of]
        assert item.first_left != twin.first_left and item.pictures == twin.pictures
        assert order[item.id] - order[twin.id] >= 20


def test_order_of_items_and_pictures_says_nothing_about_the_model(exported):
    key, data = study.read_key(exported.key), data_of(exported.page.read_text())
    place = {name: at for at, name in enumerate(data["images"])}
    main = [item for item in key.items.values() if item.repeat_of is None]
    firsts = sum(place[item.pictures[0]] < place[item.pictures[1]] for item in main)
    assert stats.binomtest(firsts, len(main)).pvalue > 0.001
    runs = [item.first_left for item in main]
    changes = sum(a != b for a, b in pairwise(runs))
    assert stats.binomtest(changes, len(runs) - 1).pvalue > 0.001


def test_key_agrees_with_what_the_page_shows(exported, tmp_path):
    """The side in the key is checked against the pixels, not against the code that wrote both."""
    source = pictures(tmp_path, 60)
    first = {Image.open(path).convert("RGB").tobytes() for path in source[MODELS[0]]}
    key, data = study.read_key(exported.key), data_of(exported.page.read_text())
    for shown in data["items"]:
        content = base64.b64decode(data["images"][shown["left"]].split(",")[1])
        assert (Image.open(io.BytesIO(content)).tobytes() in first) == key.items[shown["id"]].first_left


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_sides(tmp_path):
    source = pictures(tmp_path, 6)
    made = [
        study.export(list("abcdef"), source, tmp_path / str(i), study.Design(seed=s)) for i, s in enumerate((1, 1, 2))
    ]
    assert made[0].page.read_bytes() == made[1].page.read_bytes()
    assert made[0].key.read_bytes() == made[1].key.read_bytes()
    assert made[0].study != made[2].study


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [name for name, _ in attrs]


def tags(page):
    found = Tags()
    found.feed(page)
    return found


def test_hostile_prompts_change_no_element(tmp_path):
    count = len(HOSTILE)
    source = pictures(tmp_path, count)
    plain = study.export(["p"] * count, source, tmp_path / "plain", study.Design(seed=0, repeats=0))
    hostile = study.export(HOSTILE, source, tmp_path / "hostile", study.Design(seed=0, repeats=0))
    titled = study.export(["p"] * count, source, tmp_path / "t", study.Design(seed=0, repeats=0, title=HOSTILE[2]))
    pages = [made.page.read_text(encoding="utf-8") for made in (plain, hostile, titled)]
    assert tags(pages[0]).seen == tags(pages[1]).seen == tags(pages[2]).seen
    assert not [name for page in pages for name in tags(page).attributes if name.startswith("on") or name == "style"]
    assert {item["prompt"] for item in data_of(pages[1])["items"]} == set(HOSTILE)


def test_study_page_has_a_strict_policy_and_loads_nothing(exported):
    page = re.sub(r"base64,[A-Za-z0-9+/=]+", "", exported.page.read_text())
    assert "default-src &#39;none&#39;; img-src data:" in page and "unsafe" not in page
    assert "http:" not in page and "https:" not in page and "innerHTML" not in page


@pytest.mark.parametrize("rate", [0.5, 0.7])
def test_round_trip_recovers_the_planted_win_rate(exported, tmp_path, rate):
    key = study.read_key(exported.key)
    files = [saved(tmp_path, answer(key, lambda _: rate, f"rater{r}", seed=r), f"{r}.json") for r in range(8)]
    votes = study.import_votes(files, exported.key)
    result = study.win_rates(votes)
    assert (result.model_a, result.model_b, result.raters) == (*MODELS, 8)
    assert [outcome.criterion for outcome in result.outcomes] == ["relevance", "aesthetics", "defects", "overall"]
    for outcome in result.outcomes:
        assert outcome.wins + outcome.ties + outcome.losses == 60 * 8  # repeats do not count
        assert outcome.win_rate.low - 0.02 < rate < outcome.win_rate.high + 0.02
        assert outcome.win_rate.n == 30  # prompts, not votes
        assert outcome.prompts_won + outcome.prompts_tied + outcome.prompts_lost == 30
    assert all(outcome.p_holm >= outcome.p for outcome in result.outcomes)
    if rate == 0.7:
        assert all(outcome.win_rate.low > 0.5 and outcome.p_holm < 0.05 for outcome in result.outcomes)


def test_intervals_cover_the_planted_rate_over_many_studies(exported):
    """Votes of a prompt share its difficulty, as real ones do: 200 studies, 95 % intervals, binomial band."""
    key, covered = study.read_key(exported.key), 0
    items = [item for item in key.items.values() if item.repeat_of is None]
    for trial in range(200):
        rng = np.random.RandomState(trial)
        hard = {item.prompt_id: rng.beta(3, 2) for item in items}
        votes = [vote(item, "a" if rng.rand() < hard[item.prompt_id] else "b") for item in items for _ in range(2)]
        interval = study.win_rates(votes, seed=trial).outcomes[0].win_rate
        covered += interval.low <= 0.6 <= interval.high
    assert covered >= 180


def vote(item, choice, *, rater="r", criterion="overall", side=None):
    shown = side or ("left" if item.first_left else "right")
    repeated = item.repeat_of or ""
    rest = {"rt_ms": 500, "is_repeat": bool(repeated), "repeat_of": repeated, "at": ""}
    names = {
        "study_id": "s",
        "item_id": item.id,
        "prompt_id": item.prompt_id,
        "rater_id": rater,
        "criterion": criterion,
    }
    return study.Vote(**names, model_a="a", model_b="b", side=shown, choice=choice, **rest)


@pytest.mark.parametrize(
    ("chosen", "first_left", "model"),
    [("left", True, "a"), ("right", True, "b"), ("left", False, "b"), ("right", False, "a"), ("tie", True, "tie")],
)
def test_swapped_sides_are_turned_back(chosen, first_left, model):
    assert unblind(chosen, first_left) == model


def test_one_who_always_prefers_the_first_model_wins_all_and_is_consistent(exported, tmp_path):
    key = study.read_key(exported.key)
    result = study.win_rates(study.import_votes([saved(tmp_path, answer(key, lambda _: 1.1, "ann"))], key))
    assert all((o.wins, o.ties, o.losses) == (60, 0, 0) and o.win_rate.low < 1 for o in result.outcomes)
    assert result.consistency is not None and result.consistency.value == 1
    assert result.left is not None and result.left.low < 0.5 < result.left.high


def test_one_who_always_presses_left_is_found_out(exported, tmp_path):
    key = study.read_key(exported.key)
    result = study.win_rates(study.import_votes([saved(tmp_path, answer(key, lambda _: 0, "bob", position=1.1))], key))
    assert result.left is not None and result.left.value == 1 and result.left.low > 0.8
    assert result.consistency is not None and result.consistency.value == 0
    assert all(outcome.win_rate.low < 0.5 < outcome.win_rate.high for outcome in result.outcomes)


def test_results_are_written_and_fit_a_report(exported, tmp_path):
    key = study.read_key(exported.key)
    votes = study.import_votes([saved(tmp_path, answer(key, lambda _: 0.6, "ann"))], key)
    tables = study.write_results(votes, study.win_rates(votes), tmp_path / "out")
    with (tmp_path / "out" / "votes.csv").open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == len(votes) and rows[0]["model_a"] == MODELS[0] and rows[0]["choice"] in ("a", "b", "tie")
    content = json.loads((tmp_path / "out" / "study.json").read_text())
    assert content["schema"] == 1 and content["outcomes"][0]["win_rate"]["n"] == 30
    page = Report(title="t", summary="", provenance=provenance(), sections=[Section("study", tables)], figures={})
    assert f"win rate of {MODELS[0]}" in to_html(page)


def spoil(change):
    def spoiled(key):
        content = answer(key, lambda _: 0.5, "ann")
        change(content)
        return content

    return spoiled


BAD = [
    (spoil(lambda c: c.update(study="0123456789abcdef")), "0123456789abcdef.*give the key of the page"),
    (spoil(lambda c: c["votes"][0].update(item="feedface")), "item 'feedface' is not of this study"),
    (spoil(lambda c: c["votes"][0].update(criterion="taste")), "criterion 'taste' is not of this study"),
    (spoil(lambda c: c["votes"][0].update(choice="middle")), "choice 'middle' is not of this study"),
    (spoil(lambda c: c["votes"][0].update(choice=["left"])), "choice \\['left'\\] is not of this study"),
    (spoil(lambda c: c["votes"].append(c["votes"][0])), "rater 'ann' answers 'relevance'.*a second time"),
    (spoil(lambda c: c.update(rater="")), "rater '' is no name"),
    (spoil(lambda c: c.update(rater="=HYPERLINK()")), "rater '=HYPERLINK\\(\\)' is no name"),
    (spoil(lambda c: c.update(votes=[])), "no votes: give"),
    (spoil(lambda c: c.update(votes=[None])), "item None is not of this study"),
    (spoil(lambda c: c.update(schema=9)), "no votes file of a study page"),
    (lambda key: [1], "no votes file of a study page"),
]


@pytest.mark.parametrize(("content", "sentence"), BAD, ids=[sentence[:28] for _, sentence in BAD])
def test_bad_votes_are_refused_with_the_value_and_the_remedy(exported, tmp_path, content, sentence):
    key = study.read_key(exported.key)
    with pytest.raises(study.VotesError, match=sentence) as refusal:
        study.import_votes([saved(tmp_path, content(key))], key)
    assert isinstance(refusal.value, ValueError)


def test_the_same_file_twice_and_files_that_are_no_json_are_refused(exported, tmp_path):
    key = study.read_key(exported.key)
    path = saved(tmp_path, answer(key, lambda _: 0.5, "ann"))
    with pytest.raises(study.VotesError, match="a second time"):
        study.import_votes([path, path], key)
    path.write_text("{")
    with pytest.raises(study.VotesError, match="cannot be read as JSON"):
        study.import_votes([path], key)
    with pytest.raises(study.VotesError, match="does not exist"):
        study.import_votes([tmp_path / "none.json"], key)
    with pytest.raises(study.VotesError, match="no sealed key"):
        study.import_votes([path], saved(tmp_path, {"schema": 1}, "key.json"))


def test_bad_pictures_are_refused_by_name(tmp_path):
    source, out = pictures(tmp_path, 2), tmp_path / "out"
    design = study.Design(seed=0)

    def refused(sentence, prompts, given):
        with pytest.raises(study.StudyError, match=sentence):
            study.export(prompts, given, out, design)

    first, second = MODELS
    refused("exactly two models", ["a", "b"], {first: source[first]})
    refused("exactly two models", ["a", "b"], {"m": source[first], "M ": source[second]})
    refused("no prompts", [], {first: [], second: []})
    refused("mdlm-kx9 has 1 pictures for 2 prompts", ["a", "b"], source | {second: source[second][:1]})
    refused("none.png is missing", ["a", "b"], source | {second: [tmp_path / "none.png", source[second][1]]})
    broken = tmp_path / "broken.png"
    broken.write_bytes(source[first][0].read_bytes()[:60])
    refused("broken.png cannot be read", ["a", "b"], source | {second: [broken, source[second][1]]})
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    refused("differ in size", ["a", "b"], source | {second: [tmp_path / "small.png", source[second][1]]})
    assert not out.exists()


def test_sign_test_and_holm_against_closed_forms():
    assert sign_test(60, 40) == pytest.approx(0.0569, abs=5e-5)
    assert sign_test(0, 0) == 1.0
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=4000"
).split()
RATER = """
const press = (key, target) => (target || document).dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
document.getElementById("rater").value = "ann";
press("Enter", document.getElementById("rater"));
for (const item of study.items) { for (const key of ["1", "2", "3", "1", "2"]) press(key); press("ArrowRight"); }
const seen = document.createElement("pre");
seen.id = "seen";
seen.textContent = document.getElementById("copy").value;
document.body.append(seen);
"""


def dump(page, folder, *, allowed):
    """What the page becomes in a browser with a rater's script beside it, whose hash the policy names or does not."""
    text = page.read_text(encoding="utf-8").replace("</body>", f"<script>{RATER}</script></body>")
    if allowed:
        text = text.replace("script-src ", f"script-src {html.escape(fingerprint(RATER))} ".replace("&#x27;", "&#39;"))
    copy = folder / "copy.html"
    copy.write_text(text, encoding="utf-8")
    command = [CHROMIUM, *QUIET, f"--user-data-dir={folder}/profile", "--dump-dom", copy.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_in_a_browser_the_keyboard_votes_and_the_policy_stops_foreign_script(exported, tmp_path):
    key = study.read_key(exported.key)
    seen = re.search(r'<pre id="seen">(.*?)</pre>', dump(exported.page, tmp_path, allowed=True), re.DOTALL)
    content = json.loads(html.unescape(seen[1]))
    votes = study.import_votes([saved(tmp_path, content)], key)
    assert len(votes) == 66 * 4 and {vote.rater_id for vote in votes} == {"ann"}
    given = {"relevance": "left", "aesthetics": "right", "defects": "tie", "overall": "left"}
    for vote_given in content["votes"]:
        assert vote_given["choice"] == given[vote_given["criterion"]] and vote_given["rt_ms"] >= 0
    assert '<pre id="seen">' not in dump(exported.page, tmp_path, allowed=False)
