"""The shards that are kept on this machine: limits, locks, what is fetched ahead, and what is never shown."""

import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from itertools import islice

import pytest

from pipelines.data.check import check
from pipelines.data.decode import caption_only
from pipelines.data.order import Shuffle
from pipelines.data.patience import GaveUp, waiting_until
from pipelines.data.place import place_of
from pipelines.data.remote import folder as remote_folder
from pipelines.data.remote.address import Address, without_credentials
from pipelines.data.remote.folder import Remote
from pipelines.data.remote.store import Store
from pipelines.data.remote.transfer import Patience
from pipelines.data.shards import open_split
from pipelines.data.stream import Stream, once
from pipelines.errors import DataError
from tests.conftest import ROOT

from .conftest import samples, tar
from .remote_set import EACH, NAMES, QUICK, SHARDS, everything, kept, remote, size_of
from .server import serving


def settled(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def stream_of(split, block=2):
    return Stream(split=split, decode=caption_only, batch=EACH, order=Shuffle(split.sizes, 3, block))


def test_the_oldest_used_go_when_the_limit_is_reached_but_none_in_use(server, shards_folder, tmp_path):
    split = open_split(remote(server, tmp_path, limit=3 * size_of(shards_folder)), "train")
    split.hold(1)  # one file open
    for shard in (0, 1, 2, 0, 3):
        split[shard * EACH]
    assert kept(tmp_path) == {NAMES[0], NAMES[2], NAMES[3]}
    other = open_split(remote(server, tmp_path, limit=3 * size_of(shards_folder)), "train")
    held = [other.place.open(name) for name in (NAMES[0], NAMES[2])]
    split[4 * EACH], split[5 * EACH]
    assert kept(tmp_path) == {NAMES[0], NAMES[2], NAMES[5]}
    for handle in held:
        os.close(handle)


def test_a_block_that_does_not_fit_is_read_all_the_same_and_said_once(server, shards_folder, tmp_path, caplog):
    split = open_split(remote(server, tmp_path, limit=2 * size_of(shards_folder)), "train")
    split.hold(4)
    assert [split[shard * EACH].key for shard in (0, 1, 2, 3)] == ["s000", "t000", "u000", "v000"]
    assert caplog.text.count("raise PALIMPSEST_CACHE_GB, or lower data.block") == 1
    assert kept(tmp_path) == set(NAMES[:4])


def test_the_next_block_is_fetched_while_this_one_is_read_and_nothing_else(server, shards_folder, tmp_path):
    split = open_split(remote(server, tmp_path), "train")
    order = Shuffle(split.sizes, 3, 2)
    cursor = 2 * EACH  # the second of three blocks
    now, end = order.group(cursor)
    following, _ = order.group(end)
    next(stream_of(split).batches(cursor))
    wanted = {NAMES[shard] for shard in [*now, *following]}
    settled(lambda: kept(tmp_path) == wanted)
    assert server.read() == wanted and len(wanted) == 4  # what a resumed run skips is not read


def test_what_is_fetched_ahead_keeps_to_the_limit(server, shards_folder, tmp_path):
    split = open_split(remote(server, tmp_path, limit=3 * size_of(shards_folder)), "train")
    batches = stream_of(split).batches()
    for _ in range(2 * SHARDS):
        next(batches)
        time.sleep(0.05)
        assert len(kept(tmp_path)) <= 3
    assert sum(server.gets[name] for name in NAMES) <= 3 * SHARDS


@pytest.mark.slow
def test_two_processes_fetch_a_shard_once(server, shards_folder, tmp_path):
    server.delay = 0.1
    code = (
        "import sys; from pipelines.data.shards import open_split\n"
        "split = open_split(sys.argv[1], 'train'); print([split[i].key for i in range(len(split))])"
    )
    environment = {**os.environ, "PALIMPSEST_CACHE": str(tmp_path / "cache")}
    words = [sys.executable, "-c", code, server.url]
    both = [subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=100)[0] for process in both]
    assert said[0] == said[1] == f"{[sample.key for sample in everything(open_split(shards_folder, 'train'))]}\n"
    assert [server.gets[name] for name in NAMES] == [1] * SHARDS


