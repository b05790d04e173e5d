"""The report: hostile text stays text, nothing loads, equal input gives equal bytes, JSON is finite and named."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from itertools import product

import numpy as np
import pytest
from PIL import Image

from eval.blocks import Bars, Point, Scatter
from eval.display import number
from eval.page import bare, data_uri, write_whole
from eval.report import (
    Column,
    Curve,
    Dots,
    Figure,
    Gallery,
    Judged,
    Provenance,
    Report,
    Row,
    Section,
    Series,
    Table,
    Texts,
    Usage,
    headline,
    missing,
    to_html,
    to_json,
    write_report,
)

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><svg onload=alert(1)>",
    "</style><iframe src='https://example.org'>",
    "{{7*7}} {% raw %} ${7*7}",
    "' onmouseover='alert(1)",
    "\u202edesrever\u202c \u200fאבג &lt;b&gt; &#60;i&#62;",
    "x" * 10_000,
    "null \x00 bell \x07 lone \ud800 🦊",
)
TAGS = set(
    "html head meta title style body header h1 p bdi div span dl dt dd details summary pre nav ol li a main section"
    " h2 h3 table thead tbody tr th td button small ul figure img figcaption b label input svg g path defs use text"
    " rect clippath footer script dialog output".split()
)
REQUIRED = [
    "vae.psnr",
    "vqvae.psnr",
    "vqvae.usage",
    "vqvae.patch_kmeans_psnr",
    "caption.scene.colour",
    "text.nats_per_token",
    "text.exact_nats_per_token",
    *(f"{m}.scene.{a}" for m in ("latent", "mdlm") for a in ("background", "colour", "shape", "size", "relation")),
]


class Elements(HTMLParser):
    """Collects what a browser would make of the page."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text, self.rows = set(), [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


def parse(page):
    found = Elements()
    found.feed(page)
    found.close()
    return found


def picture(seed=0, size=32):
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (size, size, 3), dtype=np.uint8))


def provenance(**changes):
    given = {
        "commit": "abc123",
        "dirty": False,
        "recipe": "r.toml",
        "recipe_hash": "ff00",
        "command": "palimpsest run r.toml",
    }
    return Provenance(**(given | {"command": "palimpsest run r.toml"} | changes))


def report(sections=(), figures=None, **changes):
    given = {"title": "A run", "summary": "It went well.", "provenance": provenance()}
    return Report(**(given | changes), sections=sections, figures=figures or {})


def hostile_report(text, charts=()):
    figure = Figure(0.5, 3, 0.4, 0.6, text)
    blocks = [
        Table(text, [Column(text), "n"], [Row([text, figure], "judge"), [missing(text), None]], text, text),
        Gallery(text, [(picture(), text), ([picture(1)], text)], 4, text, (text,)),
        Texts(text, [text, (text, text)], text),
        *charts,
    ]
    sections = [Section(text, blocks, text), Section(text, empty=text)]
    names = {"recipe": text, "recipe_hash": text, "command": text, "commit": text, "machine": text}
    maps = {"seeds": {text: 1}, "artefacts": {text: text}, "versions": {text: text}, "wall_time": {text: 3.0}}
    maps |= {"data": {"folder": text, "hash": text, "split": text}, "files": {text: text}}
    maps |= {"models": [Judged(**dict.fromkeys(("name", "checkpoint", "pictures", "weights", "sampler"), text))]}
    figures = {text: figure, "vae.psnr": missing(text)}
    return report(sections, figures, title=text, summary=text, provenance=provenance(**names, **maps, dirty=True))


def hostile_charts():
    """Every hostile text as a label, a series and a title, in few charts because drawing is slow."""
    series = [Series(text, [0, 1, 2], [3.0, 2.0, 1.0]) for text in HOSTILE]
    dots = {text: {text: Figure(0.5, 9, 0.4, 0.6, text)} for text in HOSTILE}
    first, second, third = HOSTILE[0], HOSTILE[1], HOSTILE[8]
    points = [Point(text, number, Figure(number, 9, 0, 9, text)) for number, text in enumerate(HOSTILE, 1)]
    return [
        Curve(first, series, second, third, note=first),
        Dots(second, dots),
        Usage(third, [3, 2, 0], second),
        Scatter(first, points, second, third, note=first),
        Bars(second, [0, 1, 2], [3, 1], third, first, note=second),
    ]


