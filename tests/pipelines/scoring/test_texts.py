"""Texts from anywhere: how they are read, what is said of them, and what is refused."""

import json
import math
from pathlib import Path

import pytest

from eval.definitions import define
from eval.text import distinct, whole_share
from pipelines.errors import DataError, PalimpsestError
from pipelines.scoring.text_files import open_texts
from pipelines.scoring.texts import TextsAsked, score_texts

TEXTS = ["a red circle", "a blue square on sand", "two green stars", 'a "quoted" & <b>bold</b> ring']


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.txt", "\n".join(TEXTS) + "\n"),
        ("rows.jsonl", "\n".join(json.dumps({"text": text, "id": 3}) for text in TEXTS)),
        ("bare.jsonl", "\n".join(json.dumps(text) for text in TEXTS) + "\n"),
        ("list.json", json.dumps(TEXTS)),
        ("objects.json", json.dumps([{"text": text} for text in TEXTS])),
    ],
)
def test_every_form_gives_the_same_texts(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    found = open_texts(path, "set")
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    assert found.texts == open_texts(folder, "set").texts == tuple(TEXTS)
    assert found.sha256 == open_texts(folder, "set").sha256


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "one\n\nthree\n \n", "2 of 4 texts in .* are empty: line 2, line 4"),
        ("a.jsonl", '{"text": "x"}\n{"caption": "y"}\n', "line 2, is no text"),
        ("a.jsonl", '"x"\n{bad\n', "line 2, is no JSON"),
        ("a.json", '{"text": "x"}', "holds dict, expected a list"),
        ("a.csv", "text\nx\n", "no file of texts"),
        ("a.txt", "alone\n", "holds 1 texts, expected at least 2"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, name: str, content: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        open_texts(path, "set")


def written(folder: Path, name: str, texts: list[str]) -> str:
    path = folder / name
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return str(path)


def test_a_report_on_texts_says_what_repeats_and_what_is_copied(tmp_path: Path) -> None:
    real = [f"a {size} {colour} {shape} <i>" for size in "xyz" for colour in ("red", "blue") for shape in "opqr"]
    copies = written(tmp_path, "copies.txt", real[:10])
    same = written(tmp_path, "same.txt", ["a a a a"] * 12)
    asked = TextsAsked(
        texts=(copies, same), reference=written(tmp_path, "real.txt", real), out=tmp_path / "out",
        train=Path(written(tmp_path, "train.txt", [*real[:10], "", "other words"])),
    )  # fmt: skip
    page, path = score_texts(asked, "palimpsest eval --texts ...")
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    value = {name: figure["value"] for name, figure in figures.items()}
    assert value["copies.txt.copied[words|n=10]"] == 1 and value["same.txt.copied[words|n=10]"] == 0
    assert value["copies.txt.longest_copied[words|n=10]"] == 5
    assert value["same.txt.duplicates[words|n=10]"] == pytest.approx(0.9)
    assert value["same.txt.entropy[words|n=10]"] == 0 and value["same.txt.self_bleu_4[words|n=10]"] == 1
    assert value["real.entropy[words|n=10]"] == pytest.approx(math.log(5))  # the other half of the reference
    assert all(define(name).label != name for name in figures)
    html = page.read_text(encoding="utf-8")
    assert "<i>" not in html and "&lt;i&gt;" in html
    cut = TextsAsked(texts=(copies,), reference=asked.reference, out=tmp_path / "cut", words=2)
    found = json.loads(score_texts(cut, "")[1].read_text(encoding="utf-8"))["figures"]
    assert found["copies.txt.entropy[words|n=10|cut=2]"]["value"] == pytest.approx(math.log(2))


def test_numbers_and_names_that_judge_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PalimpsestError, match="--words is 0"):
        TextsAsked(texts=("a",), reference="b", out=tmp_path, words=0)
    same = written(tmp_path, "real", ["a", "b"])
    with pytest.raises(PalimpsestError, match="called 'real'"):
        score_texts(TextsAsked(texts=(same,), reference=same, out=tmp_path), "")


def test_the_interval_of_distinct_runs_is_that_of_the_jackknife() -> None:
    texts = [["a", "b"], ["a", "c"], ["d", "d", "d"]]
    found = whole_share(lambda rows: distinct(rows, 1), texts)
    without = [3 / 5, 3 / 5, 3 / 4]  # without each text in turn
    mean = sum(without) / 3
    se = math.sqrt(2 / 3 * sum((one - mean) ** 2 for one in without))
    assert found.value == 4 / 7 and found.n == 3
    half = 4.302652729911275 * se  # Student's t with two degrees of freedom
    assert (found.low, found.high) == pytest.approx((4 / 7 - half, min(1, 4 / 7 + half)))