def test_data_workers_and_their_parent_share_what_is_kept(server, shards_folder, tmp_path):
    split = open_split(remote(server, tmp_path), "train")
    first = split[0]  # connections and threads of the parent
    stream = Stream(split=split, decode=caption_only, batch=5, order=Shuffle(split.sizes, 3, 2), workers=2)
    local = Stream(
        split=open_split(shards_folder, "train"), decode=caption_only, batch=5, order=Shuffle(split.sizes, 3, 2)
    )
    keys = [[batch["key"] for batch, _ in islice(one.batches(), 12)] for one in (stream, local)]
    assert keys[0] == keys[1] and pickle.loads(pickle.dumps(split))[0] == first
    assert max(server.gets[name] for name in NAMES) == 1


def test_who_is_asked_to_end_does_not_wait_for_a_shard(server, tmp_path):
    server.always = "stall"
    split = open_split(remote(server, tmp_path, patience=Patience(tries=3, stall=15)), "train")
    asked, met = threading.Event(), []

    def read():
        with waiting_until(asked.is_set):
            try:
                split[0]
            except GaveUp as error:
                met.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    settled(lambda: server.gets[NAMES[0]])
    asked.set()
    thread.join(2)
    assert met


def test_indices_beside_the_shards_spare_reading_their_headers(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_folder, "make_index", lambda _: pytest.fail("a shard was read through"))
    assert open_split(remote(server, tmp_path), "train")[0].key == "s000"


def test_without_a_summary_braces_name_the_shards_and_each_is_indexed_once(server, shards_folder, tmp_path, caplog):
    for path in (shards_folder / ".index").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"cannot be asked which shards are there.*404.*train-\{000000\.\.000127\}"):
        open_split(remote(server, tmp_path), "train")
    pattern = "train-{000000..000005}.tar"
    for _ in range(2):
        split = open_split(remote(server, tmp_path, pattern), "train")
        assert split.digest() == open_split(shards_folder, "train").digest()
    assert [server.gets[name] for name in NAMES] == [1] * SHARDS
    assert caplog.text.count("6 of 6 shards are not in a summary beside them") == 1
    with pytest.raises(DataError, match=r"No test shards in http.*expected files named \*test\*\.tar"):
        open_split(remote(server, tmp_path, pattern), "test")
    with pytest.raises(DataError, match=r"There is no .*train-000006\.tar .*404"):
        open_split(remote(server, tmp_path, "train-{000005..000006}.tar"), "train")


def test_a_damaged_summary_is_not_used(server, shards_folder, tmp_path, caplog):
    path = shards_folder / ".index" / "folder"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="it is damaged, or of another version"):
        open_split(remote(server, tmp_path), "train")


def test_a_shard_that_was_replaced_with_its_summary_is_fetched_again(server, shards_folder, tmp_path):
    assert open_split(remote(server, tmp_path), "train")[0].key == "s000"
    tar(shards_folder / NAMES[0], samples(EACH, prefix="a"))
    check(shards_folder)
    assert open_split(remote(server, tmp_path), "train")[0].key == "a000"


def test_a_check_reads_all_that_lies_there_now_and_says_where_its_summary_belongs(server, shards_folder, tmp_path):
    place = remote(server, tmp_path)
    everything(open_split(place, "train"))
    found = check(place)
    assert found.ok and dict(found.samples) == {"train": 30, "test": 3} and not any("copy" in n for n in found.notes)
    assert server.gets[NAMES[0]] == 2
    data = bytearray((shards_folder / NAMES[0]).read_bytes())
    data[data.index(b"number 3")] ^= 1
    (shards_folder / NAMES[0]).write_bytes(data)
    found = check(remote(server, tmp_path))
    assert any("holds other bytes than when it was checked first" in problem for problem in found.problems)
    for path in (shards_folder / ".index").iterdir():
        path.unlink()
    found = check(remote(server, tmp_path, "{train-{000000..000005},test-000000}.tar"))
    (note,) = (note for note in found.notes if "copy the folder" in note)
    source = note.split("copy the folder ")[1].split(" beside")[0]
    for path in os.scandir(source):
        (shards_folder / ".index" / path.name).write_bytes(open(path.path, "rb").read())
    again = Remote(Address.parse(server.url), store=Store(tmp_path / "other", 10**9), patience=QUICK)
    assert len(open_split(again, "train")) == 30


