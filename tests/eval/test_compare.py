"""Two reports side by side: significance against closed forms, and what must not be compared."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from eval.compare import CompareError, compare, read_report
from eval.report import SCHEMA


def report(data="d", **figures):
    return {"schema": SCHEMA, "figures": figures, "provenance": {"data": {"hash": data}}}


def figure(value, half=None, n=100):
    ends = {"low": None, "high": None} if half is None else {"low": value - half, "high": value + half}
    return {"value": value, "n": n, **ends, "source": ""}


def test_one_difference_has_the_p_value_of_the_normal_law():
    (found,) = compare(report(**{"vae.psnr": figure(20, 1.96)}), report(**{"vae.psnr": figure(23, 1.96)})).differences
    z = 3 / (math.sqrt(2) * 1.96 / stats.norm.ppf(0.975))
    assert found.p == pytest.approx(2 * stats.norm.sf(z), rel=1e-9)
    assert (found.change, found.verdict, found.better) == (3, "better", "higher")
    assert found.low == pytest.approx(3 - math.sqrt(2) * 1.96) and found.high == pytest.approx(3 + math.sqrt(2) * 1.96)


def test_intervals_of_few_blocks_have_welchs_test():
    """Two equal jackknifes over ten blocks: Welch's t of two samples of ten, as scipy has it."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(10), rng.standard_normal(10) * 2 + 3
    made = []
    for x in (a, b):
        half = stats.t.ppf(0.975, 9) * x.std(ddof=1) / math.sqrt(10)
        made.append(report(**{"x.kd": {**figure(float(x.mean()), half), "df": 9}}))
    (found,) = compare(*made).differences
    expected = stats.ttest_ind(b, a, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue) and found.low == pytest.approx(interval.low)


def test_directions_decide_what_is_worse():
    before = report(**{"vae.psnr": figure(20, 0.1), "x.fd[a]": figure(2.0, 0.1), "text.entropy": figure(1.0, 0.01)})
    after = report(**{"vae.psnr": figure(19, 0.1), "x.fd[a]": figure(1.0, 0.1), "text.entropy": figure(2.0, 0.01)})
    found = compare(before, after)
    assert [one.verdict for one in found.differences] == ["worse", "better", "changed"]
    assert [one.name for one in found.regressions] == ["vae.psnr"]


def test_many_figures_are_corrected_for():
    rng = np.random.default_rng(0)
    names = [f"m{i}.psnr" for i in range(40)]
    false = 0
    for _ in range(200):
        first, second = (
            report(**{n: figure(v, 1.96) for n, v in zip(names, rng.normal(20, 1, 40), strict=True)}) for _ in "ab"
        )
        false += bool(compare(first, second).regressions)
    assert false <= stats.binom.ppf(0.999, 200, 0.05)  # of whole reports, not of figures


def test_figures_without_intervals_are_shown_and_not_judged():
    (found,) = compare(report(**{"x.fd[a]": figure(1.0)}), report(**{"x.fd[a]": figure(9.0)})).differences
    assert found.verdict == "no interval" and math.isnan(found.p) and found.change == 8


def test_unlike_keys_and_data_are_refused():
    a, b = report(**{"x.fd[i:1|n=5/9]": figure(1, 0.1)}), report(**{"x.fd[i:1|n=6/9]": figure(1, 0.1)})
    with pytest.raises(CompareError, match="no figure of a model in common"):
        compare(a, b)
    with pytest.raises(CompareError, match=r"different data \(d and e\)"):
        compare(a, report("e", **a["figures"]))
    both = compare(a, report(**a["figures"], **b["figures"]))
    assert both.only_second == ("x.fd[i:1|n=6/9]",) and both.only_first == ()
    missing = {"x.psnr": {"value": None, "reason": "no"}, "y.psnr": figure(1, 0.1)}
    assert [one.name for one in compare(report(**missing), report(**missing)).differences] == ["y.psnr"]


def test_reports_are_found_in_folders_and_others_are_refused(tmp_path):
    (tmp_path / "run" / "eval").mkdir(parents=True)
    path = tmp_path / "run" / "eval" / "report.json"
    path.write_text(json.dumps(report(**{"vae.psnr": figure(1, 1)})))
    assert read_report(tmp_path / "run") == read_report(path) == read_report(path.parent)
    with pytest.raises(CompareError, match="no report at"):
        read_report(tmp_path / "other")
    path.write_text("{")
    with pytest.raises(CompareError, match="no JSON"):
        read_report(path)
    path.write_text(json.dumps({"schema": SCHEMA + 1, "figures": {}}))
    with pytest.raises(CompareError, match="schema 2, expected 1"):
        read_report(path)
    path.write_text("[]")
    with pytest.raises(CompareError, match="no report"):
        read_report(path)


def test_floors_and_ceilings_are_no_regressions_and_do_not_stand_for_models():
    before = report(**{"shuffled.a.clip_score[x]": figure(0.2, 0.01), "a.psnr": figure(1, 0.1)})
    after = report(**{"shuffled.a.clip_score[x]": figure(0.1, 0.01), "a.psnr": figure(1, 0.1)})
    found = compare(before, after)
    assert found.differences[0].verdict == "changed" and not found.regressions
    with pytest.raises(CompareError, match="no figure of a model in common"):
        compare(report(**{"real.fd[x]": figure(1, 0.1), "v1.fd[x]": figure(1, 0.1)}),
                report(**{"real.fd[x]": figure(1, 0.1), "v2.fd[x]": figure(9, 0.1)}))  # fmt: skip


def test_what_is_no_longer_measured_is_lost():
    gone = {"value": None, "reason": "NaN"}
    found = compare(
        report(**{"a.psnr": figure(1, 0.1), "real.x": figure(1)}), report(**{"a.psnr": gone, "real.x": gone})
    )
    assert found.lost == ("a.psnr",) and found.differences == ()


def test_intervals_without_width_prove_nothing():
    (found,) = compare(report(**{"a.psnr": figure(0.31, 0)}), report(**{"a.psnr": figure(0.30, 0)})).differences
    assert found.verdict == "no interval" and math.isnan(found.p)


def test_figures_that_other_judges_have_read_are_left_out():
    def judged(mark, colour):
        made = report(**{"a.scene.colour": figure(colour, 0.01), "vae.psnr": figure(20, 0.1)})
        made["provenance"]["resolved"] = {"stage": {"eyes": {"kind": "scene_judge"}, "vae": {"kind": "vae"}}}
        made["provenance"]["artefacts"] = {"eyes": mark, "vae": colour}
        return made

    assert compare(judged("j", 0.9), judged("j", 0.5)).regressions
    found = compare(judged("j", 0.9), judged("k", 0.5))
    assert found.unlike == ("a.scene.colour",) and [one.name for one in found.differences] == ["vae.psnr"]
