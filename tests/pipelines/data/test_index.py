import os
import tarfile

import pytest

from pipelines.data import index
from pipelines.data.index import index_shard, scan

from .conftest import samples, tar


def bytes_of(shard, i, extension):
    offset, size = shard.members[i][extension]
    return shard.path.read_bytes()[offset : offset + size]


def test_index_agrees_with_tarfile(scenes_folder):
    shard = scan(scenes_folder / "train-000000.tar")
    with tarfile.open(shard.path) as archive:
        expected = {member.name: archive.extractfile(member).read() for member in archive}
    found = {f"{k}.{e}": bytes_of(shard, i, e) for i, k in enumerate(shard.keys) for e in shard.members[i]}
    assert found == expected
    assert not shard.damage


def test_keys_end_at_the_first_dot_and_folders_belong_to_them(tmp_path):
    members = {"a/b.latent.npy": b"1", "a/b.TXT": b"2", "c/b.txt": b"3", "a/__meta.json": b"", "a/._b.txt": b""}
    shard = scan(tar(tmp_path / "train.tar", members))
    assert shard.keys == ("a/b", "c/b")
    assert set(shard.members[0]) == {"latent.npy", "txt"}


def test_long_names_are_read(tmp_path):
    name = "x" * 150 + ".txt"
    shard = scan(tar(tmp_path / "train.tar", {name: b"words"}))
    assert bytes_of(shard, 0, "txt") == b"words"


@pytest.mark.parametrize("share", [0.3, 0.5, 0.77, 0.95])
def test_a_truncated_tar_keeps_its_readable_samples_and_reports_the_damage(tmp_path, share):
    path = tar(tmp_path / "train.tar", samples(20))
    whole = scan(path)
    data = path.read_bytes()
    end = max(offset + size for sample in whole.members for offset, size in sample.values())
    path.write_bytes(data[: int(end * share)])
    cut = scan(path)
    assert 0 < len(cut.keys) < 20
    assert cut.damage
    for i in range(len(cut.keys) - 1):
        assert cut.members[i] == whole.members[i]


@pytest.mark.parametrize("content", [b"", b"not a tar at all" * 100])
def test_a_file_that_is_no_tar_has_no_samples_but_a_reason(tmp_path, content):
    path = tmp_path / "train.tar"
    path.write_bytes(content)
    assert scan(path).keys == () and scan(path).damage


def test_rubbish_between_members_is_damage_and_not_the_end(tmp_path):
    path = tar(tmp_path / "train.tar", samples(6))
    data = bytearray(path.read_bytes())
    start = scan(path).members[3]["png"][0] - 512
    data[start : start + 512] = os.urandom(512)
    path.write_bytes(data)
    shard = scan(path)
    assert len(shard.keys) == 3 and shard.damage


def test_a_name_that_occurs_twice_is_reported(tmp_path):
    path = tar(tmp_path / "train.tar", {"a.txt": b"1"})
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    assert "twice" in scan(path).damage[0]


def test_the_cache_is_used_and_a_changed_shard_is_read_again(tmp_path, monkeypatch):
    path = tar(tmp_path / "train.tar", samples(3))
    first = index_shard(path)
    with monkeypatch.context() as patch:
        patch.setattr(index, "scan", lambda _: pytest.fail("the cache was not used"))
        assert index_shard(path) == first
    tar(path, samples(4))
    assert len(index_shard(path).keys) == 4


def test_a_broken_cache_is_ignored(tmp_path):
    path = tar(tmp_path / "train.tar", samples(3))
    index_shard(path)
    (tmp_path / ".index/train.tar.json").write_text('{"stamp"')
    assert len(index_shard(path).keys) == 3


def test_nothing_is_written_into_a_folder_that_is_read_only(tmp_path):
    path = tar(tmp_path / "data/train.tar", samples(3))
    path.parent.chmod(0o555)
    assert len(index_shard(path).keys) == 3
    assert os.listdir(path.parent) == ["train.tar"]
    path.parent.chmod(0o755)