def policy(page):
    return re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_makes_no_element_and_no_handler(text):
    assert_harmless(parse(to_html(hostile_report(text))))


def test_hostile_text_in_charts_makes_no_element_and_no_handler():
    assert_harmless(parse(to_html(hostile_report("plain", hostile_charts()))))


def assert_harmless(found):
    assert found.tags <= TAGS, found.tags - TAGS
    assert not [a for a in found.attributes if a[1].startswith("on") or a[1] in ("style", "srcset", "srcdoc")]
    for tag, name, value in found.attributes:
        if name == "src":
            assert value.startswith("data:image/")
        if name in ("href", "xlink:href"):
            assert value.startswith("#"), (tag, value[:40])


def test_the_check_for_hostile_text_finds_a_page_that_does_not_escape():
    found = parse(to_html(report()).replace("It went well.", HOSTILE[1]))
    assert ("img", "onerror", "alert(1)>".rstrip(">")) in found.attributes


def test_hostile_text_is_shown_as_it_was_written():
    text = "</script>{{7*7777}}<b> & \"quotes\" 'too'"
    shown = "".join(parse(to_html(hostile_report(text))).text)
    assert shown.count(text) > 10
    assert "54439" not in re.sub(r"<svg.*?</svg>", "", shown, flags=re.DOTALL)


