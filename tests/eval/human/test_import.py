"""Votes from every form of file become one table of models; whatever does not fit is an error that names the item."""

import csv
import io
import json
from collections import Counter

import numpy as np
import pytest

from eval.human.audit import audit
from eval.human.errors import VotesError
from eval.human.importing import import_votes, unblind
from eval.human.simulate import Truth, answer_pages, synthetic_key
from eval.human.study import Exclude
from eval.human.votes import FIELDS, read_votes, write_votes
from tests.eval.human.made import AT, NAMES, prompts, study

ASKED = study(2, block=10, raters=2, criteria=("relevance", "defects"))


@pytest.fixture(scope="module")
def key():
    return synthetic_key(ASKED, prompts(10), np.random.default_rng(0))


def first_better(key, item, criterion):
    """The answer of one who prefers the first model, or the better side of a control."""
    return "left" if item.first_left else "right"


def page(key, rater="ann", block=1, answer=first_better, **more):
    items = [item for item in key.items.values() if item.block == block]
    votes = [
        {"item": item.id, "criterion": criterion, "choice": answer(key, item, criterion), "rt_ms": 900, "at": AT}
        for item in items
        for criterion in key.criteria
    ]
    return {"schema": 2, "study": key.study, "block": block, "page": "0" * 16, "rater": rater, "votes": votes, **more}


