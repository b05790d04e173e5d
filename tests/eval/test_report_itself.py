"""What a report says of itself: what was judged, its own tests, the numbers of charts, the schema of its JSON."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from eval.blocks import Judged, Section, Texts
from eval.figure import Figure, missing
from eval.report import judged, to_html, to_json
from eval.selftest import self_test
from tests.eval.schema import faults
from tests.eval.test_report import hostile_charts, hostile_report, provenance, report


def test_json_keeps_to_its_schema_and_the_schema_can_tell():
    figures = {"a": Figure(0.5, 3, 0.4, 0.6, "s"), "b": missing("no captions"), "c": Figure(math.nan, 3, source="s")}
    made = provenance(
        models=[Judged(name="m", checkpoint="abc", seed=0)], files={"vae/model.safetensors": "ff"}, wall_time={"a": 1.0}
    )
    sections = [Section("t", [Texts("captions", ["one", ("real", "two")])])]
    content = json.loads(json.dumps(to_json(report(sections, figures, provenance=made)), allow_nan=False))
    assert faults(content) == []
    assert faults(content | {"samples": {"scene": {}}}) == [], "keys may be added"
    for broken in (
        content | {"schema": 2},
        content | {"figures": {"a": {"value": "0.5", "n": 3, "low": None, "high": None, "source": ""}}},
        content | {"figures": {"a": {"value": None}}},
        {name: value for name, value in content.items() if name != "provenance"},
        content | {"self_test": [{"name": "x"}]},
    ):
        assert faults(broken)


def test_what_was_judged_has_a_line_each_and_no_column_that_nobody_can_fill():
    how = {"weights": "averaged with decay 0.99", "sampler": "heun", "steps": "4 (7 evaluations)", "guidance": "3"}
    models = [Judged(name="flow", checkpoint="abc123", seed=0, **how), Judged(name="vae", weights="not averaged")]
    page = to_html(report(provenance=provenance(models=models, data={"folder": "d", "hash": "ff00", "split": "test"})))
    for said in ("abc123", "averaged with decay 0.99", "4 (7 evaluations)", "not averaged", ", split test"):
        assert said in page
    assert [column.name for column in judged(models).columns] == [
        "model", "checkpoint", "weights", "sampler", "steps", "guidance", "seed"
    ]  # fmt: skip


def test_a_failed_golden_is_said_on_top_of_the_page(monkeypatch):
    lost = replace(self_test()[0], passed=False)
    assert "miss their known answers" not in to_html(report())
    monkeypatch.setattr("eval.report.self_test", lambda: (lost, *self_test()[1:]))
    page = to_html(report())
    assert page.index("miss their known answers") < page.index("<nav")
    assert re.search(r"<details open><summary>Self-test: 27 of 28", page)


def test_every_chart_has_its_numbers_beside_it():
    page = to_html(hostile_report("plain", hostile_charts()))
    assert page.count('<details class="numbers">') == page.count('class="first"') == 5


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_process():
    script = (
        "import hashlib, tests.eval.test_report as t; "
        "print(hashlib.sha256(t.to_html(t.hostile_report('plain', t.hostile_charts())).encode()).hexdigest())"
    )
    made = [
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert made[0] == made[1] and len(made[0]) == 65
