"""Values of single pictures: pairs find what independent figures hide, and a report stays small with them."""

import json

import numpy as np
import pytest
from scipy import stats

from eval.blocks import Provenance, Report
from eval.clip_score import clip_score
from eval.compare import CompareError, compare
from eval.figure import Figure
from eval.interval import mean_interval
from eval.report import SCHEMA, write_report
from eval.samples import Samples, change, from_json, key_of, to_json, within_prompts, written


def keys(count):
    return tuple(key_of(f"picture {i}") for i in range(count))


def report(samples, half=None):
    """A report of one PSNR with its values, and without an own interval the one of its mean."""
    found = mean_interval(samples.values)
    low, high = (found.low, found.high) if half is None else (samples.mean - half, samples.mean + half)
    figure = {"value": samples.mean, "n": len(samples.keys), "low": low, "high": high, "source": ""}
    return {
        "schema": SCHEMA, "figures": {"vae.psnr": figure}, "samples": to_json({"vae.psnr": samples}),
        "provenance": {"data": {"hash": "d"}},
    }  # fmt: skip


def two(rng, effect, count=60):
    """PSNR of the same pictures by two models: pictures differ by 3 dB, the models on one picture by 0.5."""
    hard = 25 + 3 * rng.randn(count)
    return [Samples(keys(count), tuple(hard + shift + 0.35 * rng.randn(count))) for shift in (0, effect)]


def test_pairs_find_a_small_change_that_independent_figures_miss():
    rng = np.random.RandomState(0)
    found, missed = 0, 0
    for _ in range(50):
        before, after = map(report, two(rng, -0.3))
        (paired,) = compare(before, after).differences
        assert paired.pairs == 60 and paired.low < paired.change < paired.high
        found += paired.verdict == "worse"
        del after["samples"]
        (apart,) = compare(before, after).differences
        assert apart.pairs == 0
        missed += apart.verdict == ""
    assert found >= 45 and missed >= 45


@pytest.mark.parametrize("per_prompt", [1, 3])
def test_no_change_is_called_one_in_five_of_a_hundred(per_prompt):
    """Several pictures of a prompt hang together: as many pairs as prompts, not as pictures."""
    rng = np.random.RandomState(1)
    prompts, alarms, naive = 40, 0, 0
    for _ in range(600):
        own = [np.repeat(rng.randn(prompts), per_prompt) for _ in "ab"]  # what each model makes of a prompt
        sides = [tuple(part + 0.3 * rng.randn(len(part))) for part in own]
        ids = tuple(np.repeat(keys(prompts), per_prompt).tolist())
        gap, p = change(*(Samples(ids, side) for side in sides))
        alarms, naive = alarms + (p < 0.05), naive + (stats.ttest_rel(*sides).pvalue < 0.05)
        assert gap.n == prompts
    assert stats.binom.ppf(0.005, 600, 0.05) <= alarms <= stats.binom.ppf(0.995, 600, 0.05)
    if per_prompt > 1:
        assert naive > 2 * alarms


def test_one_value_a_key_is_the_paired_t_test():
    before, after = two(np.random.RandomState(2), 0.1)
    gap, p = change(before, after)
    oracle = stats.ttest_rel(after.values, before.values)
    low, high = oracle.confidence_interval()
    assert (gap.value, gap.low, gap.high) == pytest.approx((np.mean(after.values) - np.mean(before.values), low, high))
    assert p == pytest.approx(oracle.pvalue)
    order = np.random.RandomState(3).permutation(60)
    again = Samples(tuple(after.keys[i] for i in order), tuple(after.values[i] for i in order))
    assert change(before, again)[1] == pytest.approx(p)


def test_weights_make_the_ratio_that_the_figure_is():
    samples = Samples(("a", "b", "b"), (1.0, 0.5, 0.0), (1, 2, 3))
    assert samples.mean == pytest.approx(2 / 6)
    rng = np.random.RandomState(4)
    images, texts, prompts = rng.randn(30, 8), rng.randn(30, 8), [f"p{i % 7}" for i in range(30)]
    cos = (images * texts).sum(1) / np.linalg.norm(images, axis=1) / np.linalg.norm(texts, axis=1)
    found = Samples(tuple(prompts), tuple(cos), within_prompts(prompts))
    assert found.mean == pytest.approx(clip_score(images, texts, prompts).value)


