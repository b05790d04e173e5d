"""The report as a person meets it: sorting, filter, flip and enlargement by hand and by keys, hostile captions."""

import json
import time

import numpy as np
import pytest
from PIL import Image

from eval.blocks import Bars, Curve, Dots, Gallery, Judged, Row, Section, Series, Table, Texts
from eval.figure import Figure
from eval.report import to_html
from tests.eval.browser import CHROMIUM, browser
from tests.eval.test_report import HOSTILE, provenance, report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
CAPTIONS = (
    *HOSTILE[:7],
    "a red fox 🦊 in snow",
    "a red house",
    "שלום עולם, a blue house",
    "👩‍👩‍👧 café",
    "a long one " * 60,
)
SHADES = {"input": (200, 30, 30), "again": (30, 160, 30), "difference": (30, 30, 200)}
PAIRS, ALONE = "#s1 .pairs", "#s1 .gallery:not(.pairs)"
CONTRAST = """(() => {
  const light = (c) => c.map((v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
    if (c[3] !== 0) return c.slice(0, 3); } return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll("body *:not(script):not(option)")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.getClientRects().length || e.closest("svg")) continue;
    const [a, b] = [light(rgba(getComputedStyle(e).color).slice(0, 3)), light(behind(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) found.push(`${e.tagName}.${e.className}: ${ratio.toFixed(2)}`);
  }
  return found;
})()"""


def shade(colour, size=24):
    return Image.new("RGB", (size, size), colour)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pairs = [([shade(colour) for colour in SHADES.values()], caption) for caption in CAPTIONS]
    alone = [(Image.fromarray(np.full((24, 24, 3), 9 * i, np.uint8)), caption) for i, caption in enumerate(CAPTIONS)]
    rows = [Row([name, Figure(value, 9, value - 1, value + 1), name], kind) for name, value, kind in
            (("b", 2.0, "model"), ("a", 10.0, "worse"), ("c", -1.0, "better"), ("d", 3.0, "unlike"))]  # fmt: skip
    charts = [
        Curve("curve", [Series(caption, [0, 1], [1.0, 2.0]) for caption in CAPTIONS[:3]]),
        Bars(CAPTIONS[0], [0, 1, 2], [1, 2], CAPTIONS[1], CAPTIONS[2]),
        Dots("dots", {caption: {"all": Figure(0.5, 9, 0.4, 0.6)} for caption in CAPTIONS[:4]}),
    ]
    sections = [
        Section("Pictures", [Gallery("pairs", pairs, 4, labels=tuple(SHADES)), Gallery("alone", alone, 4)]),
        Section("Rest", [Table("numbers", ["name", "value", "said"], rows, warning="red"), *charts,
                         Texts("texts", [*CAPTIONS, ("label", CAPTIONS[0])])]),
    ]  # fmt: skip
    models = [Judged(name=caption, checkpoint="abc123", sampler=caption) for caption in CAPTIONS[:3]]
    figures = {"x.fd[indomain-ssl:12345678|resize=none|n=5/9|split=train]": Figure(1.0, 5), CAPTIONS[0]: Figure(1.0, 5)}
    path = tmp_path_factory.mktemp("page") / "report.html"
    made = provenance(models=models, files={CAPTIONS[1]: "ff"})
    path.write_text(to_html(report(sections, figures, title=CAPTIONS[0], provenance=made)), "utf-8", "backslashreplace")
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture
def tab(chromium, page):
    chromium.size(1280, 900)
    chromium.complaints.clear()
    chromium.open(page, ready="!document.getElementById('seek').hidden")
    yield chromium
    assert not chromium.complaints, chromium.complaints


def colour(tab, selector):
    """The first pixel of a picture as it is shown, once it has been decoded."""
    return tuple(tab.run(
        f"(async (e) => {{ await e.decode(); const c = document.createElement('canvas').getContext('2d'); "
        f"c.drawImage(e, 0, 0); return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3); }})"
        f"(document.querySelector({json.dumps(selector)}))"
    ))  # fmt: skip


def shown(tab, part=PAIRS):
    return tab.run(f"document.querySelectorAll('{part} > li:not([hidden])').length")


def seek(tab, words):
    tab.run("document.getElementById('filter').select()")
    tab.type(words)
    time.sleep(0.4)  # it waits until nobody types


