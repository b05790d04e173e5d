"""What a run keeps of an address: no secret, and the same identity as of a folder with the same shards."""

import json
import shutil

import pytest

from pipelines.amount import amounts
from pipelines.artefact import ArtefactError
from pipelines.config import RecipeError
from pipelines.data.place import Here
from pipelines.errors import PalimpsestError
from pipelines.runs import RECIPE, open_run, reopen_run
from tests.conftest import ROOT
from tests.pipelines.data.conftest import samples, tar
from tests.pipelines.data.server import serving

RECIPES = ROOT / "recipes"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PALIMPSEST_TRIES", "1")
    for number in range(3):
        tar(tmp_path / f"data/train-{number}.tar", samples(6, prefix="stu"[number]))
    tar(tmp_path / "data/test-0.tar", samples(2, prefix="z"))
    tar(tmp_path / "data/val-0.tar", samples(2, prefix="y"))  # of no split
    run_of(tmp_path, tmp_path / "data").open("train"), run_of(tmp_path, tmp_path / "data").open("test")
    return tmp_path


def run_of(folder, data, *overrides):
    return open_run(RECIPES / "openmoji.toml", out=folder / "runs", data=data, overrides=overrides)


def test_a_run_begun_on_a_folder_goes_on_at_an_address_and_keeps_no_secret(folder):
    run_of(folder, folder / "data").begin("vae")
    with serving(folder / "data", secret="sig=sesame") as server:
        run = run_of(folder, server.url.replace("//", "//me:hunter2@") + "?sig=sesame")
        assert run.splits() == ["train", "test"] and run.data_hash() == run_of(folder, folder / "data").data_hash()
        run = run_of(folder, server.url.replace("//", "//me:hunter2@") + "?sig=sesame")
        run.begin("vae")
        (found,) = amounts(run.recipe, run.place, folder / "runs")
        assert found.samples == 18 and run.data_name() == server.url
        assert "sesame" in run.place.given
        kept = b"".join(path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file())
        assert b"sesame" not in kept and b"hunter2" not in kept
        assert json.loads((run.folder / RECIPE).read_text())["data"] == server.url
        tar(folder / "data/train-0.tar", samples(40, prefix="s"))
        (folder / "data/.index/folder").unlink()
        with pytest.raises(ArtefactError, match="data was"):
            run_of(folder, server.url + "{train-{0..2},test-0}.tar?sig=sesame").begin("vae")
    assert reopen_run(run.folder).data_hash() == "the data folder is gone"  # a run can be sampled without its data


def test_a_further_set_is_the_same_in_a_folder_and_at_an_address(folder):
    shutil.copytree(folder / "data", folder / "set")
    more = 'data.more=[{{kind="shards", path="{}"}}]'
    here = run_of(folder, folder / "data", more.format(folder / "set"))
    with serving(folder / "set") as server:
        for address in (server.url, server.url + "{train-{0..2},test-0}.tar"):
            there = run_of(folder, folder / "data", more.format(address))
            assert [one.name for one in there.pictures] == ["data", "set"]
            assert there.data_hash() == here.data_hash() and there.recipe.shares() == here.recipe.shares()


def test_each_shard_is_asked_after_once_where_no_summary_tells(folder):
    shutil.rmtree(folder / "data/.index")
    with serving(folder / "data") as server:
        run = run_of(folder, server.url + "{train-{0..2},test-0}.tar")
        for _ in range(3):
            run.data_hash()
        assert server.heads["train-0.tar"] == 1


def test_a_run_is_opened_again_without_texts_that_are_out_of_reach(folder):
    shutil.copytree(folder / "data", folder / "words", ignore=shutil.ignore_patterns(".index"))
    with serving(folder / "words") as server:
        texts = f'data.more=[{{kind="texts", path="{server.url}train-{{0..2}}.tar"}}]'
        run = open_run(RECIPES / "smoke.toml", out=folder / "runs", data=folder / "data", overrides=(texts,))
        assert run.data_hash() != "the data folder is gone"
        server.secret = "another"  # whoever asks is refused
        again = reopen_run(run.folder)
        assert again.data_hash() == "the data folder is gone" and len(again.open("train")) == 18


def test_what_an_older_version_began_beside_shards_of_no_split_goes_on(folder):
    run = run_of(folder, folder / "data")
    identity = run.begin("vae")
    names = Here(folder / "data").names()
    from pipelines.sets import _hash_of

    older = {**identity, "data": _hash_of(run.place, names)}
    assert older != identity
    run.check_identity("vae", older, run.identity("vae"))


@pytest.mark.parametrize("path", ["https://me:hunter2@host/a/", "https://host/a/?sig=hunter2"])
def test_a_recipe_with_a_secret_is_refused_without_saying_it(folder, path):
    with pytest.raises(
        RecipeError, match=r"data.path holds a password or a query: give such an address by --data"
    ) as met:
        run_of(folder, folder / "data", f"data.path={path}")
    assert "hunter2" not in str(met.value) and "hunter2" not in (folder / "runs/openmoji" / RECIPE).read_text()


def test_text_is_not_read_from_an_address(folder):
    with pytest.raises(PalimpsestError, match=r"reads text files, not https://host/a/: give a folder, --data DIR"):
        open_run(RECIPES / "shakespeare.toml", out=folder / "runs", data="https://host/a/")


def test_scenes_are_not_rendered_where_the_data_is_elsewhere(folder):
    from pipelines.stages import ensure_data

    with serving(folder / "data") as server:
        run = open_run(RECIPES / "smoke.toml", out=folder / "runs", data=server.url)
        ensure_data(run)
        assert not run.data.exists() or not list(run.data.glob("*.tar"))
    shutil.rmtree(folder / "cache", ignore_errors=True)
