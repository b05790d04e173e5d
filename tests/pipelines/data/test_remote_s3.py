"""Shards from a real S3 server on this machine, where s3fs and moto are installed."""

import pytest

from pipelines.data.check import check
from pipelines.data.place import place_of
from pipelines.data.remote.protocols import EXTRAS
from pipelines.data.shards import open_split
from pipelines.errors import DataError

from .remote_set import NAMES, everything


@pytest.fixture
def bucket(shards_folder, tmp_path, monkeypatch):
    """The set in a bucket."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    threaded = pytest.importorskip("moto.server", reason="moto[server] is not installed").ThreadedMotoServer
    import boto3

    for name, value in (("KEY_ID", "testing"), ("SECRET", "testing")):
        monkeypatch.setenv(f"AWS_{'ACCESS_KEY_ID' if name == 'KEY_ID' else 'SECRET_ACCESS_KEY'}", value)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PALIMPSEST_TRIES", "2")
    server = threaded(ip_address="127.0.0.1", port=0)
    server.start()
    s3fs.S3FileSystem.clear_instance_cache()  # which knows the server of the test before
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="sets")
        for path in shards_folder.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "sets", f"small/{path.relative_to(shards_folder)}")
        yield client
    finally:
        server.stop()


def test_a_bucket_is_listed_read_and_checked(bucket, shards_folder, caplog):
    split = open_split("s3://sets/small", "train")
    assert everything(split) == everything(open_split(shards_folder, "train"))
    assert split.place.sizes(NAMES) == [(shards_folder / name).stat().st_size for name in NAMES]
    assert check("s3://sets/small/").ok and "are not in a summary" not in caplog.text
    some = open_split("s3://sets/small/train-{000001..000002}.tar", "train")
    assert list(some.shards.names) == NAMES[1:3]


def test_a_bucket_without_a_summary_is_indexed_and_told_where_to_put_one(bucket, shards_folder, caplog):
    bucket.delete_object(Bucket="sets", Key="small/.index/folder")
    assert everything(open_split("s3://sets/small", "train")) == everything(open_split(shards_folder, "train"))
    assert "6 of 6 shards are not in a summary" in caplog.text
    assert any("aws s3 cp --recursive" in note for note in check("s3://sets/small").notes)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("s3://sets/nothing/", "No train shards in s3://"),
        ("s3://none/", "s3://none/ after 2 tries.*bucket does not exist"),
    ],
)
def test_a_bucket_or_prefix_that_is_not_there_says_so(bucket, address, sentence):
    with pytest.raises(DataError, match=sentence):
        open_split(address, "train")
    with pytest.raises(DataError, match=r"1 of 1 shards are missing, such as train-9\.tar"):
        open_split("s3://sets/small/train-{9..9}.tar", "train")


@pytest.mark.parametrize(("protocol", "extra"), [("s3", "s3"), ("gs", "gs")])
def test_what_a_protocol_needs_and_is_not_installed_is_named(protocol, extra, monkeypatch):
    monkeypatch.setitem(EXTRAS, protocol, ("nothing_of_that_name", extra))
    with pytest.raises(DataError, match=rf"{protocol}:// needs nothing_of_that_name.*'palimpsest\[{extra}\]'"):
        place_of(f"{protocol}://bucket/a/")