def test_other_pictures_and_other_values_are_not_paired():
    before, after = two(np.random.RandomState(5), 0.0)
    other = Samples(keys(61)[1:], after.values)
    assert change(before, other) is None
    assert compare(report(before), report(other)).differences[0].pairs == 0
    stale = report(after)
    stale["figures"]["vae.psnr"]["value"] += 1  # not what the values make
    assert compare(report(before), stale).differences[0].pairs == 0
    broken = report(after) | {"samples": {"vae.psnr": {"keys": ["a"], "values": []}}}
    with pytest.raises(
        CompareError, match=r"samples of vae.psnr cannot be read \(1 keys, 0 values.*make the report again"
    ):
        compare(report(before), broken)


def test_nothing_changed_is_no_change_and_equal_differences_do_not_pair():
    before, _ = two(np.random.RandomState(6), 0.0)
    (same,) = compare(report(before), report(before)).differences
    assert (same.change, same.p, same.verdict, same.pairs) == (0, 1, "", 60)
    exact = [Samples(keys(4), values) for values in ((1.0, 2.0, 3.0, 4.0), (2.0, 3.0, 4.0, 5.0))]
    assert change(*exact) is None


def test_right_and_wrong_go_by_the_exact_sign_test():
    """All wrong that was right is the worst that can happen, and no t test knows it."""
    eight = [Samples(keys(8), values) for values in ((1.0,) * 8, (0.0,) * 8)]
    gap, p = change(*eight)
    assert gap.value == -1 and p == pytest.approx(2**-7)
    some = Samples(keys(8), (0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    assert change(eight[0], some)[1] == pytest.approx(2**-2)


def test_what_another_processor_moves_is_no_change():
    rng = np.random.RandomState(0)
    values = rng.rand(500) * 0.2
    moved = values - 1e-6 + 1e-6 * rng.randn(500)
    gap, p = change(Samples(keys(500), tuple(values)), Samples(keys(500), tuple(moved)))
    assert p == 1 and gap.high < 0


def test_a_report_of_ten_thousand_pictures_stays_small_and_reads_back(tmp_path):
    rng = np.random.RandomState(7)
    samples = {
        f"vae.{name}": Samples(keys(10_000), tuple(centre + rng.randn(10_000)))
        for name, centre in (("psnr", 28), ("ssim", 0), ("featdist[x]", 0))
    }
    samples["a.scene.colour"] = Samples(keys(10_000), tuple(rng.randint(0, 4, 10_000) / 3), (3.0,) * 10_000)
    figures = {name: Figure(one.mean, 10_000) for name, one in samples.items()}
    made = Provenance(commit=None, dirty=False, recipe="r", recipe_hash="h", command="c")
    whole = Report(title="t", summary="s", provenance=made, sections=[], figures=figures, samples=samples)
    page, twin = write_report(whole, tmp_path)
    assert 300_000 < twin.stat().st_size < 600_000, "150 kB of keys, 60 to 90 kB of values a figure"
    assert len(twin.read_text().splitlines()) < 1000  # no line for every number
    back = from_json(json.loads(twin.read_text())["samples"])
    assert {name: one.keys for name, one in back.items()} == {name: one.keys for name, one in samples.items()}
    assert back["vae.psnr"].values == pytest.approx(samples["vae.psnr"].values, rel=1e-4)
    assert back["a.scene.colour"].weights == samples["a.scene.colour"].weights
    assert page.stat().st_size < 200_000


def test_reports_without_values_are_written_as_before():
    assert written({"a": 1}) == json.dumps({"a": 1}, indent=1) + "\n"
    one = {"a": 1, "samples": to_json({"x": Samples(("k",), (0.5,))})}
    assert json.loads(written(one)) == one


@pytest.mark.parametrize(
    ("of", "values", "weights", "words"),
    [
        (("a",), (1.0, 2.0), (), "1 keys, 2 values and 0 weights"),
        ((), (), (), "at least one"),
        (("a",), (float("nan"),), (), "finite"),
        (("a",), (1.0,), (-1.0,), "not negative"),
    ],
)
def test_impossible_values_are_refused(of, values, weights, words):
    with pytest.raises(ValueError, match=words):
        Samples(of, values, weights)
