"""The section on what changed since a baseline: what differs, what is lost, and what cannot be compared and why."""

import json

import pytest

from eval.blocks import Section
from eval.change import NOTHING, Baseline, change, with_change
from eval.compare import CompareError
from eval.figure import Figure, missing
from eval.report import to_html, to_json
from tests.eval.test_report import HOSTILE, provenance, report

FD = "latent.fd[judge:12345678|resize=none|n={n}/1200|split=train]"


def content(data="d", **figures):
    made = provenance(data={"hash": data}, commit="0.1.0+abcdef123456")
    return to_json(report(figures=figures, provenance=made))


def figure(value, half=0.1, n=100):
    return Figure(value, n, value - half, value + half, "made so")


def tables(before, now):
    section = change(Baseline("old/report.json", before), now)
    return section, {block.title: [(row.kind, list(row.cells)) for row in block.rows] for block in section.blocks}


def test_what_differs_stands_with_values_interval_p_and_verdict_in_words():
    names, first, second = ("vae.psnr", "text.entropy", "mdlm.psnr", "x"), (20.0, 1.0, 5.0, 3.0), (19.0, 2.0, 7.0, 3.01)
    before, now = (content(**dict(zip(names, map(figure, values), strict=True))) for values in (first, second))
    section, found = tables(before, now)
    rows = {cells[0]: (kind, cells) for kind, cells in found["What differs beyond chance"]}
    assert set(rows) == {"vae.psnr", "text.entropy", "mdlm.psnr"}
    kind, (_, first, second, moved, _, p, verdict) = rows["vae.psnr"]
    assert (kind, first.value, second.value, moved.value, verdict) == ("worse", 20.0, 19.0, -1.0, "✗ worse")
    assert moved.low < -1 < moved.high < 0 and 0 <= p < 0.05
    assert rows["mdlm.psnr"][0] == "better" and rows["text.entropy"][1][6] == "≠ changed"
    assert "old/report.json, made by commit 0.1.0+abcdef123456" in section.lead
    assert "4 figures in both, 4 of them with intervals: 1 better, 1 worse, 1 changed." in section.lead
    page = to_html(report([section]))
    assert "−1.00 dB" in page and "+2.00 dB" in page and "✗ worse" in page and '<tr class="worse">' in page


def test_a_report_against_itself_differs_in_nothing():
    now = content(**{"vae.psnr": figure(20.0), "latent.usage": Figure(0.5, 9)})
    section, found = tables(json.loads(json.dumps(now)), now)
    assert found == {} and section.empty == NOTHING and NOTHING in to_html(report([section]))


def test_figures_of_unlike_keys_are_listed_with_the_parts_that_differ():
    before = content(**{FD.format(n=120): figure(1.0), "vae.psnr": figure(20.0), "gone.psnr": figure(1.0)})
    now = content(**{FD.format(n=100): figure(9.0), "vae.psnr": figure(20.0)})
    section, found = tables(before, now)
    ((kind, cells),) = found["Not comparable"]
    assert kind == "unlike" and cells[4] == "n 120/1200, now 100/1200"
    assert (cells[0], cells[1].value, cells[2], cells[3].value) == (FD.format(n=120), 1.0, FD.format(n=100), 9.0)
    assert section.blocks[0].note.startswith("1 more figures are in one")
    other = FD.format(n=120).replace("12345678", "87654321")
    _, found = tables(before, content(**{other: figure(9.0), "vae.psnr": figure(20.0)}))
    assert found["Not comparable"][0][1][4] == "judge judge:12345678, now judge:87654321"


def test_what_is_no_longer_measured_is_lost():
    before = content(**{"vae.psnr": figure(20.0), "a.psnr": figure(1.0)})
    _, found = tables(before, content(**{"vae.psnr": missing("NaN"), "a.psnr": figure(1.0)}))
    ((kind, cells),) = found["What differs beyond chance"]
    assert kind == "worse" and cells[0] == "vae.psnr" and cells[6].startswith("✗ lost")


def test_reports_without_a_common_figure_say_so_and_cost_no_report():
    section, _ = tables(content(**{"a.psnr": figure(1.0)}), content(**{"b.psnr": figure(1.0)}))
    assert "no figure of a model in common" in section.lead and not section.blocks
    before, now = (content(**{FD.format(n=n): figure(1.0)}) for n in (120, 100))
    section, found = tables(before, now)
    assert "no figure of a model in common" in section.lead and len(found["Not comparable"]) == 1


def test_data_are_checked_before_anything_is_measured():
    before = Baseline("old", content("d"))
    before.check_data("d")
    with pytest.raises(CompareError, match="other data \\(d, now e\\)"):
        before.check_data("e")


def test_names_of_a_stranger_s_report_are_text():
    name = f"m.psnr[{HOSTILE[0]}|n=1]"
    section, _ = tables(content(**{name: figure(1.0), "a.psnr": figure(1)}), content(**{"a.psnr": figure(2)}))
    page = to_html(report([section]))
    assert "<script>alert" not in page


def test_the_section_stands_behind_the_first_one():
    sections = [Section("Headline"), Section("Rest")]
    now = report(sections, {"a.psnr": figure(1.0)}, provenance=provenance(data={"hash": "d"}))
    titles = [one.title for one in with_change(now, Baseline("old", to_json(now))).sections]
    assert titles == ["Headline", "Change since the baseline", "Rest"]
    assert with_change(now, None) is now