def test_a_table_is_sorted_by_keyboard_and_says_so(tab):
    def column():
        return tab.run(
            "[...document.querySelectorAll('#s2 tbody tr td:first-child')].map((c) => c.textContent).join('')"
        )

    tab.run("document.querySelectorAll('#s2 th button')[1].focus()")
    tab.press("Enter")
    assert column() == "cbda" and tab.run("document.querySelectorAll('#s2 th')[1].ariaSort") == "ascending"
    tab.press(" ")
    assert column() == "adbc" and tab.run("document.querySelectorAll('#s2 th')[1].ariaSort") == "descending"
    tab.press("Tab", "Enter")
    assert column() == "abcd" and tab.run("document.querySelectorAll('#s2 th')[1].ariaSort") is None


@pytest.mark.parametrize(
    ("words", "count"),
    [("red", 2), ("RED house", 1), ("house red", 1), ("שלום", 1), ("🦊", 1), ("👩‍👩‍👧", 1),
     ("café", 1), ("cafe\u0301", 1),
     ("\u202eאבג", 1), ("<script>", 1), ("onerror=alert(1)", 1), ("nothing of it", 0), ("  ", len(CAPTIONS))],
)  # fmt: skip
def test_the_filter_finds_captions_in_any_script(tab, words, count):
    seek(tab, words)
    assert shown(tab) == shown(tab, ALONE) == count
    total = 3 * len(CAPTIONS) + 1
    texts = shown(tab, ".texts")
    said = tab.run("document.getElementById('found').textContent")
    assert said == ("" if not words.strip() else f"{2 * count + texts} of {total}")
    tab.run("document.getElementById('filter').select()")
    tab.type("house")
    assert shown(tab) == count, "not before the typing has ended"


def test_holding_the_mouse_flips_in_place_and_a_click_enlarges(tab):
    first = f"{PAIRS} li:nth-child(8) div:nth-child(1) img"
    label = f"document.querySelector('{first}').parentNode.textContent"
    place = tab.place(first)
    box = f"JSON.stringify(document.querySelector('{first}').getBoundingClientRect())"
    before = tab.run(box)
    tab.mouse("mousePressed", place)
    tab.wait(f"document.querySelector('{first}').classList.contains('flipped')")
    assert colour(tab, first) == SHADES["again"] and tab.run(label) == "again" and tab.run(box) == before
    tab.mouse("mouseReleased", place)
    assert colour(tab, first) == SHADES["input"] and tab.run(label) == "input"
    assert not tab.run("document.getElementById('large').open"), "a long press is no click"
    last = f"{PAIRS} li:nth-child(8) div:nth-child(3) img"
    place = tab.place(last)
    tab.mouse("mousePressed", place)
    tab.wait(f"document.querySelector('{last}').classList.contains('flipped')")
    assert colour(tab, last) == SHADES["input"], "the last one shows the first"
    tab.mouse("mouseReleased", place)
    tab.click(last)
    assert tab.run("document.getElementById('large').open") and colour(tab, "#large img") == SHADES["difference"]


def test_a_finger_flips_too(tab):
    tab.size(390, 844)
    first = f"{PAIRS} li:nth-child(9) div:nth-child(1) img"
    place = tab.place(first)
    tab.touch("touchStart", place)
    tab.wait(f"document.querySelector('{first}').classList.contains('flipped')")
    assert colour(tab, first) == SHADES["again"]
    tab.touch("touchEnd")
    tab.wait(f"!document.querySelector('{first}').classList.contains('flipped')")
    assert colour(tab, first) == SHADES["input"]


def test_holding_space_flips_one_after_the_other_and_does_not_scroll(tab):
    first = f"{PAIRS} li:nth-child(8) img"
    tab.place(first)
    tab.run(f"document.querySelector('{PAIRS} li:nth-child(8) .strip').focus({{preventScroll: true}})")
    at = tab.run("scrollY")
    for name in ("again", "difference", "again"):
        tab.key(" ")
        assert colour(tab, first) == SHADES[name]
        tab.key(" ", down=False)
        assert colour(tab, first) == SHADES["input"]
    assert tab.run("scrollY") == at
    tab.key(" ")
    tab.run("document.activeElement.blur()")
    assert colour(tab, first) == SHADES["input"], "who leaves lets go"


