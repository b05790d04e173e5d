"""Charts: valid SVG without styles or loads, equal bytes, text that stays text, honest thinning."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import charts
from eval.blocks import Bars, Curve, Dots, Pair, Point, Scatter, Series, Tradeoff, Usage
from eval.figure import Figure, missing
from eval.labels import spread
from eval.svg import inline
from eval.tradeoff import MANY, tradeoff


def curve(**changes):
    x = np.arange(1, 50)
    series = [Series("train", x, 1 / x), Series("validation", [1, 49], [1.0, 0.1])]
    return Curve(**({"title": "loss", "series": series} | changes))


DOTS = Dots("colour", {"flow": {"all": Figure(0.5, 9, 0.4, 0.6), "unseen": missing("none")}}, reference=0.1)
BARS = Bars("psnr", [20.0, 21.0, 22.5], [3, 0], "dB", "pictures", reference=2.0)
POINTS = [
    Point("flat", 1.0, Figure(24.0, 9, 23.5, 24.5)),
    Point("near", 1.1, Figure(24.1, 9)),
    Point("k-means", 0.2, Figure(20.0, 9, 19.0, 21.0), floor=True),
]
SCATTER = Scatter("rate", POINTS, "bits per pixel", "PSNR in dB")
PAIRS = [
    Pair("1", Figure(0.2, 9, 0.1, 0.3), Figure(3.0, 9, 2.0, 4.0)),
    Pair("3", Figure(0.3, 9), Figure(5.0, 9), hollow=True),
    Pair("nowhere", Figure(float("nan"), 9), Figure(5.0, 9)),
]
TRADEOFF = Tradeoff(
    "trade", {"plain": PAIRS}, "gain", "cost", PAIRS[:2], PAIRS[1], [Pair("real", *[Figure(0.4, 9)] * 2)], limit=0.25
)
DRAWN = [
    lambda prefix="p-": charts.curve(curve(), prefix, log=False),
    lambda prefix="p-": charts.curve(curve(), prefix, log=True),
    lambda prefix="p-": charts.usage(Usage("codes", [5, 3, 0, 1]), prefix),
    lambda prefix="p-": charts.dots(DOTS, prefix),
    lambda prefix="p-": charts.bars(BARS, prefix),
    lambda prefix="p-": charts.scatter(SCATTER, prefix),
    lambda prefix="p-": tradeoff(TRADEOFF, prefix),
]
NAMES = ["linear", "log", "usage", "dots", "bars", "scatter", "tradeoff"]


@pytest.mark.parametrize("draw", DRAWN, ids=NAMES)
def test_chart_obeys_the_policy_and_repeats_its_bytes(draw):
    svg = draw()
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") and root.get("viewBox")
    for element in root.iter():
        assert element.tag in {"svg", "g", "path", "defs", "use", "text", "clipPath", "rect"}
        assert "style" not in element.attrib and "font" not in element.attrib
        assert not [v for v in element.attrib.values() if "http" in v]
    assert draw() == svg and draw("q-") != svg


@pytest.mark.parametrize("draw", DRAWN, ids=NAMES)
def test_every_colour_of_a_chart_has_a_dark_twin(draw):
    known = {light for light, _ in charts.PALETTE.values()} | {"none"}
    used = {e.get(kind) for e in ElementTree.fromstring(draw()).iter() for kind in ("fill", "stroke")} - {None}
    assert used <= known, used - known
    assert all(light in charts.css() and dark in charts.css() for light, dark in charts.PALETTE.values())


@pytest.mark.parametrize("draw", DRAWN, ids=NAMES)
def test_a_chart_holds_nothing_that_a_browser_makes_no_use_of(draw):
    svg = draw()
    root = ElementTree.fromstring(svg)
    values = [value for e in root.iter() for name, value in e.attrib.items() if name != "id"]
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    used = {name for value in values for name in re.findall(r"#(p-[^)]+)", value)}
    assert len(ids) == len(set(ids)) and set(ids) == used  # every reference has its target, every target a reference
    assert not [e for e in root.iter() if e.get("font-family") or (e.tag == "g" and not e.attrib)]
    assert not re.search(r"\d\.\d{3}", svg) and not re.search(r">\s+<", svg)


def drawn_lines(svg):
    """All straight lines of an SVG with their looks, whether each has a path of its own or not."""
    found = []
    for path in svg.iter():
        look = dict(part.split(": ") for part in path.get("style", "").split("; ") if ": " in part) | path.attrib
        if path.tag.endswith("path") and look.get("fill") == "none" and look.get("stroke"):
            numbers = r"M ([-\d.]+) ([-\d.]+) +L ([-\d.]+) ([-\d.]+) *(?=M|$)"
            ends = re.findall(numbers, " ".join(path.get("d").split()))
            found += [(look["stroke"], *(float(number) for number in line)) for line in ends]
    return sorted(found)


@pytest.mark.parametrize("draw", DRAWN, ids=NAMES)
def test_every_line_that_matplotlib_draws_is_in_the_chart(draw, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "inline", lambda svg, *rest: drawn.append(svg) or inline(svg, *rest))
    ours = drawn_lines(ElementTree.fromstring(draw()))
    theirs = drawn_lines(ElementTree.fromstring(drawn[0]))
    assert len(ours) == len(theirs) >= 6
    for (colour, *ends), (other, *there) in zip(ours, theirs, strict=True):
        assert colour == other and ends == pytest.approx(there, abs=0.0051)


@pytest.mark.parametrize("low", [1.3, 0.3, 0.09, 1e-5])
def test_a_logarithmic_axis_has_labels_whatever_it_spans(low: float):
    x = np.arange(1, 50)
    svg = charts.curve(curve(series=[Series("loss", x, np.geomspace(3.4, low, 49))], y_label="y"), "p-", log=True)
    heights = {
        text.text for text in ElementTree.fromstring(svg).iter("text") if text.text and text.get("text-anchor") == "end"
    }
    assert len(heights) >= 2, heights


def test_no_two_series_of_a_chart_look_alike():
    many = [Series(f"s{number}", [1, 2], [number, number + 1]) for number in range(30)]
    root = ElementTree.fromstring(charts.curve(curve(series=many), "p-", log=False))
    drawn = [
        (path.get("stroke"), path.get("stroke-dasharray"))
        for path in root.iter("path")
        if path.get("stroke-width") == "1.5"
    ]
    assert len(drawn) == 30 == len(set(drawn))
    chips = re.findall(r'stroke="(.*?)" .*?stroke-dasharray="(.*?)"', charts.legend([one.name for one in many]))
    assert len(chips) == 30 == len(set(chips))


def places(svg):
    """Where each label of a chart stands: its text and the position that its group or itself is moved to."""
    found = {}
    for text in ElementTree.fromstring(svg).iter("text"):
        moved = re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", text.get("transform", ""))
        x, y = (float(moved[1]), float(moved[2])) if moved else (float(text.get("x")), float(text.get("y")))
        found[text.text] = x, y
    return found


def test_every_point_has_its_name_and_no_two_names_lie_on_each_other():
    many = [Point(f"p{number}", 1 + number / 100, Figure(20 + number / 100, 9)) for number in range(8)]
    many.append(Point("above", 1.5, Figure(40.0, 9)))  # beside it the others have one height
    found = places(charts.scatter(Scatter("rate", many, "x", "y"), "p-"))
    heights = sorted(found[point.name][1] for point in many)
    assert min(b - a for a, b in pairwise(heights)) > 8  # a line of letters is some 8 points
    assert found["p7"][1] < found["p0"][1]  # SVG counts downwards: the highest name belongs to the highest point


def test_names_stay_in_the_chart_however_many_points_lie_at_its_top(recwarn):
    many = [Point(f"p{number:02}", 1 + number / 100, Figure(26 + number / 1e3, 9)) for number in range(40)]
    many += [Point("low", 1.5, Figure(20.0, 9))]
    svg = charts.scatter(Scatter("rate", many, "x", "y"), "p-")
    height = float(ElementTree.fromstring(svg).get("viewBox").split()[3])
    found = [places(svg)[point.name][1] for point in many]
    assert 0 < min(found) and max(found) < height and min(b - a for a, b in pairwise(sorted(found))) > 8
    assert not recwarn.list  # matplotlib warns of an axis that its names leave no room
    assert found[-1] > height / 2 and found[:-1] == sorted(found[:-1], reverse=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.001, 0.05))
def test_spread_heights_keep_their_order_and_move_only_where_they_must(heights, step):
    given_order = sorted(heights)
    moved = spread(given_order, step)
    assert all(b - a >= step - 1e-9 for a, b in pairwise(moved)) and moved[-1] <= 1 and moved[0] > 1e-9 - 1
    if all(b - a >= step for a, b in pairwise(given_order)):
        assert moved == pytest.approx(given_order)


def test_an_interval_is_drawn_where_there_is_one_and_a_point_without_a_value_is_not():
    def lines(points):
        return charts.scatter(Scatter("rate", points, "x", "y"), "p-").count('stroke-width="1.6"')

    assert (lines(POINTS), lines(POINTS[1:2])) == (2, 0)
    gone = [Point("lost", 1.0, Figure(float("nan"), 9)), Point("endless", float("inf"), Figure(1.0, 9))]
    assert not {"lost", "endless"} & places(charts.scatter(Scatter("rate", [*POINTS, *gone], "x", "y"), "p-")).keys()
    ElementTree.fromstring(charts.scatter(Scatter("rate", [], "x", "y"), "p-"))


def test_a_codebook_of_any_size_makes_a_small_chart_of_the_same_area(monkeypatch):
    drawn = []
    monkeypatch.setattr(charts.Axes, "stairs", lambda _, heights, edges, **style: drawn.append((heights, edges)))
    counts = np.random.default_rng(0).poisson(3, 20_011)
    charts.usage(Usage("codes", counts.tolist()), "p-")
    charts.usage(Usage("codes", [5, 3, 0, 1]), "p-")
    heights, edges = drawn[0]
    assert (
        len(heights) == charts.POINTS and (heights * np.diff(edges)).sum() == pytest.approx(1) and edges[-1] == 20_011
    )
    assert np.diff(heights).max() < 1e-12  # falling but for rounding
    assert drawn[1][0] == pytest.approx(np.array([5, 3, 1, 0]) / 9) and list(drawn[1][1]) == [0, 1, 2, 3, 4]


def test_a_reference_of_bars_is_a_line():
    line = "stroke-dasharray"
    plain = Bars("psnr", [0, 1, 2], [3, 1], "x", "y")
    assert charts.bars(BARS, "p-").count(line) == charts.bars(plain, "p-").count(line) + 1


def test_user_settings_do_not_reach_the_charts(monkeypatch):
    import matplotlib

    before = DRAWN[0]()
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.facecolor": "red"}):
        assert DRAWN[0]() == before
        assert matplotlib.rcParams["font.size"] == 30


def test_mathematics_and_markup_in_labels_are_text():
    svg = charts.curve(curve(x_label="$\\frac{", y_label="<b>&"), "p-", log=False)
    texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert "$\\frac{" in texts and "<b>&" in texts
    assert "&lt;script&gt;" in charts.legend(["<script>"]) and "<script>" not in charts.legend(["<script>"])


def test_long_lines_are_averaged_not_sampled():
    y = np.zeros(100_000)
    y[77_777] = 1000.0
    _, thinned = charts.thin(Series("s", np.arange(len(y)), y))
    assert len(thinned) == charts.POINTS
    assert thinned.mean() == pytest.approx(y.mean())


@pytest.mark.parametrize("y", [[np.nan] * 3, [1.0, np.nan, np.inf], []], ids=["all nan", "some", "empty"])
def test_values_that_are_not_finite_are_gaps(y):
    block = curve(series=[Series("s", list(range(len(y))), y)])
    ElementTree.fromstring(charts.curve(block, "p-", log=False))


def test_logarithmic_scale_is_offered_only_where_all_is_positive():
    assert charts.positive(curve())
    assert not charts.positive(curve(series=[Series("s", [0, 1], [1.0, 0.0])]))
    assert not charts.positive(curve(series=[Series("s", [0], [np.nan])])) and not charts.positive(curve(series=[]))


def test_lengths_that_disagree_are_named():
    with pytest.raises(ValueError, match="'s' has 2 x values and 1 y values"):
        charts.thin(Series("s", [0, 1], [1.0]))


def words(svg):
    return {element.text for element in ElementTree.fromstring(svg).iter("text")}


def test_a_trade_off_names_its_points_and_leaves_out_what_is_nowhere():
    assert {"1", "3", "real", "gain", "cost"} <= words(tradeoff(TRADEOFF, "p-")) and "nowhere" not in words(
        tradeoff(TRADEOFF, "p-")
    )


def test_of_many_points_a_trade_off_names_the_front_and_the_ends_of_a_series():
    many = [Pair(f"s{i}", Figure(0.1 * i, 9), Figure(1.0 + i, 9)) for i in range(MANY + 2)]
    shown = words(tradeoff(Tradeoff("trade", {"plain": many}, "gain", "cost", [many[3]]), "p-"))
    assert {name for name in shown if name.startswith("s")} == {"s0", "s3", f"s{MANY + 1}"}
