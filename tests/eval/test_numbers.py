"""The numbers of charts as CSV: all of them, exact, and harmless in a spreadsheet."""

import csv
import io

import pytest

from eval.blocks import Bars, Curve, Dots, Point, Scatter, Series, Usage
from eval.charts import POINTS
from eval.figure import Figure, missing
from eval.numbers import as_csv, thinned

HOSTILE = ("=cmd|' /C calc'!A0", "+1", "-1+2", "@SUM(A1)", 'a "quoted", one', "two\nlines", "<b>", "שלום \u202e 🦊")


def rows(block):
    return list(csv.reader(io.StringIO(as_csv(block))))


def test_every_kind_of_chart_has_a_line_for_every_point():
    figure = Figure(0.5, 9, 0.4, 0.6)
    curve = Curve("c", [Series("a", [0, 1], [0.1, 1 / 3], [0.0, 0.2], [0.2, 0.4]), Series("b", [5], [2.0])])
    assert rows(curve) == [
        ["series", "step", "loss", "low", "high"],
        ["a", "0.0", "0.1", "0.0", "0.2"],
        ["a", "1.0", repr(1 / 3), "0.2", "0.4"],
        ["b", "5.0", "2.0", "", ""],
    ]
    usage = [["rank from", "to", "count"], ["1", "1", "3"], ["2", "3", "1"], ["4", "4", "0"]]
    assert rows(Usage("u", [1, 3, 0, 1])) == usage
    assert rows(Bars("b", [0, 1, 2], [4, 5], "x", "y")) == [["x from", "to", "y"], ["0", "1", "4"], ["1", "2", "5"]]
    assert rows(Scatter("s", [Point("p", 2.0, figure)], "x", "y"))[1] == ["p", "2.0", "0.5", "0.4", "0.6", "9"]
    dots = Dots("d", {"who": {"all": figure, "two": missing("no"), "one": Figure(1.0, 1)}})
    assert rows(dots)[1:] == [
        ["who", "all", "0.5", "0.4", "0.6", "9"],
        ["who", "two", "", "", "", ""],
        ["who", "one", "1.0", "", "", "1"],
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_come_back_and_none_is_a_formula(name):
    (line,) = rows(Scatter("s", [Point(name, -1.0, Figure(-2.0, 1))], "x", "y"))[1:]
    assert line[0].removeprefix("'") == name and not line[0].startswith(("=", "+", "-", "@"))
    assert line[1:3] == ["-1.0", "-2.0"], "numbers stay numbers"


def test_long_curves_are_as_they_are_drawn_and_say_so():
    long = Curve("c", [Series("a", list(range(5 * POINTS)), [1.0] * 5 * POINTS)])
    assert thinned(long) and len(rows(long)) == 1 + POINTS
    assert not thinned(Curve("c", [Series("a", [0], [1.0])]))
