"""What a recipe's report says of generated pictures is what a report on any folder says of them."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from eval.blocks import Gallery
from eval.figure import Figure
from pipelines.artefact import ArtefactError
from pipelines.config import RecipeError, load_recipe
from pipelines.distance_measures import measure_distances
from pipelines.dry import dry_run
from pipelines.errors import PalimpsestError
from pipelines.evaluate import sheets
from pipelines.judging import Judges
from pipelines.measures import Evaluation, Generated, read_generated, read_set
from pipelines.pictures import NOT_FINITE
from pipelines.posterior_measures import Latents, scaled_latents
from pipelines.runs import open_run
from pipelines.saved import save_picture, stem
from pipelines.scoring.score import Asked, score
from pipelines.sheets import spread
from pipelines.stages import ensure_data
from tests.pipelines.scoring.test_score import save_towers

COUNT = 12
EVAL = {"kind": "eval", "reconstructions": 30, "embedders": ["random-conv", "pixels-pca"]}


def opened(out, **stage):
    recipe = {
        "name": "tiny",
        "data": {"kind": "scenes", "size": 16, "count": 320},
        "stage": {"eval": {**EVAL, **stage}},
    }
    path = out / "recipe.json"
    path.write_text(json.dumps({"recipe": recipe}))
    run = open_run(path, out=out / "runs", data=None)
    ensure_data(run)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("recipe"))


@pytest.fixture
def evaluation(run, tmp_path):
    """An evaluation of pictures that a stage has written: half of them copies of the training set, one not finite."""
    stage = run.recipe.stage["eval"]
    real, train = read_set(run, "test", 30), read_set(run, "train", 60)
    for i in range(COUNT):
        picture = Image.fromarray(train.pictures[i] if i % 2 else real.pictures[i] // 2 + 40)
        told = {"prompt": real.captions[i], "label": real.labels[i], **({NOT_FINITE: True} if i == 4 else {})}
        save_picture(tmp_path / "drawn" / "test", stem(i), picture, told)

    class Told(Evaluation):
        def generated(self):
            return [Generated("drawn", "model", "model", {"counts": {"test": COUNT}}, tmp_path / "drawn")]

    return Told(run, "eval", stage, Judges(None, None, None, 16), real, train)


def test_the_figures_are_those_of_a_report_on_the_folder(evaluation, tmp_path):
    measure_distances(evaluation)
    for i, picture in enumerate(evaluation.train.pictures):
        save_picture(tmp_path / "train", stem(i), Image.fromarray(picture), {})
    for i, picture in enumerate(evaluation.real.pictures):
        save_picture(tmp_path / "real", stem(i), Image.fromarray(picture), {})
    asked = Asked(
        generated=(str(tmp_path / "drawn" / "test"),), reference=str(tmp_path / "train"), out=tmp_path / "out",
        embedders=tuple(EVAL["embedders"]), held_out=str(tmp_path / "real"), seed=evaluation.seed,
    )  # fmt: skip
    theirs = json.loads(score(asked, "")[1].read_text(encoding="utf-8"))["figures"]
    ours = {re.sub(r"^model\.", "test.", name): figure for name, figure in evaluation.figures.items()}

    def plain(name):
        return re.sub(r"split=[\w-]+", "", name)

    named = {plain(name): figure for name, figure in ours.items()}
    assert set(named) == set(map(plain, theirs)) and len(named) == len(ours) == len(theirs)
    for name, figure in theirs.items():
        mine = named[plain(name)]
        assert (figure["value"] is None) == (not isinstance(mine, Figure)), name
        if figure["value"] is not None:
            assert mine.value == pytest.approx(figure["value"], rel=1e-4, abs=1e-4), name


def test_copies_of_training_pictures_and_pictures_that_are_not_finite_are_found(evaluation):
    measure_distances(evaluation)
    found = {name.split("[n")[0].split("[r")[0]: figure for name, figure in evaluation.figures.items()}
    assert found["model.copies"].value == 0.5
    assert evaluation.figures["model.failures[not_finite]"].value == 1
    sections = {section.title: section for section in evaluation.sections}
    (gallery,) = (block for block in sections["Failures"].blocks if isinstance(block, Gallery))
    assert [words for _, words in gallery.items] == [f"test/000004.png: not finite. {evaluation.real.captions[4]}"]
    kinds = [block.kind for block in sections["Memorisation"].blocks]
    assert kinds == ["table", "curve", "gallery"]


def test_features_are_kept_in_the_run_and_read_again(evaluation, monkeypatch):
    measure_distances(evaluation)
    kept = {path: path.stat().st_mtime_ns for path in evaluation.features.folder.iterdir()}
    again = Evaluation(*(getattr(evaluation, name) for name in ("run", "name", "stage", "judges", "real", "train")))
    monkeypatch.setattr(Evaluation, "generated", type(evaluation).generated)
    measure_distances(again)
    assert again.figures == evaluation.figures
    assert kept == {path: path.stat().st_mtime_ns for path in evaluation.features.folder.iterdir()}


def test_a_stage_that_lacks_pictures_is_an_error_that_names_them(evaluation, tmp_path):
    (made,) = evaluation.generated()
    (made.folder / "test" / "000003.png").write_bytes(b"none")
    with pytest.raises(ArtefactError, match=r"no pictures are 000003\.png\. Delete .*drawn and run stage drawn again"):
        read_generated(made, "test")
    (made.folder / "test" / "000003.png").unlink()
    (made.folder / "test" / "000005.json").unlink()
    with pytest.raises(ArtefactError, match=r"lacks 2 of its 24 files: 000003\.png, 000005\.json"):
        read_generated(made, "test")


@pytest.fixture
def tower(tmp_path):
    return save_towers(tmp_path / "clip", ["a red circle", "a red square"], embed_dim=8)


def test_an_evaluation_is_known_by_its_weights_and_not_by_where_they_lie(tower, tmp_path):
    shutil.copytree(tower, tmp_path / "moved")
    first = opened(tmp_path, embedders=[f"openclip={tower}"])
    second = opened(tmp_path, embedders=[f"openclip={tmp_path / 'moved'}"])
    assert first.settings("eval") == second.settings("eval")
    (tmp_path / "moved" / "bpe.json").write_text("{}")
    assert first.settings("eval")["embedders"] != second.settings("eval")["embedders"]
    assert first.settings("eval") != opened(tmp_path, embedders=[]).settings("eval")


@pytest.mark.parametrize(
    ("embedders", "said"),
    [
        (["vgg"], "no embedder 'vgg'"),
        (["dinov2"], "expected dinov2=FOLDER"),
        (["random-conv", "random-conv"], "name one twice"),
    ],
)
def test_embedders_that_there_are_not_are_refused_with_the_recipe(tmp_path, embedders, said):
    with pytest.raises(RecipeError, match=said):
        opened(tmp_path, embedders=embedders)


def test_weights_that_are_missing_are_said_before_anything_is_made(tmp_path):
    opened(tmp_path, embedders=[f"inception={tmp_path / 'none.pth'}"])
    with pytest.raises(
        PalimpsestError, match=r"stage\.eval .* there is no file .*none\.pth for the embedder inception"
    ):
        dry_run(load_recipe(tmp_path / "recipe.json"))


def test_sheets_of_several_steps_stand_side_by_side(run):
    assert "picture_every" in sheets(run).empty and not sheets(run).blocks
    folder = run.stage_folder("eval") / "pictures"
    folder.mkdir(parents=True)
    for step in range(100, 1300, 100):
        Image.new("RGB", (4, 4)).save(folder / f"samples-{step:06d}.png")
    (gallery,) = sheets(run).blocks
    assert [words for _, words in gallery.items][:: len(gallery.items) - 1] == ["step 100", "step 1,200"]
    assert len(gallery.items) == 6 and spread([1, 2, 3], 6) == [1, 2, 3]
    shutil.rmtree(folder)


def test_latents_are_held_against_the_statistics_of_stage_two(evaluation, monkeypatch):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 2, 4, 4)) * np.array([2.0, 0.5])[:, None, None] + np.array([1.0, 0])[:, None, None]
    found = Latents(z, z, z.astype(np.float32), z, None)
    monkeypatch.setattr(type(evaluation.run), "manifest", lambda *_: {"latent_mean": [1.0, 0], "latent_std": [2.0, 1]})
    table = scaled_latents(evaluation, "vae", found, "here")
    assert evaluation.figures["vae.latent_offset"].value == pytest.approx(0, abs=0.1)
    assert evaluation.figures["vae.latent_spread"].value == pytest.approx(0.5, rel=0.05)
    assert [row.cells[-1] for row in table.rows] == pytest.approx([1, 0.5], rel=0.05)
