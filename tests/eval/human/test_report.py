"""The report: figures with and without exclusions, strengths, agreement, metrics beside people, and a strict page."""

import dataclasses
import json
import re

import numpy as np
import pytest

from eval.human.agreement import krippendorff_alpha
from eval.human.analysis import analyse, view
from eval.human.errors import StudyError
from eval.human.metrics import over_models, over_prompts
from eval.human.outcomes import holm, sign_test
from eval.human.report import Material, as_report, to_json, write_report
from eval.human.simulate import Truth, synthetic_votes
from eval.human.study import prompt_id, registered
from eval.report import to_html
from tests.eval.human.made import NAMES, study

TRUTH = Truth(strengths=(1.2, 0.0, -1.2), careless=0.15)
ASKED = study(3, criteria=("relevance", "preference"), block=40, raters=4, gold=0.2)


@pytest.fixture(scope="module")
def votes():
    return synthetic_votes(ASKED, 40, TRUTH, np.random.default_rng(3))


def material(votes, asked=ASKED, fits=()):
    pictures = dict.fromkeys(asked.models, "0" * 64)
    content = {"hash": "synthetic", **registered(asked, [f"prompt {i}" for i in range(40)], pictures)}
    results = analyse(votes, asked, "synthetic", draws=200)
    return Material(
        asked, results, votes, json.loads(json.dumps(content)), fits, "palimpsest study report x", "abc", {}
    )


def test_figures_stand_with_and_without_the_excluded(votes, tmp_path):
    made = material(votes)
    page, twin = write_report(made, tmp_path)
    content = json.loads(twin.read_text())
    assert content["schema"] == 2 and content["kept"]["raters"] < content["everyone"]["raters"]
    assert len(content["kept"]["outcomes"]) == len(content["everyone"]["outcomes"]) == 6
    excluded = [rater for rater in content["raters"] if rater["excluded"]]
    assert excluded and content["everyone"]["raters"] - content["kept"]["raters"] == len(excluded)
    text = page.read_text()
    assert "of all raters" in text and "excluded by the registered rules" in text
    figure = content["figures"][f"study.preference.win_rate[{NAMES[0]} over {NAMES[2]}]"]
    assert figure["low"] < figure["value"] < figure["high"] and figure["n"] == 40 and figure["value"] > 0.75
    assert all(rater["rater"] in text for rater in excluded)


def test_the_page_is_strict_and_whole(votes):
    page = to_html(as_report(material(votes)))
    assert "default-src &#39;none&#39;" in page and "unsafe" not in page
    assert "http:" not in page and "https:" not in page and " style=" not in page
    assert "study.json" in page and "report.json" not in page
    for title in ("What people prefer", "Strengths", "Agreement", "Raters", "What was registered"):
        assert f"<bdi>{title}</bdi>" in page
    assert "No definition is written" not in page
    assert page == to_html(as_report(material(votes)))


def test_two_models_and_grades_have_reports_of_their_own():
    two = study(2, criteria=("preference",))
    page = to_html(
        as_report(material(synthetic_votes(two, 30, Truth(strengths=(1, 0)), np.random.default_rng(0)), two))
    )
    assert "Strengths" not in page and "preference: win rate" in page
    likert = study(2, mode="likert", criteria=("defects",))
    rows = [dataclasses.replace(vote, criterion="defects", model_b="", choice=grade, strength=int(grade), is_gold=False)
            for at, vote in enumerate(synthetic_votes(two, 30, Truth(strengths=(1, 0)), np.random.default_rng(0)))
            for grade in [str(4 + at % 2 if vote.model_a == NAMES[0] else 2)] if not vote.is_gold]  # fmt: skip
    rows += [dataclasses.replace(vote, model_a=NAMES[1], choice="2", strength=2) for vote in rows]
    found = view(rows, likert)
    assert [round(grade.mean.value, 1) for grade in found.grades] == [4.5, 2.0]
    assert found.outcomes[0].wins == 30 and found.outcomes[0].difference.value == pytest.approx(2.5, abs=0.2)
    assert "Mean grades" in to_html(as_report(material(rows, likert)))


def test_alpha_of_a_study_is_that_of_its_votes(votes):
    found = {one.criterion: one for one in view(votes, ASKED, draws=100).agreement}["preference"]
    main = [v for v in votes if v.criterion == "preference" and not (v.is_gold or v.is_repeat)]
    raters = sorted({v.rater_id for v in main})
    units = sorted({(v.prompt_id, v.model_a, v.model_b) for v in main})
    given = {(v.rater_id, v.prompt_id, v.model_a, v.model_b): v.choice for v in main}
    ratings = [[given.get((rater, *unit)) for unit in units] for rater in raters]
    assert found.level == "nominal" and found.items == len(units) == 120
    assert found.alpha.value == pytest.approx(krippendorff_alpha(ratings), abs=1e-12)
    assert found.alpha.low < found.alpha.value < found.alpha.high < found.raw < 1