def test_enter_enlarges_arrows_move_on_and_escape_gives_the_focus_back(tab):
    seek(tab, "red")
    tab.run(f"document.querySelector('{PAIRS} li:not([hidden]) .strip').focus()")
    tab.press("Enter")
    assert tab.run("document.getElementById('large').open && document.activeElement.id") == "flip"
    said = "document.getElementById('caption').textContent + '|' + document.getElementById('place').textContent"
    assert tab.run(said) == "a red fox 🦊 in snow|1 of 2"
    assert colour(tab, "#large img") == SHADES["input"]
    tab.key(" ")
    assert (
        colour(tab, "#large img") == SHADES["again"]
        and tab.run("document.getElementById('which').textContent") == "again"
    )
    tab.key(" ", down=False)
    assert colour(tab, "#large img") == SHADES["input"]
    tab.press("ArrowDown", "ArrowDown")
    assert colour(tab, "#large img") == SHADES["difference"]
    tab.press("ArrowRight")
    assert tab.run(said) == "a red house|2 of 2" and colour(tab, "#large img") == SHADES["input"]
    tab.press("ArrowRight", "ArrowLeft")
    assert tab.run(said) == "a red house|2 of 2", "what is filtered away is passed over"
    tab.press("Escape")
    assert not tab.run("document.getElementById('large').open")
    assert tab.run("document.activeElement.closest('li').querySelector('figcaption').textContent") == "a red house"
    tab.press("Enter")
    tab.click("#close")
    assert not tab.run("document.getElementById('large').open")
    tab.click(f"{ALONE} li:not([hidden]) img")
    assert tab.run("document.getElementById('flip').hidden && document.activeElement.id") == "close"


def test_hostile_captions_are_text_everywhere(tab):
    assert tab.run("document.title") == CAPTIONS[0]
    captions = tab.run(f"[...document.querySelectorAll('{PAIRS} figcaption')].map((c) => c.textContent)")
    assert captions == [caption for caption in CAPTIONS]
    names = tab.run(f"[...document.querySelectorAll('{PAIRS} .strip')].map((s) => s.getAttribute('aria-label'))")
    assert names == [f"Enlarge input, again, difference: {caption}" for caption in CAPTIONS]
    assert tab.run(
        "[...document.querySelectorAll('figcaption, .csv, .texts .hostile')].every((e) => !e.children.length)"
    )
    numbers = tab.run("[...document.querySelectorAll('.csv')].map((c) => c.textContent).join('')")
    assert CAPTIONS[0] in numbers and CAPTIONS[1].replace('"', '""') in numbers
    for at in range(len(CAPTIONS)):
        tab.run(f"document.querySelectorAll('{PAIRS} .strip')[{at}].focus()")
        tab.press("Enter")
        assert tab.run("document.getElementById('caption').textContent") == CAPTIONS[at]
        assert tab.run("document.getElementById('caption').children.length") == 0
        tab.press("Escape")
    assert tab.run("document.querySelectorAll('iframe, [onerror], [onload], [onmouseover]').length") == 0
    assert tab.run("getComputedStyle(document.querySelectorAll('#s1 figcaption')[9]).direction") == "rtl"
    assert tab.run("getComputedStyle(document.querySelectorAll('#s1 figcaption')[8]).direction") == "ltr"


def test_numbers_open_without_a_script_and_lie_in_full(tab):
    tab.click("#s2 details.numbers summary")
    assert tab.run("document.querySelector('#s2 .csv').checkVisibility()")
    assert tab.run("document.querySelector('#s2 .csv').textContent").startswith("series,step,loss,low,high\n")


@pytest.mark.parametrize("width", [320, 390])
def test_on_a_phone_nothing_is_wider_than_the_screen(tab, width):
    tab.size(width, 844)
    tab.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert tab.run("document.documentElement.scrollWidth") == width
    tab.run(f"document.querySelector('{PAIRS} .strip').focus()")
    tab.press("Enter")
    assert tab.run("(r => r.left >= 0 && r.right <= innerWidth && r.bottom <= innerHeight)"
                   "(document.getElementById('large').getBoundingClientRect())")  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(tab, scheme):
    tab.media("prefers-color-scheme", scheme)
    tab.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert tab.run(CONTRAST) == []
    dark = tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"
    assert dark == (scheme == "dark")


def test_nothing_moves_for_who_wants_it_so(tab):
    tab.media("prefers-reduced-motion", "reduce")
    moving = (
        "[...document.querySelectorAll('*')].filter((e) => { const s = getComputedStyle(e); return s.scrollBehavior"
    )
    assert (
        tab.run(f"{moving} === 'smooth' || s.transitionDuration !== '0s' || s.animationName !== 'none'; }}).length")
        == 0
    )


def test_the_policy_stops_what_is_not_the_page_s_own(chromium, page, tmp_path):
    copy = tmp_path / "copy.html"
    text = page.read_text(encoding="utf-8").replace("</body>", "<script>document.title = 'foreign'</script></body>")
    copy.write_text(text, encoding="utf-8")
    chromium.open(copy, ready="!document.getElementById('seek').hidden")
    assert chromium.run("document.title") == CAPTIONS[0]
    assert any("Content Security Policy" in json.dumps(one) for one in chromium.complaints), "complaints are heard"
