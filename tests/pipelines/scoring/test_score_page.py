"""What the page of pictures from anywhere says beyond distances: a baseline, sets side by side, how they were drawn."""

import json

import pytest

from pipelines.scoring.score import Asked, score
from tests.pipelines.scoring.test_score import command, draw, drawn


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("scoring"))


def scored(folders, out, *generated):
    asked = Asked(
        generated=tuple(map(str, generated)), reference=str(folders / "reference"), out=out, embedders=("random-conv",)
    )
    page, figures = score(asked, "")
    return page.read_text(encoding="utf-8"), json.loads(figures.read_text(encoding="utf-8"))


def test_a_baseline_is_shown_even_where_it_is_overwritten(folders, tmp_path, monkeypatch, capsys):
    made, one, two = (tmp_path / name for name in ("made", "one", "two"))
    words = ("eval", "--generated", made, "--reference", folders / "reference", "--embedders", "pixels-pca")
    made.symlink_to(folders / "near")
    assert command(monkeypatch, capsys, *words, "--count", 24, "--out", one)[0] == 0
    made.unlink()
    made.symlink_to(folders / "far")
    assert command(monkeypatch, capsys, *words, "--count", 24, "--out", one, "--against", one)[0] == 0
    page = (one / "report.html").read_text(encoding="utf-8")
    assert "Change since the baseline" in page and "✗ worse" in page
    assert command(monkeypatch, capsys, *words, "--count", 20, "--out", two, "--against", one)[0] == 0
    assert "n 24/60, now 20/60" in (two / "report.html").read_text(encoding="utf-8")


def test_a_bad_baseline_is_refused_before_anything_is_embedded(folders, tmp_path, monkeypatch, capsys):
    _, content = scored(folders, tmp_path / "one", folders / "near")
    content["provenance"]["data"]["hash"] = "elsewhere"
    (tmp_path / "other.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    words = ("eval", "--generated", folders / "near", "--reference", folders / "reference", "--out", tmp_path / "two")
    capsys.readouterr()
    for bad, sentence in (
        ("nowhere", "no report at"), ("other.json", "was made on other data (elsewhere"), ("broken.json", "is no JSON")
    ):  # fmt: skip
        code, _, err = command(monkeypatch, capsys, *words, "--against", tmp_path / bad)
        assert code == 2 and sentence in err and len(err.splitlines()) == 1
        assert not (tmp_path / "two").exists()


def test_sets_of_the_same_captions_stand_side_by_side(folders, tmp_path):
    def sides(*generated):
        page, _ = scored(folders, tmp_path / "out", *generated)
        return page.partition("The same caption by every set")[2].partition("</ul>")[0]

    twin = draw(tmp_path / "twin", 30, 90, captions=True, seed=7)
    shown = sides(folders / "near", twin)
    assert shown.count("<figure>") == 30 and shown.count("<bdi>near</bdi>") == shown.count("<bdi>twin</bdi>") == 30
    assert sides(folders / "near") == ""
    bare = draw(tmp_path / "bare", 30, 90)
    assert sides(folders / "near", bare) == "", "nobody says what was asked for"


def test_sets_of_one_name_are_told_apart_by_as_little_of_their_paths_as_does(folders, tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        (tmp_path / parent / "test").symlink_to(folders / "near")
    _, content = scored(folders, tmp_path / "out", *(tmp_path / parent / "test" for parent in ("a", "b")))
    assert {name.partition(".")[0] for name in content["figures"]} >= {"a/test", "b/test"}


def test_the_files_beside_pictures_say_how_they_were_drawn_where_all_agree(folders, tmp_path):
    made = draw(tmp_path / "made", 6, 100)

    def judged():
        (one,) = scored(folders, tmp_path / "out", made)[1]["provenance"]["models"]
        return one["name"], one["sampler"], one["steps"], one["seed"]

    assert judged() == ("made", "", "", None)
    said = {"prompt": "p", "seed": 3, "settings": {"sampler": "heun", "steps": 4, "guidance": 3.0, "latent": {}}}
    for i in range(6):
        (made / f"{i:03d}.json").write_text(json.dumps(said), encoding="utf-8")
    assert judged() == ("made", "heun", "4 (7 evaluations)", 3)
    (made / "005.json").write_text(json.dumps(said | {"seed": 4}), encoding="utf-8")
    assert judged() == ("made", "", "", None)
