"""A small set of shards on a server, and its other end."""

from pipelines.data.remote.address import Address
from pipelines.data.remote.folder import Remote
from pipelines.data.remote.store import Store
from pipelines.data.remote.transfer import Patience

SHARDS, EACH = 6, 5
NAMES = [f"train-{number:06d}.tar" for number in range(SHARDS)]
QUICK = Patience(tries=4, stall=0.5, first=0.02)


def remote(server, tmp_path, pattern="", limit=10**9, patience=QUICK, **settings):
    address = Address.parse(server.url + pattern)
    return Remote(address, store=Store(tmp_path / "cache", limit), patience=patience, **settings)


def kept(tmp_path):
    return {path.name for path in (tmp_path / "cache").glob("*/*.tar")}


def size_of(folder):
    return (folder / NAMES[0]).stat().st_size


def everything(split):
    return [split[i] for i in range(len(split))]
