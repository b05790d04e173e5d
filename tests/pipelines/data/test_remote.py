"""Shards from a real HTTP server that fails in every way, and what is kept of them on this machine."""

import os
import signal
import subprocess
import sys
import time
from itertools import islice

import pytest
import torch

from pipelines.data.check import check
from pipelines.data.decode import image_and_caption
from pipelines.data.order import Shuffle
from pipelines.data.remote import protocols, transfer
from pipelines.data.remote.address import Address
from pipelines.data.remote.folder import Remote
from pipelines.data.remote.transfer import Unreachable
from pipelines.data.shards import open_split
from pipelines.data.stream import Stream
from tests.conftest import ROOT

from .conftest import samples, tar
from .remote_set import EACH, NAMES, QUICK, SHARDS, everything, kept, remote, size_of
from .server import serving

DECODE = image_and_caption(16)


def test_batches_are_those_of_the_folder_bit_for_bit(server, shards_folder, tmp_path):
    ours, theirs = (
        Stream(split=open_split(where, "train"), decode=DECODE, batch=4, order=Shuffle([EACH] * SHARDS, 3, 2))
        for where in (remote(server, tmp_path), shards_folder)
    )
    for (a, after), (b, behind) in islice(zip(ours.batches(), theirs.batches(), strict=False), 15):
        assert after == behind and a["key"] == b["key"] and torch.equal(a["image"], b["image"])
    assert max(server.gets[name] for name in NAMES) == 1  # two epochs, fetched once
    assert open_split(remote(server, tmp_path), "test").digest() == open_split(shards_folder, "test").digest()


@pytest.mark.parametrize("faults", [[500], [404], [503, 404], ["stall"], ["cut"], ["short"], ["flip"], ["cut", "flip"]])
@pytest.mark.parametrize("ranges", ["yes", "ignored", "no"])
def test_what_fails_is_tried_again(server, shards_folder, tmp_path, faults, ranges, monkeypatch):
    monkeypatch.setattr(protocols, "CHUNK", 1024)
    monkeypatch.setattr(transfer, "CHUNK", 1024)
    server.ranges, server.faults = ranges, {NAMES[0]: list(faults)}
    split = open_split(remote(server, tmp_path), "train")
    assert everything(split) == everything(open_split(shards_folder, "train")) and not server.faults[NAMES[0]]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (500, "HTTP 500 Internal Server Error"),
        (404, "HTTP 404 Not Found"),
        ("stall", "no byte for 0.5 s"),
        ("cut", "the connection broke off"),
        ("flip", "its sha256 is .* is the index beside it older than it is"),
    ],
)
def test_what_cannot_be_had_is_an_error_that_names_address_reason_and_tries(server, tmp_path, fault, reason):
    server.always = fault
    split = open_split(remote(server, tmp_path, "?token=sesame"), "train")
    with pytest.raises(Unreachable, match=rf"{server.url}train-000000\.tar after \d tr(y|ies): {reason}") as met:
        split[0]
    assert "sesame" not in str(met.value) and not kept(tmp_path)
    server.always = None
    assert split[0].key == "s000"  # it goes on where the server is back


def test_a_server_that_is_not_there_says_so(server, tmp_path):
    place = remote(server, tmp_path)
    with serving(tmp_path) as other:
        pass
    place = Remote(Address.parse(other.url), store=place.store, patience=QUICK)
    with pytest.raises(Unreachable, match=r"after 4 tries: .*Connect call failed"):
        open_split(place, "train")
    assert "Connect call failed" in Remote(Address.parse(other.url), store=place.store, hurried=True).missing()


def test_a_download_goes_on_where_it_broke_off(server, shards_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(protocols, "CHUNK", 4096)
    monkeypatch.setattr(transfer, "CHUNK", 4096)
    server.faults = {NAMES[0]: [None, None, 500]}
    assert open_split(remote(server, tmp_path), "train")[0].key == "s000"
    starts = [start for name, start in server.starts if name == NAMES[0]]
    assert starts == list(range(0, size_of(shards_folder), 4096))


@pytest.mark.slow
def test_a_killed_download_is_resumed_by_the_next_process(server, shards_folder, tmp_path):
    server.delay = 0.02
    big = tar(shards_folder / NAMES[0], {"s000.txt": b"x" * (24 << 20), "s000.png": samples(1)["s000.png"]})
    check(shards_folder)
    code = (
        "import sys; from pipelines.data.shards import open_split; open_split(sys.argv[1], 'train').read(0, ('png',))"
    )
    environment = {**os.environ, "PALIMPSEST_CACHE": str(tmp_path / "cache")}
    words = [sys.executable, "-c", code, server.url]
    process = subprocess.Popen(words, cwd=ROOT, env=environment)
    until = time.monotonic() + 60
    while not any(path.stat().st_size for path in (tmp_path / "cache").glob(f"*/.{NAMES[0]}.*.part")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.delay, before = 0.0, len(server.starts)
    subprocess.run(words, cwd=ROOT, env=environment, check=True, timeout=100)
    again = [start for name, start in server.starts[before:] if name == NAMES[0]]
    assert again[0] > 0 and kept(tmp_path) >= {big.name}