def test_policy_allows_exactly_our_style_and_script():
    page = to_html(hostile_report("x"))
    rules = dict(part.strip().split(" ", 1) for part in policy(page).split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for kind in ("style", "script"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in policy(page)


def test_page_names_no_address_on_the_network():
    charts = [Usage("codes", [3, 2, 0])]
    page = to_html(hostile_report("plain", charts)).replace("http-equiv", "")
    page = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert "http" not in page and "@import" not in page
    assert not re.findall(r"url\((?!#)", page)


def test_equal_reports_give_equal_bytes(tmp_path):
    one = hostile_report("a <b> c", [Curve("loss", [Series("train", [0, 1], [2.0, 1.0])])])
    first, second = write_report(one, tmp_path / "one"), write_report(one, tmp_path / "two")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert [p.name for p in first] == ["report.html", "report.json"]
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["report.html", "report.json"]


def test_ids_are_unique_and_every_reference_has_a_target():
    curves = [Curve("loss", [Series("train", [0, 1], [2.0, -1.0])]) for _ in range(2)]
    found = parse(to_html(report([Section("s", [*curves, Usage("u", [1, 2])])])))
    ids = [value for _, name, value in found.attributes if name == "id"]
    uses = [value[1:] for tag, name, value in found.attributes if name == "href" and tag == "use"]
    clips = [value[5:-1] for _, name, value in found.attributes if name == "clip-path"]
    assert len(ids) == len(set(ids))
    assert uses and clips and set(uses) | set(clips) <= set(ids)


def test_json_holds_every_required_name_with_its_five_keys():
    figures = {name: Figure(0.5, 512, 0.4, 0.6, "held-out") for name in REQUIRED}
    content = json.loads(json.dumps(to_json(report(figures=figures)), allow_nan=False))
    assert content["schema"] == 1
    for name in REQUIRED:
        assert content["figures"][name] == {"value": 0.5, "n": 512, "low": 0.4, "high": 0.6, "source": "held-out"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_json_has_a_reason_in_place_of_a_number_that_is_not_finite(value):
    figures = {"a": Figure(value, 3, source="s"), "b": missing("no captions"), "c": Figure(1.0, 1, -math.inf, math.inf)}
    content = json.loads(json.dumps(to_json(report(figures=figures)), allow_nan=False))["figures"]
    assert content["a"]["value"] is None and "n = 3" in content["a"]["reason"]
    assert content["b"] == {"value": None, "reason": "no captions"}
    assert (content["c"]["value"], content["c"]["low"], content["c"]["high"]) == (1.0, None, None)


def test_json_takes_numpy_numbers_and_gathers_texts():
    figures = {"a": Figure(np.float32(0.5), np.int64(3), np.float64(0.25), np.float32(0.75), "s")}
    sections = [Section("t", [Texts("captions", ["one", ("real", "two")])])]
    content = json.loads(json.dumps(to_json(report(sections, figures)), allow_nan=False))
    assert content["figures"]["a"] == {"value": 0.5, "n": 3, "low": 0.25, "high": 0.75, "source": "s"}
    assert content["texts"] == [{"title": "captions", "items": ["one", ["real", "two"]]}]


def test_empty_sections_and_blocks_say_so():
    blocks = [Table("t", ["a"], []), Gallery("g", []), Texts("x", []), Curve("c", []), Usage("u", [0, 0])]
    shown = "".join(parse(to_html(report([Section("nothing"), Section("empty blocks", blocks)]))).text)
    for sentence in ("Nothing to show", "no rows", "No pictures", "No texts", "No code was counted"):
        assert sentence in shown


def test_missing_figure_shows_its_reason_at_the_top():
    page = to_html(report(figures={"vae.psnr": missing("the recipe has no VAE")}))
    assert page.count("the recipe has no VAE") >= 2


def test_uncommitted_changes_are_flagged():
    assert "uncommitted changes" in to_html(report(provenance=provenance(dirty=True)))
    assert "uncommitted changes" not in to_html(report())


def test_headline_sets_models_above_judges_and_chance_and_slices_side_by_side():
    parts = ("", ".two", ".unseen")
    subjects = ("chance", "real", "recon.vae", "mdlm", "latent")
    figures = {f"{s}.scene.{a}{p}": Figure(0.5, 9) for s, a, p in product(subjects, ("colour", "shape"), parts)}
    section = headline(figures | {"vae.psnr": Figure(30.0, 5), "caption.scene.colour": Figure(0.9, 5)})
    overview = next(block for block in section.blocks if isinstance(block, Table) and "all held-out" in block.title)
    assert [row.kind for row in overview.rows] == ["model", "model", "judge", "judge", "floor"]
    slices = next(block for block in section.blocks if block.title == "Scene accuracy by slice")
    assert [getattr(c, "name", c) for c in slices.columns][2:] == ["all", "two objects", "unseen pairs"]
    panels = [block for block in section.blocks if isinstance(block, Dots)]
    assert [panel.title for panel in panels] == ["colour", "shape"] and panels[0].reference == 0.5
    assert "chance" not in panels[0].rows
    to_html(report([section], figures))


def test_headline_of_nothing_is_an_empty_section():
    assert headline({}).blocks == []


def test_figures_of_one_kind_are_told_apart_by_their_stage_and_alone_keep_their_label():
    names = ["l1.psnr", "l2.psnr", "l1.ssim", "vae.psnr"]
    (table,) = headline({name: Figure(20.0, 9) for name in names}).blocks
    assert [row.cells[0] for row in table.rows] == ["l1: PSNR", "l2: PSNR", "SSIM", "VAE PSNR"]


def test_no_number_ends_in_a_point():
    assert [number(value) for value in (1005.4, 12.5, 0.25, 100.0)] == ["1005", "12.50", "0.2500", "100.0"]


def test_row_of_wrong_length_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'sums'.*1 cells for 2 columns"):
        to_html(report([Section("s", [Table("sums", ["a", "b"], [["x"]])])]))


def test_pictures_lose_all_that_is_not_pixels():
    image = picture()
    image.info |= {"icc_profile": b"secret", "exif": b"damaged", "comment": "secret"}
    assert bare(image).info == {}
    assert np.array_equal(np.asarray(bare(image)), np.asarray(image))
    assert data_uri(picture(size=32)).startswith("data:image/png")
    assert data_uri(picture(size=300)).startswith("data:image/webp")


def test_a_page_says_where_its_pictures_are_altered_and_only_there():
    def page(size):
        return to_html(report([Section("s", [Gallery("g", [([picture(size=size)] * 2, "")])])]))

    said = "Shown as WebP of quality"
    assert page(160).count(said) == 0 == page(160).count("image/webp")
    assert page(161).count(said) == 1 and page(161).count("image/webp") == 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_any_mode_of_picture_is_shown(mode):
    assert bare(Image.new(mode, (5, 7))).size == (5, 7)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_whole(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
