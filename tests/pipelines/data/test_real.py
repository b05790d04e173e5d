"""The shards of real pictures that lie beside the project, or where PALIMPSEST_DATA says."""

import os
from itertools import islice
from pathlib import Path

import pytest

import pipelines
from pipelines.data.decode import image_and_caption
from pipelines.data.shards import open_split
from pipelines.data.stream import Stream

ROOT = Path(pipelines.__file__).parents[1]
DATA = Path(os.environ.get("PALIMPSEST_DATA", ROOT.parent / "shared" / "data"))
SETS = {"openmoji": (2105, 260), "cifar10": (7500, 2000), "fashionmnist": (2000, 500)}


@pytest.mark.parametrize("name", SETS)
def test_real_sets_stream_without_a_broken_sample(name):
    if not (DATA / name).is_dir():
        pytest.skip(f"no real data at {DATA / name}: set PALIMPSEST_DATA")
    for split, count in zip(("train", "test"), SETS[name], strict=True):
        samples = open_split(DATA / name, split)
        assert len(samples) == count
        stream = Stream(split=samples, decode=image_and_caption(32), batch=32, seed=0)
        for batch, _ in islice(stream.batches(), 4):
            assert batch["image"].shape == (32, 3, 32, 32) and all(batch["caption"])
        assert not stream.skipped.broken
