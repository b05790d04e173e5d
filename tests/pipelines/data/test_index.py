import io
import os
import tarfile

import pytest

from pipelines.data import index
from pipelines.data.index import Stamp, cache_of, index_shard, scan

from .conftest import samples, tar


def bytes_of(shard, i, extension):
    offset, size = shard.members(i)[extension]
    return shard.path.read_bytes()[offset : offset + size]


def test_index_agrees_with_tarfile(scenes_folder):
    shard = scan(scenes_folder / "train-000000.tar")
    with tarfile.open(shard.path) as archive:
        expected = {member.name: archive.extractfile(member).read() for member in archive}
    found = {f"{k}.{e}": bytes_of(shard, i, e) for i, k in enumerate(shard.all_keys()) for e in shard.members(i)}
    assert found == expected
    assert not shard.damage


def test_keys_end_at_the_first_dot_and_folders_belong_to_them(tmp_path):
    members = {"a/b.latent.npy": b"1", "a/b.TXT": b"2", "c/b.txt": b"3", "a/__meta.json": b"", "a/._b.txt": b""}
    shard = scan(tar(tmp_path / "train.tar", members))
    assert shard.all_keys() == [shard.key(0), shard.key(1)] == ["a/b", "c/b"]
    assert set(shard.members(0)) == {"latent.npy", "txt"}


def test_long_names_are_read(tmp_path):
    name = "x" * 150 + ".txt"
    shard = scan(tar(tmp_path / "train.tar", {name: b"words"}))
    assert bytes_of(shard, 0, "txt") == b"words"


@pytest.mark.parametrize("share", [0.3, 0.5, 0.77, 0.95])
def test_a_truncated_tar_keeps_its_readable_samples_and_reports_the_damage(tmp_path, share):
    path = tar(tmp_path / "train.tar", samples(20))
    whole = scan(path)
    data = path.read_bytes()
    end = max(offset + size for i in range(len(whole)) for offset, size in whole.members(i).values())
    path.write_bytes(data[: int(end * share)])
    cut = scan(path)
    assert 0 < len(cut) < 20
    assert cut.damage
    for i in range(len(cut) - 1):
        assert cut.members(i) == whole.members(i)


@pytest.mark.parametrize("content", [b"", b"not a tar at all" * 100])
def test_a_file_that_is_no_tar_has_no_samples_but_a_reason(tmp_path, content):
    path = tmp_path / "train.tar"
    path.write_bytes(content)
    assert scan(path).all_keys() == [] and scan(path).damage


def test_rubbish_between_members_is_damage_and_not_the_end(tmp_path):
    path = tar(tmp_path / "train.tar", samples(6))
    data = bytearray(path.read_bytes())
    start = scan(path).members(3)["png"][0] - 512
    data[start : start + 512] = os.urandom(512)
    path.write_bytes(data)
    shard = scan(path)
    assert len(shard) == 3 and shard.damage


def test_a_name_that_occurs_twice_is_reported(tmp_path):
    path = tar(tmp_path / "train.tar", {"a.txt": b"1"})
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    assert "twice" in scan(path).damage[0]


def test_a_member_of_a_name_that_is_no_text_and_a_large_shard_survive_the_cache(tmp_path):
    """Offsets beyond 32 bits, from a tar with a hole of 5 GB, and a key of a byte that is not UTF-8."""
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("hole.bin")
        info.size = 5 * 2**30
        archive.addfile(info)
    with path.open("rb+") as file:
        file.truncate(512 + info.size)
        file.seek(0, io.SEEK_END)
        last = tarfile.TarInfo("\udcff.txt")
        last.size = 5
        file.write(last.tobuf(tarfile.GNU_FORMAT) + b"words".ljust(512, b"\0") + bytes(1024))
    made, again = index_shard(path), index_shard(path)
    assert made.saved and again.all_keys() == made.all_keys() == ["hole", "\udcff"]
    assert again.members(1) == {"txt": (1024 + 5 * 2**30, 5)} and again.members(0) == {"bin": (512, 5 * 2**30)}


def test_the_cache_is_used_and_a_changed_shard_is_read_again(tmp_path, monkeypatch):
    path = tar(tmp_path / "train.tar", samples(3))
    first = index_shard(path)
    with monkeypatch.context() as patch:
        patch.setattr(index, "scan", lambda _: pytest.fail("the cache was not used"))
        again = index_shard(path)
    assert again.digest() == first.digest() == scan(path).digest()
    assert [again.members(i) for i in range(3)] == [first.members(i) for i in range(3)]
    tar(path, samples(4))
    assert len(index_shard(path)) == 4
    kept = Stamp.of(path)
    tar(path, samples(4, prefix="t"))
    assert path.stat().st_size == kept.bytes
    os.utime(path, ns=(0, kept.mtime_ns + 1))
    assert index_shard(path).key(0) == "t000"


@pytest.mark.parametrize("place", [0, 7, 300, -40, -1])
def test_a_cache_with_one_changed_bit_is_made_anew(tmp_path, place):
    path = tar(tmp_path / "train.tar", samples(3))
    index_shard(path)
    data = bytearray(cache_of(path).read_bytes())
    data[place] ^= 1
    cache_of(path).write_bytes(data)
    assert index_shard(path).digest() == scan(path).digest()
    assert cache_of(path).read_bytes() != data


@pytest.mark.parametrize("length", [0, 10, 31, 32, 200, -1])
def test_a_cache_that_is_cut_off_is_made_anew(tmp_path, length):
    path = tar(tmp_path / "train.tar", samples(3))
    index_shard(path)
    whole = cache_of(path).read_bytes()
    cache_of(path).write_bytes(whole[:length])
    assert index_shard(path).digest() == scan(path).digest()
    assert cache_of(path).read_bytes() == whole


def test_nothing_is_written_into_a_folder_that_is_read_only(tmp_path):
    path = tar(tmp_path / "data/train.tar", samples(3))
    path.parent.chmod(0o555)
    shard = index_shard(path)
    assert len(shard) == 3 and not shard.saved
    assert os.listdir(path.parent) == ["train.tar"]
    path.parent.chmod(0o755)