def test_unlinked_models_have_win_rates_and_a_note_but_no_strengths(votes):
    apart = [vote for vote in votes if NAMES[2] not in (vote.model_a, vote.model_b)]
    found = analyse(apart, ASKED, "synthetic", draws=100)
    assert found.main.outcomes and not found.main.standings
    assert any("do not link all models" in note for note in found.notes)
    assert "Strengths" not in to_html(as_report(material(apart)))


def test_one_who_wins_all_is_said_to_be_separated(votes):
    never = [vote for vote in votes if vote.choice == "a" or NAMES[0] != vote.model_a or vote.is_gold]
    notes = analyse(never, ASKED, "synthetic", draws=100).notes
    assert any("only the order of strengths counts" in note and NAMES[0] in note for note in notes)


def test_nothing_to_count_is_refused(votes):
    with pytest.raises(StudyError, match="no votes on pairs"):
        view([vote for vote in votes if vote.is_gold], ASKED)


def test_defects_that_were_named_are_shares_of_judged_pictures():
    asked = study(2, criteria=("defects",), raters=2)
    votes = synthetic_votes(asked, 20, Truth(strengths=(1, 0)), np.random.default_rng(0))
    main = [vote for vote in votes if not vote.is_gold and not vote.is_repeat]
    named = [
        dataclasses.replace(vote, criterion="tags", model_b="", choice="text|hands", strength=2) for vote in main[::4]
    ]
    found = {(one.model, one.tag): one.share for one in view(votes + named, asked).tags}
    assert (
        found[NAMES[0], "text"].value == pytest.approx(len(named) / len(main)) and found[NAMES[1], "hands"].value == 0
    )
    assert found[NAMES[0], "text"].low < found[NAMES[0], "text"].value < found[NAMES[0], "text"].high


def test_metrics_are_ranked_by_how_they_agree_with_people(votes):
    main = [vote for vote in votes if not vote.is_gold and not vote.is_repeat]
    values = {
        "good": dict(zip(NAMES, (3.0, 2.0, 1.0), strict=False)),
        "bad": dict(zip(NAMES, (1.0, 2.0, 3.0), strict=False)),
        "half": {NAMES[0]: 1.0, NAMES[1]: 1.0},
        "alone": {NAMES[0]: 1.0},
        "broken": {NAMES[0]: float("nan"), NAMES[1]: 1.0},
    }
    found = {fit.metric: fit for fit in over_models(main, ASKED.models, "preference", values, "prompts", 0)}
    assert set(found) == {"good", "bad", "half"}
    assert (found["good"].accuracy.value, found["good"].tau) == (1, pytest.approx(1)) and found["good"].accuracy.n == 3
    assert (found["bad"].accuracy.value, found["bad"].tau) == (0, pytest.approx(-1))
    assert found["half"].accuracy.value == 0.5 and found["half"].tau is None
    ids = [prompt_id(f"prompt {i}") for i in range(40)]
    singly = {"constant": {m: dict.fromkeys(ids, s) for m, s in zip(NAMES, (3, 2, 1), strict=False)},
              "same": {m: dict.fromkeys(ids, 1.0) for m in NAMES[:3]}}  # fmt: skip
    over = {fit.metric: fit for fit in over_prompts(main, "preference", singly)}
    assert (
        0.75 < over["constant"].accuracy.low < over["constant"].accuracy.value < 1 and over["constant"].accuracy.n == 40
    )
    assert over["same"].accuracy.value == 0.5 and over["same"].tau is None
    assert "Which metric to trust here" in to_html(as_report(material(votes, fits=[*found.values(), *over.values()])))
    assert to_json(material(votes, fits=list(found.values())))["metrics"][0]["accuracy"]["value"] == 1


def test_sign_test_and_holm_against_closed_forms():
    assert sign_test(60, 40) == pytest.approx(0.0569, abs=5e-5)
    assert sign_test(0, 0) == 1.0
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_hostile_names_of_the_study_stay_text(votes):
    made = material(votes, dataclasses.replace(ASKED, title="</pre><script>x</script>"))
    assert len(re.findall("<script", to_html(as_report(made)))) == 1
