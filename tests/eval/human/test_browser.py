"""The study page as a person meets it: keys, ties, autosave, zoom, saved files, hostile captions, a strict policy."""

import html
import json

import pytest

from eval.human.export import export
from eval.human.importing import import_votes
from eval.human.key import read_key
from eval.page import fingerprint
from tests.eval.browser import CHROMIUM, browser
from tests.eval.human.made import data_of, pictures, study

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
WORDS = [
    "</script><script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\"> & <b>bold</b> &lt;",
    "\"double\" 'single' `back` \\u0041 {{ 7 * 7 }} ${1}",
    "שלום עולם, a house \u202e on the left",
    "😀 👩‍👩‍👧 café naïve",
    "a long one " * 60,
]
ASKED = ("relevance", "aesthetics", "defects")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    asked = study(block=6, raters=2, criteria=ASKED, title="<i>Which</i> & why?")
    return export(asked, [w.strip() for w in WORDS], pictures(folder / "in", len(WORDS)), folder / "out")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


def pages(made):
    return sorted((made.bundle / "pages").iterdir())


def begin(tab, path, rater, query=""):
    tab.open(path, query)
    tab.run("localStorage.clear()")
    tab.open(path, query)
    if rater:
        tab.run(f"document.getElementById('rater').value = {rater!r}")
    tab.click("#begin")


def votes(tab):
    return json.loads(tab.run("result()"))


def test_a_whole_block_by_keyboard_is_saved_and_imported(made, tab, tmp_path):
    path = pages(made)[0]
    count = len(data_of(path.read_text())["items"])
    begin(tab, path, "", "?PROLIFIC_PID=5f3&STUDY_ID=s1&SESSION_ID=x9")
    assert tab.run("document.getElementById('rater').readOnly")
    for _ in range(count):
        tab.press("1", "3", "4", "2", "2")  # once too often: nothing more is answered
        tab.press("ArrowRight")
    assert tab.run("document.getElementById('thanks').textContent") == "Thank you"
    assert tab.run("document.getElementById('code').textContent") == data_of(path.read_text())["code"]
    tab.click("#download")
    saved = json.loads(tab.downloaded("votes.json"))
    assert saved == json.loads(tab.run("document.getElementById('copy').value"))
    assert saved["rater"] == "5f3" and saved["panel"] == {"PROLIFIC_PID": "5f3", "STUDY_ID": "s1", "SESSION_ID": "x9"}
    assert len(saved["votes"]) == 3 * count
    given = {vote["criterion"]: vote["choice"] for vote in saved["votes"]}
    assert given == {"relevance": "left", "aesthetics": "tie", "defects": "both_bad"}
    assert all(0 <= vote["rt_ms"] < 60_000 for vote in saved["votes"])
    (tmp_path / "votes.json").write_text(json.dumps(saved))
    read = import_votes([tmp_path / "votes.json"], read_key(made.key), names=True)
    assert {vote.rater_id for vote in read.votes} == {"5f3"} and len(read.votes) == 3 * count


def test_answers_outlive_a_reload_and_can_be_loaded_from_a_file(made, tab, tmp_path):
    first, other = pages(made)[:2]
    begin(tab, first, "bob")
    tab.press("2", "1", "ArrowRight", "3")
    tab.click("#tags-left button")
    before = votes(tab)
    assert len(before["votes"]) == 3 and len(before["tags"]) == 1
    tab.open(first)
    assert tab.run("document.getElementById('begin').textContent") == "Go on"
    assert votes(tab) == before
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps(before))
    tab.click("#anew")
    assert votes(tab) == before, "one press deletes nothing"
    tab.click("#anew")
    assert votes(tab)["votes"] == []
    tab.choose("#load", saved)
    tab.wait("result().includes('bob')")
    assert votes(tab) == before
    tab.open(other)
    assert votes(tab)["votes"] == [], "another block has answers of its own"
    tab.choose("#load", saved)
    tab.wait("document.getElementById('storage').textContent.includes('another page')")
    assert votes(tab)["votes"] == []


def test_hostile_captions_are_text_and_go_in_their_own_direction(made, tab):
    path = pages(made)[0]
    begin(tab, path, "eve")
    seen = set()
    for _ in data_of(path.read_text())["items"]:
        seen.add(tab.run("document.getElementById('prompt').textContent"))
        assert tab.run("document.getElementById('prompt').children.length") == 0
        tab.press("ArrowRight")
    assert seen == {word.strip() for word in WORDS}
    assert tab.run("document.title") == "<i>Which</i> & why?"
    assert tab.run("document.getElementById('prompt').dir") == "auto"
    tab.run("document.getElementById('prompt').textContent = 'שלום'")
    assert tab.run("getComputedStyle(document.getElementById('prompt')).direction") == "rtl"


def test_pictures_load_despite_the_zeros_behind_them_and_can_be_seen_closely(made, tab, tmp_path):
    begin(tab, pages(made)[0], "zoe")
    tab.wait(
        "document.getElementById('left').naturalWidth === 16 && document.getElementById('right').naturalWidth === 16"
    )
    tab.press("z")
    assert tab.run("document.getElementById('zoom').open && document.querySelectorAll('#zoomed img').length === 2")
    tab.press("1")
    assert votes(tab)["votes"] == [], "keys do not vote behind the pictures"
    tab.press("z")
    tab.click(".look[data-side=right]")
    assert tab.run("document.querySelectorAll('#zoomed img').length") == 1
    tab.press("Escape")
    assert not tab.run("document.getElementById('zoom').open")
    webp = export(study(block=6, raters=1, encoder="webp"), [f"p{i}" for i in range(6)], pictures(tmp_path / "in", 6),
                  tmp_path / "webp")  # fmt: skip
    begin(tab, pages(webp)[0], "zoe")
    tab.wait("document.getElementById('left').naturalWidth === 16")


def test_grades_are_given_with_five_keys(tab, tmp_path):
    made = export(study(mode="likert", block=10, raters=1, criteria=ASKED), [f"p{i}" for i in range(5)],
                  pictures(tmp_path / "in", 5), tmp_path / "out")  # fmt: skip
    begin(tab, pages(made)[0], "gus")
    tab.press("5", "1", "6", "3", "ArrowRight", "ArrowLeft", "ArrowUp", "2")
    given = {vote["criterion"]: vote["choice"] for vote in votes(tab)["votes"]}
    assert given == {"relevance": "5", "aesthetics": "1", "defects": "2"}, (
        "6 is no grade; the last answer can be changed"
    )


def test_a_name_is_asked_for(made, tab):
    begin(tab, pages(made)[0], "=cmd()")
    assert "letters, digits" in tab.run("document.getElementById('start-problem').textContent")
    assert tab.run("document.getElementById('ask').hidden")


def test_the_policy_stops_script_that_is_not_the_page_s_own(made, tab, tmp_path):
    script = "document.title = 'foreign'"
    for allowed in (False, True):
        text = pages(made)[0].read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>")
        if allowed:
            text = text.replace(
                "script-src ", f"script-src {html.escape(fingerprint(script))} ".replace("&#x27;", "&#39;")
            )
        copy = tmp_path / "copy.html"
        copy.write_text(text, encoding="utf-8")
        tab.open(copy)
        assert (tab.run("document.title") == "foreign") == allowed


def test_on_a_phone_nothing_is_wider_than_the_screen(made, tab, tmp_path):
    begin(tab, pages(made)[0], "pam")
    tab.look(tmp_path / "phone.png", 360, 740)
    assert tab.run("document.documentElement.scrollWidth") <= 360
