"""The block of a recipe: which training it decides, and that a run which has begun keeps it."""

import json
from itertools import islice

import pytest

from pipelines.artefact import ArtefactError, digest
from pipelines.cache import Cache
from pipelines.data.order import BLOCK, Shuffle
from pipelines.errors import PalimpsestError
from pipelines.image_task import ImageTask
from pipelines.runs import IDENTITY, open_run
from pipelines.sets import Source
from tests.conftest import ROOT
from tests.pipelines.data.conftest import samples, tar

SHARDS, EACH = 5, 6


@pytest.fixture
def folder(tmp_path):
    for number in range(SHARDS):
        tar(tmp_path / f"data/train-{number}.tar", samples(EACH, prefix="stuvw"[number]))
    return tmp_path


def run_of(folder, *overrides):
    return open_run(ROOT / "recipes" / "openmoji.toml", out=folder / "runs", data=folder / "data", overrides=overrides)


class Pictures(ImageTask):
    build = loss = validate = pictures = facts = None


def test_pictures_come_in_the_blocks_that_the_recipe_says(folder):
    run = run_of(folder, "data.block=2")
    task = Pictures(run, EACH, shuffle_seed=7)
    order = Shuffle([EACH] * SHARDS, 7, 2)
    seen = [key for batch, _ in islice(task.batches(0, 0, 1), SHARDS) for key in batch["key"]]
    assert seen == [task.train_split[order.number(position)].key for position in range(SHARDS * EACH)]
    assert len({key[0] for key in seen[: 2 * EACH]}) == 2


def test_the_cache_is_shuffled_in_the_same_blocks(folder):
    cache = Cache(folder, {}, 2, (Source("data", folder / "data", 1.0),))
    stream = cache.stream("train", 4, seed=7)
    assert [stream.order.number(i) for i in range(60)] == [Shuffle([EACH] * SHARDS, 7, 2).number(i) for i in range(60)]


def test_a_training_that_has_begun_refuses_another_block(folder):
    run_of(folder).begin("vae")
    with pytest.raises(ArtefactError, match=rf"block was {BLOCK} and is now 2\. Give another --out"):
        run_of(folder, "data.block=2")
    run_of(folder).begin("vae")


def test_what_trains_on_no_stream_does_not_depend_on_the_block(folder):
    first = run_of(folder).settings("bpe")
    assert digest(run_of(folder, "data.block=2").settings("bpe")) == digest(first)


@pytest.mark.parametrize(("overrides", "same"), [((), True), (("data.block=5",), True), (("data.block=4",), False)])
def test_what_an_older_version_began_goes_on_only_where_its_order_was_the_same(folder, overrides, same):
    """It did not name the block, and permuted all samples."""
    run = run_of(folder, *overrides)
    run.begin("vae")
    path = run.stage_folder("vae") / IDENTITY
    older = json.loads(path.read_text())
    del older["block"]
    path.write_text(json.dumps(older))
    if same:
        run_of(folder, *overrides).begin("vae")
    else:
        with pytest.raises(ArtefactError, match="block was None and is now 4"):
            run_of(folder, *overrides)


@pytest.mark.parametrize("kind", ["shards", "scenes"])
def test_a_block_of_nothing_is_refused(folder, kind):
    recipe = {"shards": "openmoji", "scenes": "smoke"}[kind]
    with pytest.raises(PalimpsestError, match="block is 0, expected the number of shards to shuffle together"):
        open_run(ROOT / "recipes" / f"{recipe}.toml", out=folder, data=folder / "data", overrides=("data.block=0",))
