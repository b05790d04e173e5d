"""Pictures that are no result are counted, shown and named."""

import numpy as np
import pytest
import torch

from eval.blocks import Gallery, Table
from pipelines.errors import DataError
from pipelines.pictures import NOT_FINITE, to_pil
from pipelines.scoring.failures import failures, look
from pipelines.scoring.sets import PictureSet, open_set
from tests.pipelines.scoring.test_score import draw


def noise(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))


def test_each_kind_of_failure_is_found_where_it_is():
    pictures = noise(6)
    pictures[1] = np.full((8, 8, 3), 2, dtype=np.uint8)
    pictures[2] = np.full((8, 8, 3), (9, 200, 30), dtype=np.uint8)
    pictures[5] = pictures[0].copy()
    abouts = [{NOT_FINITE: i == 4} for i in range(6)]
    captions = [f"caption {i}" for i in range(6)]
    made = PictureSet.of(pictures, "made", names=[f"{i}.png" for i in range(6)], captions=captions, abouts=abouts)
    assert look(made).places == {"not_finite": [4], "black": [1], "even": [2], "repeated": [5]}
    figures = {}
    section = failures({"made": made}, PictureSet.of(noise(3, 1), "held-out"), figures)
    assert {name: figure.value for name, figure in figures.items() if figure.value} == {
        f"made.failures[{kind}]": 1 for kind in ("not_finite", "black", "even", "repeated")
    }
    table, gallery = section.blocks
    assert isinstance(table, Table) and [row.cells[0] for row in table.rows] == ["held-out", "made"]
    assert isinstance(gallery, Gallery) and [words for _, words in gallery.items] == [
        "1.png: black. caption 1", "2.png: of one colour. caption 2", "4.png: not finite. caption 4",
        "5.png: repeated. caption 5",
    ]  # fmt: skip


def test_unreadable_pictures_are_all_named(tmp_path):
    draw(tmp_path / "made", 5, 100)
    for name in ("001.png", "003.png"):
        (tmp_path / "made" / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"2 of 5 pictures: .*001\.png.*003\.png"):
        failures({"made": open_set(tmp_path / "made")}, None, {})


def test_a_picture_with_nan_is_black_there_and_says_so():
    x = torch.zeros(3, 3, 4, 4)
    x[1, 0, 2, 2] = torch.nan
    x[2, 1, 0, 0] = torch.inf
    first, second, third = to_pil(x)
    assert NOT_FINITE not in first.info and second.info[NOT_FINITE] and third.info[NOT_FINITE]
    assert second.getpixel((2, 2))[0] == 0 and third.getpixel((0, 0))[1] == 255