def saved(folder, content, name="votes.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def label_studio(key, items, rater=7):
    def result(item):
        return [
            {"from_name": c, "to_name": "left", "type": "choices", "value": {"choices": [first_better(key, item, c)]}}
            for c in key.criteria
        ] + [
            {"from_name": "tags_right", "to_name": "right", "type": "choices", "value": {"choices": ["text", "hands"]}}
        ]

    return [
        {
            "id": at,
            "data": {"study": key.study, "item": item.id, "prompt": "x", "left": "l.png", "right": "r.png"},
            "annotations": [{"completed_by": rater, "was_cancelled": False, "lead_time": 6.5,
                             "created_at": "2026-01-02T03:04:05.678901Z", "result": result(item)}],
        }
        for at, item in enumerate(items)
    ]  # fmt: skip


def table(rows, delimiter=","):
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def mturk(key, items, **more):
    return [
        {"HITId": "H", "WorkerId": "A1B2C3", "AssignmentStatus": "Approved", "WorkTimeInSeconds": "13",
         "SubmitTime": "Mon Nov 30 11:41:13 PST 2026", "Input.study": key.study, "Input.item": item.id,
         **{f"Answer.{c}": first_better(key, item, c) for c in key.criteria}, **more}
        for item in items
    ]  # fmt: skip


def toloka(key, items, **more):
    return [
        {"INPUT:study": key.study, "INPUT:item": item.id, "ASSIGNMENT:worker_id": "w77",
         "ASSIGNMENT:status": "APPROVED",
         "ASSIGNMENT:started": "2026-01-02T03:04:05.000", "ASSIGNMENT:submitted": "2026-01-02T03:04:18.000",
         **{f"OUTPUT:{c}": first_better(key, item, c) for c in key.criteria}, **more}
        for item in items
    ]  # fmt: skip


def test_every_form_of_file_gives_the_same_votes(key, tmp_path):
    items = [item for item in key.items.values() if item.block == 1]
    ticked = [
        {**{k: v for k, v in row.items() if not k.startswith("Answer.")},
         **{f"Answer.{c}.{choice}": str(first_better(key, key.items[row["Input.item"]], c) == choice).lower()
            for c in key.criteria for choice in key.choices}}
        for row in mturk(key, items)
    ]  # fmt: skip
    forms = {
        "page.json": page(key),
        "studio.json": label_studio(key, items),
        "batch.csv": table(mturk(key, items)),
        "ticked.csv": table(ticked),
        "toloka.tsv": table(toloka(key, items), "\t"),
    }
    found = {}
    for name, content in forms.items():
        votes = import_votes([saved(tmp_path, content, name)], key, names=True).votes
        plain = [vote for vote in votes if vote.criterion != "tags"]
        found[name] = sorted(
            (v.item_id, v.criterion, v.choice, v.model_a, v.side, v.is_gold, v.is_repeat) for v in plain
        )
        assert {vote.rt_ms for vote in plain} <= {900, 3250, 6500}, name
        assert all(vote.ts.startswith("2026-") for vote in plain)
    assert all(rows == found["page.json"] for rows in found.values())
    tags = [v for v in import_votes([tmp_path / "studio.json"], key).votes if v.criterion == "tags"]
    assert len(tags) == len(items) and tags[0].choice == "text|hands" and tags[0].strength == 2
    assert all(
        v.model_a == (key.items[v.item_id].second if key.items[v.item_id].first_left else key.items[v.item_id].first)
        for v in tags
    )


@pytest.mark.parametrize(
    ("chosen", "first_left", "model"),
    [("left", True, "a"), ("right", True, "b"), ("left", False, "b"), ("right", False, "a"), ("tie", True, "tie"),
     ("both_bad", False, "both_bad"), ("4", True, "4")],
)  # fmt: skip
def test_swapped_sides_are_turned_back(chosen, first_left, model):
    assert unblind(chosen, first_left) == model


def test_fewer_defects_win_without_being_inverted(key, tmp_path):
    """The question asks for the cleaner picture, so that the chosen side is the side that wins."""
    files = [saved(tmp_path, page(key, block=block), f"{block}.json") for block in (1, 2)]
    votes = import_votes(files, key).votes
    assert {v.choice for v in votes if v.criterion == "defects" and not v.is_gold} == {"a"}
    clean = [v for v in votes if v.criterion == "defects" and v.model_a == "gold:clean"]
    assert clean and {v.choice for v in clean} == {"a"}


def test_repeats_are_the_later_judgement_of_a_pair_wherever_it_was_shown(key, tmp_path):
    """Blocks 1 and 2 are two sets of the same pairs: one rater of both judges every pair twice or more."""
    assert {item.prompt_id for item in key.items.values() if item.block == 1 and item.kind == "pair"} == {
        item.prompt_id for item in key.items.values() if item.block == 2 and item.kind == "pair"
    }
    files = [saved(tmp_path, page(key, block=block), f"{block}.json") for block in (1, 2)]
    votes = [v for v in import_votes(files, key, names=True).votes if not v.is_gold]
    first = [v for v in votes if not v.is_repeat]
    assert len(first) == 10 * 2 and len({(v.prompt_id, v.criterion) for v in first}) == 20
    alone = [v for v in import_votes([files[0]], key).votes if v.is_repeat]
    assert {key.items[v.item_id].kind for v in alone} == {"repeat"}


def test_raters_are_hidden_by_the_secret_unless_their_names_are_asked_for(key, tmp_path):
    files = [saved(tmp_path, page(key, rater=name, block=1), f"{name}.json") for name in ("ann", "bob")]
    hidden, named = import_votes(files, key).votes, import_votes(files, key, names=True).votes
    assert {v.rater_id for v in named} == {"ann", "bob"}
    ids = {v.rater_id for v in hidden}
    assert len(ids) == 2 and all(name.startswith("r-") and "ann" not in name for name in ids)
    assert [v.rater_id for v in import_votes(files, key).votes] == [v.rater_id for v in hidden]


def test_what_is_left_out_is_said(key, tmp_path):
    items = [item for item in key.items.values() if item.block == 1]
    other = import_votes([saved(tmp_path, page(key, page="f" * 16))], key).notes
    assert any("26 answers come from a page with another script" in note for note in other)
    skipped = label_studio(key, items)
    skipped[0]["annotations"][0]["was_cancelled"] = True
    notes = import_votes([saved(tmp_path, skipped)], key).notes
    assert any("1 annotations were skipped" in note and items[0].id in note for note in notes)
    assert any("1 items of the other blocks lack answers" in note and items[0].id in note for note in notes)
    assert any("1 of 2 blocks have no answers yet: 2" in note for note in notes)
    rejected = [*mturk(key, items[1:]), *mturk(key, items[:1], AssignmentStatus="Rejected")]
    notes = import_votes([saved(tmp_path, table(rejected), "b.csv")], key).notes
    assert any("1 lines were rejected" in note and items[0].id in note for note in notes)


def spoil(change):
    def spoiled(key):
        content = page(key)
        change(content)
        return content

    return spoiled


BAD = [
    (spoil(lambda c: c.update(study="0123456789abcdef")), "votes of study '0123456789abcdef'.*give the key"),
    (spoil(lambda c: c["votes"][0].update(item="feedface")), "item 'feedface' is not of this study"),
    (spoil(lambda c: c["votes"][0].update(criterion="taste")), "criterion 'taste' is not of this study"),
    (spoil(lambda c: c["votes"][0].update(choice="middle")), "item .*: choice 'middle' is none of left, right"),
    (spoil(lambda c: c["votes"][0].update(choice=["left"])), "choice \\['left'\\] is none of"),
    (spoil(lambda c: c["votes"].append(c["votes"][0])), "1 answers are there a second time \\(relevance of item"),
    (spoil(lambda c: c["votes"][0].update(rt_ms=float("nan"))), "item .*: rt_ms is nan"),
    (spoil(lambda c: c["votes"][0].update(rt_ms=-5)), "item .*: rt_ms is -5"),
    (spoil(lambda c: c["votes"][0].update(at="yesterday")), "item .*: the time 'yesterday' cannot be read"),
    (spoil(lambda c: c.update(rater="")), "rater '' is no name"),
    (spoil(lambda c: c.update(rater="=HYPERLINK()")), "rater '=HYPERLINK\\(\\)' is no name"),
    (spoil(lambda c: c.update(page="x")), "page is 'x'"),
    (spoil(lambda c: c.update(tags=[{"item": c["votes"][0]["item"], "side": "up", "tags": []}])), "tags of side 'up'"),
    (spoil(lambda c: c.update(tags=[{"item": c["votes"][0]["item"], "side": "left", "tags": ["ugly"]}])), "tags ugly"),
    (spoil(lambda c: c.update(votes=[])), "no votes: give"),
    (spoil(lambda c: c.update(votes=[None])), "entries 0 are no objects"),
    (lambda key: {"rater": "ann"}, "holds no votes"),
    (lambda key: "{", "cannot be read as JSON"),
    (lambda key: [{"data": 1}], "no JSON export of Label Studio"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "sentence"), BAD, ids=[sentence[:30] for _, sentence in BAD])
def test_bad_votes_are_refused_with_the_value_and_the_remedy(key, tmp_path, content, sentence):
    with pytest.raises(VotesError, match=sentence):
        import_votes([saved(tmp_path, content(key))], key)


def test_bad_tables_are_refused(key, tmp_path):
    items = list(key.items.values())[:3]

    def refused(sentence, text, name):
        with pytest.raises(VotesError, match=sentence):
            import_votes([saved(tmp_path, text, name)], key)

    refused("no table of answers", "a,b\n1,2\n", "x.csv")
    refused("no table of answers", "", "empty.csv")
    refused("it took 'soon' seconds", table(mturk(key, items, WorkTimeInSeconds="soon")), "t.csv")
    refused(
        "answers none of relevance", table(mturk(key, items, **{"Answer.relevance": "", "Answer.defects": ""})), "n.csv"
    )
    refused("votes of study 'other'", table(toloka(key, items, **{"INPUT:study": "other"}), "\t"), "o.tsv")
    refused("is none of left", table(toloka(key, items, **{"OUTPUT:defects": "C"}), "\t"), "c.tsv")
    refused("rater None is no name", json.dumps(label_studio(key, items, rater=None)), "nobody.json")
    slow = label_studio(key, items)
    slow[0]["annotations"][0]["lead_time"] = "12s"
    refused("it took '12s' seconds", json.dumps(slow), "slow.json")
    with pytest.raises(VotesError, match="does not exist"):
        import_votes([tmp_path / "none.json"], key)
    path = saved(tmp_path, page(key))
    with pytest.raises(VotesError, match="a second time"):
        import_votes([path, path], key)


def test_the_table_can_be_read_again_and_every_wrong_line_is_named(key, tmp_path):
    votes = import_votes([saved(tmp_path, page(key))], key).votes
    path = tmp_path / "votes.csv"
    write_votes(path, votes)
    assert (
        path.read_text().splitlines()[0]
        == ",".join(FIELDS)
        == (
            "study_id,item_id,prompt_id,rater_id,criterion,model_a,model_b,side,choice,strength,rt_ms,is_gold,is_repeat,ts,"
            "client_sha"
        )
    )
    assert read_votes(path, ASKED, key.study) == votes
    whole = path.read_text()

    def refused(sentence, old, new):
        path.write_text(whole.replace(old, new, 1))
        with pytest.raises(VotesError, match=sentence):
            read_votes(path, ASKED, key.study)

    refused("line 2, item .*study_id is 'other'", key.study, "other")
    refused("line .*model_a 'gan' is not of this study", NAMES[0], "gan")
    refused("line 2, item .*rt_ms is 'nan'", ",900,", ",nan,")
    refused("line 2 has 16 values for 15 columns", "\n", "\n9,")
    refused("no table of votes", "study_id", "study")
    path.write_text(whole + whole.splitlines()[-1] + "\n")
    with pytest.raises(VotesError, match="a second time"):
        read_votes(path, ASKED, key.study)
    path.write_text(whole.splitlines()[0] + "\n")
    with pytest.raises(VotesError, match="holds no votes"):
        read_votes(path, ASKED, key.study)


def test_raters_are_judged_by_the_registered_rules(key, tmp_path):
    asked = study(2, block=30, raters=2, criteria=("relevance", "defects"), gold=0.2, repeats=0.2)
    large = synthetic_key(asked, prompts(30), np.random.default_rng(0))
    attentive = Truth(strengths=(3.0, -3.0), noise=0)
    pages = answer_pages(large, attentive, np.random.default_rng(0))
    for vote in pages[1]["votes"]:
        vote["choice"], vote["rt_ms"] = "left", 600
    files = [saved(tmp_path, one, f"{at}.json") for at, one in enumerate(pages)]
    votes = import_votes(files, large, names=True).votes
    good, lazy = audit(votes, Exclude(max_side=0.9, min_consistency=0.5))
    assert not good.excluded and good.gold > 0.8 and good.alike > 0.6 and 0.3 < good.left < 0.7
    assert lazy.left == lazy.same == 1 and lazy.alike == 0 and lazy.median_ms == 600
    assert Counter(why.split(" ")[-2] for why in lazy.excluded)["below"] >= 1
    assert len(lazy.excluded) == 4 and "controls as expected" in lazy.excluded[0]
    assert not any(rater.excluded for rater in audit(votes, Exclude(min_gold=0, min_median_ms=0)))
