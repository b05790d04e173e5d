"""Tiny tars and folders of shards, sound and damaged."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from pipelines.data.check import check
from pipelines.data.scenes import write

from .remote_set import EACH, NAMES
from .server import serving


def png(colour=(200, 30, 30), size=(16, 16), mode="RGB"):
    data = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(data, "TIFF" if mode == "CMYK" else "PNG")
    return data.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(count, broken=(), empty=(), prefix="s"):
    members = {}
    for i in range(count):
        members[f"{prefix}{i:03d}.png"] = b"no picture" if i in broken else png((i % 256, 10, 10))
        members[f"{prefix}{i:03d}.txt"] = b" \n" if i in empty else f"number {i}".encode()
    return members


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "data"
    write(out, count=120, size=32, seed=3)
    return out


@pytest.fixture
def shards_folder(tmp_path):
    for number, name in enumerate(NAMES):
        tar(tmp_path / "set" / name, samples(EACH, prefix="stuvwx"[number]))
    tar(tmp_path / "set" / "test-000000.tar", samples(3, prefix="z"))
    assert check(tmp_path / "set").ok
    return tmp_path / "set"


@pytest.fixture
def server(shards_folder):
    with serving(shards_folder) as found:
        yield found
