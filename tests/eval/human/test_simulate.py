"""Synthetic raters of known strengths: what the analysis says of them is true, as often as it claims."""

import json

import numpy as np
import pytest
from scipy import stats

from eval.human.analysis import analyse, view
from eval.human.errors import StudyError
from eval.human.export import export
from eval.human.importing import import_votes
from eval.human.key import read_key
from eval.human.outcomes import compared
from eval.human.simulate import Truth, answer_pages, recovered, synthetic_votes
from eval.human.study import Exclude
from tests.eval.human.made import NAMES, pictures, prompts, study

BAND = {studies: int(stats.binom.ppf(0.001, studies, 0.95)) for studies in (40, 200)}  # of that many


@pytest.mark.parametrize("resample", ["prompts", "prompts and raters"])
def test_stated_intervals_cover_the_truth_as_often_as_they_say(resample):
    truth = Truth(strengths=(0.4, 0.0, -0.3), noise=0.8, width=0.3, bias=0.3)
    asked = study(3, criteria=("preference",), raters=2, block=30, gold=0, repeats=0.05, resample=resample)
    hits: dict[str, int] = {}
    studies = 200 if resample == "prompts" else 40
    for trial in range(studies):
        votes = synthetic_votes(asked, 60, truth, np.random.default_rng(trial))
        main = [vote for vote in votes if not vote.is_repeat and not vote.is_gold]
        outcomes, standing = compared(main, asked.models, "preference", resample, asked.models[0], 0, 500)
        for one in recovered(outcomes, [standing], asked.models, truth):
            hits[one.what] = hits.get(one.what, 0) + one.covered
    assert len(hits) == 6
    assert all(BAND[studies] <= count for count in hits.values()), hits


def test_strengths_are_recovered_in_a_large_study_of_five_models():
    truth = Truth(strengths=(0.9, 0.4, 0.0, -0.4, -0.9), noise=0.5)
    asked = study(5, criteria=("preference",), raters=4, block=60, gold=0)
    votes = synthetic_votes(asked, 200, truth, np.random.default_rng(0))
    found = view(votes, asked, draws=300).standings[0]
    assert [row.model for row in found.strengths] == list(NAMES[:5])
    np.testing.assert_allclose([row.theta.value for row in found.strengths], truth.theta(), atol=0.12)
    assert [row.rank.value for row in found.strengths] == [1, 2, 3, 4, 5] and found.strengths[0].p_best > 0.99
    assert found.strengths[0].points.value == 0  # the first model is the anchor


def test_expected_win_rates_agree_with_drawn_ones():
    truth = Truth(strengths=(0.5, -0.5), noise=1.0, width=0.4, bias=0.5)
    asked = study(2, criteria=("preference",), raters=4, gold=0, repeats=0)
    votes = synthetic_votes(asked, 4000, truth, np.random.default_rng(1))
    drawn = np.mean([{"a": 1, "b": 0}.get(vote.choice, 0.5) for vote in votes])
    assert truth.win_rate(0, 1) == pytest.approx(drawn, abs=0.015)
    assert Truth(strengths=(0.5, -0.5), noise=0, width=0).theta() == pytest.approx([0.5, -0.5], abs=1e-9)


def test_the_whole_loop_through_files_finds_the_careless_and_the_truth(tmp_path):
    truth = Truth(strengths=(0.8, 0.0, -0.6), careless=0.2)
    asked = study(3, criteria=("relevance", "defects"), raters=4, block=30, gold=0.15)
    given = pictures(tmp_path / "in", 40, 3)
    made = export(asked, prompts(40), given, tmp_path / "out", truth=given[NAMES[0]], secret="s")
    key = read_key(made.key)
    files = []
    for page in answer_pages(key, truth, np.random.default_rng(0)):
        path = tmp_path / f"{page['rater']}.json"
        path.write_text(json.dumps(page))
        files.append(path)
    votes = import_votes(files, key, names=True).votes
    results = analyse(votes, asked, made.study, draws=300)
    careless = {path.stem for path in files if "careless" in path.stem}
    excluded = {rater.rater for rater in results.raters if rater.excluded}
    assert len(careless) == 3 and careless <= excluded
    assert len(excluded - careless) <= 1, "an attentive rater slips now and then"
    assert results.kept.raters == len(files) - len(excluded)
    close = [
        abs(one.value - one.true) < 0.12
        for one in recovered(results.kept.outcomes, (), asked.models, truth)
        if "over" in one.what
    ]
    assert all(close) and len(close) == 6
    best = [
        next(o.win_rate.value for o in view.outcomes if o.model_b == NAMES[2])
        for view in (results.kept, results.everyone)
    ]
    assert best[0] > best[1] > 0.5, "careless raters draw win rates to one half"


def test_rules_that_exclude_all_are_said_and_those_that_exclude_none_change_nothing():
    asked = study(2, criteria=("preference",), exclude=Exclude(min_median_ms=500_000))
    votes = synthetic_votes(asked, 24, Truth(strengths=(0.5, -0.5)), np.random.default_rng(0))
    results = analyse(votes, asked, "synthetic", draws=100)
    assert results.kept is None and results.main is results.everyone and "exclude every rater" in results.notes[0]
    lenient = study(2, criteria=("preference",), exclude=Exclude(min_gold=0, min_median_ms=0))
    results = analyse(votes, lenient, "synthetic", draws=100)
    assert results.kept is results.everyone and not any(rater.excluded for rater in results.raters)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"strengths": (1.0, float("nan"))}, "finite"),
        ({"strengths": (1.0,)}, "finite"),
        ({"strengths": (1.0, 0.0), "careless": 1.0}, "careless"),
        ({"strengths": (1.0, 0.0), "noise": -1}, "noise"),
    ],
)
def test_truths_that_are_none_are_refused(wrong, sentence):
    with pytest.raises(StudyError, match=sentence):
        Truth(**wrong)


def test_strengths_for_other_models_are_refused():
    with pytest.raises(StudyError, match="3 strengths for 2 models"):
        synthetic_votes(study(2), 10, Truth(strengths=(1, 0, -1)), np.random.default_rng(0))