def test_credentials_are_used_and_never_shown(shards_folder, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "palimpsest")
    with serving(shards_folder, secret="sig=open%2Fsesame") as server:
        address = Address.parse(server.url.replace("//", "//user:hunter2@") + "?sig=open%2Fsesame")
        place = Remote(address, store=Store(tmp_path / "cache", 10**9), patience=QUICK)
        server.faults = {NAMES[0]: [500]}
        split = open_split(place, "train")
        assert split[0].key == "s000"
        server.always = 500
        with pytest.raises(DataError) as met:
            split[EACH]
        wrong = Remote(Address.parse(server.url + "?sig=wrong"), store=place.store, patience=QUICK)
        with pytest.raises(DataError, match="403") as refused:
            open_split(wrong, "train")
    written = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    names = " ".join(map(str, (tmp_path / "cache").rglob("*")))
    shown = f"{place} {address!r} {met.value} {refused.value} {caplog.text} {names} {split.name_of(0)}".encode()
    for secret in (b"hunter2", b"sesame", b"wrong"):
        assert secret not in written and secret not in shown


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ftp://host/a/", "Shards at ftp:// cannot be read"),
        ("htps://host/a/", "did you mean 'https'"),
        ("https:/host/a", "lacks a slash"),
        ("https:///a/", "is no address of shards: expected https://HOST/FOLDER/"),
        ("s3://key:secret@bucket/a", "its credentials come from the environment"),
        ("https://host/{a,b}/train.tar", "braces in its folder"),
        ("https://host/train-{0..3.tar", "a brace too many or too few"),
        ("https://host/train-{1,1}.tar", "names train-1.tar twice"),
        ("https://host/train-{1,2}.zip", "expected shards, such as"),
        ("https://user:a/b@host/train.tar", "within a password write / as %2F"),
    ],
)
def test_what_is_no_address_of_shards_is_refused_in_a_sentence(text, sentence, tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=sentence.replace("?", r"\?")) as met:
        place_of(text)
    assert "secret" not in str(met.value) and "a/b@" not in str(met.value)


@pytest.mark.parametrize(("name", "value"), [("CACHE_GB", "much"), ("CACHE_GB", "0"), ("TRIES", "0"), ("TIMEOUT", "x")])
def test_settings_of_the_environment_that_are_none_are_refused(name, value, monkeypatch):
    monkeypatch.setenv(f"PALIMPSEST_{name}", value)
    with pytest.raises(DataError, match=rf"PALIMPSEST_{name} is '{value}', expected a number"):
        place_of("https://host/a/")


def test_a_folder_that_cannot_be_written_is_said(server, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"Cannot keep shards in .*name another folder by PALIMPSEST_CACHE"):
        open_split(remote(server, tmp_path), "train")[0]


def test_texts_lose_what_addresses_keep_secret():
    text = "Cannot connect to https://me:pw@host:1/a/b.tar?X-Amz-Signature=abc#x, url='s3://k@b/c?d'"
    assert without_credentials(text) == "Cannot connect to https://host:1/a/b.tar url='s3://b/c'"


def test_a_reader_in_order_wants_the_next_shards_only_beyond_the_first(server, tmp_path):
    split = open_split(remote(server, tmp_path), "train")
    next(once(split, caption_only, batch=EACH - 1))  # and one more is looked at
    assert server.read() == {NAMES[0]}
    assert sum(len(batch["key"]) for batch in once(split, caption_only, batch=7)) == SHARDS * EACH
