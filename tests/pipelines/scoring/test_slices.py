"""Slices of captioned pictures: each picture in one slice of every kind that parts them, with one bound for all."""

import numpy as np
import pytest

from pipelines.scoring.slices import slices_of


def words(*lengths):
    return [f"{'w ' * length}{number}"[2:] for number, length in enumerate(lengths)]


def captioned(lengths, labels=None, cut=None):
    n = len(lengths)
    return words(*lengths), np.zeros(n, bool) if cut is None else np.array(cut), labels or [{}] * n


def test_terciles_of_all_captions_part_every_set_alike():
    found = slices_of({"a": captioned([2, 3, 4, 5, 6, 7]), "b": captioned([2, 2, 9])})["words"]
    assert list(found) == ["2-3", "4-6", "7+"]
    assert [found[part]["a"].sum() for part in found] == [2, 3, 1]
    assert {part: members["b"].tolist() for part, members in found.items() if "b" in members} == {
        "2-3": [True, True, False], "7+": [False, False, True],
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_every_picture_is_in_one_slice_by_words(seed):
    lengths = np.random.default_rng(seed).integers(1, 6 + 4 * seed, 40).tolist()
    parts = slices_of({"a": captioned(lengths)})["words"]
    assert np.array_equal(sum(members["a"].astype(int) for members in parts.values()), np.ones(40))


def test_what_does_not_part_the_pictures_is_no_slice():
    assert slices_of({"a": captioned([4, 4, 4], [{"kind": "cat"}] * 3)}) == {}
    assert slices_of({"a": captioned([4, 4], cut=[True, True])}) == {}
    assert list(slices_of({"a": captioned([4, 4], cut=[True, False])})["caption"]) == ["cut", "whole"]


def test_labels_of_few_plain_values_are_slices_and_lists_count_as_their_lengths():
    labels = [
        {"kind": "cat", "objects": [1], "size": 0.5, "id": "x[1]", "odd": {}, "relation": None, "real": True},
        {"kind": "dog", "objects": [1, 2], "size": 0.7, "id": "y|2", "odd": {}, "relation": "left of", "real": False},
        {"kind": "dog", "objects": [], "size": 0.7, "id": "z", "odd": {}, "relation": "below"},
    ]
    found = slices_of({"a": captioned([3, 3, 3], labels)})
    assert set(found) == {"label.kind", "label.objects", "label.relation", "label.real"}
    assert found["label.kind"]["dog"]["a"].tolist() == [False, True, True]
    assert list(found["label.objects"]) == ["0", "1", "2"] and list(found["label.real"]) == ["False", "True"]
    assert found["label.relation"]["below"]["a"].tolist() == [False, False, True]
    twins = [{"class": "cat", "number": 3}, {"class": "dog", "number": 5}, {"class": "cat", "number": 3}]
    assert list(slices_of({"a": captioned([3, 3, 3], twins)})) == ["label.class"]  # which part the pictures alike
    many = [{"file": str(number)} for number in range(20)]
    assert slices_of({"a": captioned([3] * 20, many)}) == {}
