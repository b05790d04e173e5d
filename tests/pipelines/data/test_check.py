import os
import shutil

import pytest

from pipelines.data import index
from pipelines.data.check import check
from pipelines.data.shards import open_split
from pipelines.errors import DataError

from .conftest import png, samples, tar


@pytest.fixture
def folder(tmp_path):
    tar(tmp_path / "train-000000.tar", samples(8))
    tar(tmp_path / "test-000000.tar", samples(3, prefix="t"))
    return tmp_path


def test_sound_shards_are_safe(folder, scenes_folder):
    assert check(folder).ok
    report = check(scenes_folder)
    assert report.ok and not report.notes
    assert dict(report.samples) == {"train": 120, "test": 12, "unseen": 8}
    assert "safe to train on" in report.summary()


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"a.png": b"rubbish", "a.txt": b"x"}, "a in train-000001.tar: unreadable picture"),
        ({"a.png": png()}, "no caption"),
        ({"a.txt": b"x"}, "no picture"),
        ({"a.png": png(), "a.txt": b"\xff"}, "not UTF-8"),
        ({"a.png": png(), "a.txt": b"x", "a.json": b"{"}, "not JSON"),
        ({"s003.png": png(), "s003.txt": b"x"}, "the key s003 is in train-000000.tar and in train-000001.tar"),
    ],
)
def test_what_would_harm_a_run_is_a_problem_that_names_the_sample(folder, members, sentence):
    tar(folder / "train-000001.tar", members)
    report = check(folder)
    assert not report.ok and len(report.problems) == 1
    assert sentence in report.problems[0] and sentence in report.summary()


def test_a_truncated_shard_is_a_problem(folder):
    path = folder / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:5000])
    assert any("train-000000.tar" in sentence for sentence in check(folder).problems)


def test_one_changed_bit_in_a_picture_is_found_by_the_manifest(scenes_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(scenes_folder, folder)
    data = bytearray((folder / "train-000000.tar").read_bytes())
    data[100_000] ^= 1
    (folder / "train-000000.tar").write_bytes(data)
    (folder / "unseen-000000.tar").unlink()
    report = check(folder)
    assert any("train-000000.tar" in p and "sha256 differs" in p for p in report.problems)
    assert any("unseen-000000.tar is in the manifest but not" in p for p in report.problems)


def test_empty_captions_and_odd_sizes_are_notes(folder):
    tar(folder / "train-000001.tar", {"a.png": png(size=(30, 10)), "a.txt": b"wide", "b.png": png(), "b.txt": b""})
    report = check(folder)
    assert report.ok and report.empty_captions == 1
    assert any("1 captions are empty" in note for note in report.notes)
    assert any("1 pictures are not 16x16" in note and "1 are not square" in note for note in report.notes)


def test_a_folder_without_a_test_split_is_not_safe(folder):
    (folder / "test-000000.tar").unlink()
    report = check(folder)
    assert not report.ok and "no readable test samples" in report.problems[0]


def test_a_missing_folder_and_one_without_shards_are_errors(tmp_path):
    with pytest.raises(DataError, match="No data folder"):
        check(tmp_path / "nowhere")
    with pytest.raises(DataError, match="No shards in"):
        check(tmp_path)


def test_a_check_indexes_the_folder_for_the_run_that_comes_after(folder, monkeypatch):
    check(folder)
    monkeypatch.setattr(index, "scan", lambda _: pytest.fail("a shard was read again"))
    assert len(open_split(folder, "train")) == 8 and open_split(folder, "test")[0].key == "t000"


def test_bytes_that_changed_under_the_same_size_and_time_are_a_problem_until_it_is_said_to_be_meant(folder):
    assert check(folder).ok and check(folder).ok
    path = folder / "train-000000.tar"
    before, changed = path.stat(), bytearray(path.read_bytes())
    place = changed.index(b"number 3")
    changed[place : place + 8] = b"number 4"
    path.write_bytes(changed)
    os.utime(path, ns=(0, before.st_mtime_ns))
    open_split(folder, "train")  # a run does not see it
    for _ in range(2):
        report = check(folder)
        assert len(report.problems) == 1
        assert "train-000000.tar holds other bytes than when it was checked first" in report.problems[0]
    shutil.rmtree(folder / ".index")
    assert check(folder).ok
    path.write_bytes(changed)
    assert check(folder).ok  # another time of change: another file


def test_a_check_leaves_no_trace_in_a_folder_that_is_read_only(folder):
    folder.chmod(0o555)
    assert check(folder).ok
    folder.chmod(0o755)
    assert sorted(path.name for path in folder.iterdir()) == ["test-000000.tar", "train-000000.tar"]
