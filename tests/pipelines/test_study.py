"""Study files and the verbs of `palimpsest study` on plain folders of pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from eval.human.power import Effort
from eval.human.simulate import Truth, answer_pages
from eval.samples import Samples, key_of, to_json
from pipelines.config import RecipeError
from pipelines.errors import PalimpsestError
from pipelines.study import export_study, import_study, plan_study, registered, report_study, simulate_study
from pipelines.study_file import gather, load_study
from tests.conftest import ROOT, finish

WORDS = [f"a blue ring, number {i}" for i in range(8)]


def folder(path, words=WORDS, seed=0, sidecar=".txt"):
    path.mkdir(parents=True)
    for i, prompt in enumerate(words):
        pixels = np.random.RandomState(seed + i).randint(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i:03d}.png")
        said = prompt if sidecar == ".txt" else json.dumps({"prompt": prompt})
        (path / f"{i:03d}{sidecar}").write_text(said, encoding="utf-8")
    return path


def file(tmp_path, head="", extra="", names=("zqflow", "zqddpm")):
    tables = "".join(f'[model.{name}]\nfolder = "{tmp_path / name}"\nfigures = "{name}"\n' for name in names)
    path = tmp_path / "mine.toml"
    path.write_text(f"raters = 2\nblock = 8\n{head}\n{tables}\n{extra}\n", encoding="utf-8")
    return path


@pytest.fixture
def two(tmp_path):
    folder(tmp_path / "zqflow")
    folder(tmp_path / "zqddpm", WORDS[::-1], seed=100, sidecar=".json")
    return tmp_path


def test_folders_are_matched_by_their_captions_whatever_their_order(two):
    found = gather(load_study(file(two)))
    assert found.prompts == WORDS and found.truth is None
    assert [path.name for path in found.pictures["zqddpm"]] == [f"{7 - i:03d}.png" for i in range(8)]
    assert found.notes == ["8 prompts are there, 50 were asked for"]


def test_a_list_of_prompts_says_which_and_in_what_order(two):
    (two / "list.txt").write_text("\n".join([*WORDS[::-1], ""]))
    head = f"[prompts]\nfile = '{two / 'list.txt'}'\ncount = 3\n"
    assert gather(load_study(file(two, head))).prompts == WORDS[:4:-1]
    (two / "list.txt").write_text("\n".join([*WORDS, "a thing nobody drew"]))
    with pytest.raises(PalimpsestError, match=r"zqflow has no picture for 1 of 9 prompts \('a thing nobody drew'\)"):
        gather(load_study(file(two, head.replace("count = 3", "count = 50"))))
    (two / "list.txt").write_text("\n".join(WORDS[:6]))
    with pytest.raises(PalimpsestError, match=r"has pictures for 2 prompts that are not asked for.*number 6"):
        gather(load_study(file(two, head)))
    leave = head + "extra = 'leave'\n"
    assert len(gather(load_study(file(two, leave))).prompts) == 3


def test_real_pictures_make_controls_of_relevance(two):
    folder(two / "real", seed=900)
    extra = f"[truth]\nfolder = '{two / 'real'}'\n"
    assert len(gather(load_study(file(two, extra=extra))).truth) == 8
    (two / "real" / "003.txt").write_text("another")
    found = gather(load_study(file(two, extra=extra)))
    assert found.truth is None and "no real pictures for 1 prompts" in found.notes[-1]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda at: (at / "zqflow" / "003.txt").unlink(), r"1 of \d+ pictures have no caption in .*: 003\.png"),
        (lambda at: (at / "zqflow" / "003.png").unlink(), r"1 captions of .* have no picture: 003\.txt"),
        (lambda at: (at / "zqflow" / "003.txt").write_text(" "), r"pictures have no caption in .*: 003\.png"),
        (lambda at: (at / "zqflow" / "003.txt").write_bytes(b"\xff\xfe"), "003.txt is no UTF-8"),
        (
            lambda at: (at / "zqddpm" / "003.json").write_text("{}"),
            r"1 of \d+ pictures have no caption in .*: 003\.png",
        ),
        (lambda at: (at / "zqddpm" / "003.json").write_text("{"), r"1 of \d+ pictures have no caption in .*: 003\.png"),
        (lambda at: (at / "zqddpm").rename(at / "gone"), "there is no folder"),
        (
            lambda at: (at / "zqflow" / "003.txt").write_text("a new one"),
            r"zqddpm has no picture for 1 of 8.*a new one",
        ),
    ],
)
def test_pictures_that_do_not_fit_are_named(two, spoil, sentence):
    spoil(two)
    with pytest.raises(PalimpsestError, match=sentence):
        gather(load_study(file(two)))


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        ("ratters = 3", "unknown key ratters; did you mean 'raters'"),
        ("mode = 'stars'", "mode: .*'pairwise' or 'likert'.*stars"),
        ("criteria = ['taste']", "criteria are .'taste'., expected some of relevance"),
        ("gold = 2", "gold is 2"),
        ("[exclude]\nmin_gold = 8", "min_gold is 8"),
        ("[model.x]\nrun = 'a'\nfolder = 'b'", "model.x: give either run"),
        ("x = ", "is not valid TOML"),
        ("[model.x]\nrun = 'nowhere'\nstage = 'y'", "nowhere is no run"),
    ],
)
def test_a_study_file_that_cannot_be_used_is_refused(two, head, sentence):
    with pytest.raises((RecipeError, PalimpsestError), match=sentence):
        gather(load_study(file(two, head)))


def test_a_missing_study_file_and_a_study_of_one_model_are_refused(two):
    with pytest.raises(RecipeError, match="no study file at"):
        load_study(two / "none.toml")
    with pytest.raises(RecipeError, match="needs at least 2 models"):
        load_study(file(two, names=("zqflow",)))


def test_the_file_of_the_guide_is_a_study(tmp_path):
    guide = (ROOT / "docs" / "human-study.md").read_text(encoding="utf-8")
    (tmp_path / "study.toml").write_text(guide.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    study = load_study(tmp_path / "study.toml")
    assert study.models == ("flow", "masked", "ours") and study.anchor == "flow" and study.prompts.extra == "leave"


def answered(out, truth=(2.0, -2.0)):
    from eval.human.key import read_key

    files = []
    key = read_key(out / "key.sealed.json")
    for page in answer_pages(key, Truth(strengths=truth, noise=0), np.random.default_rng(0)):
        files.append(out / f"{page['rater']}.json")
        files[-1].write_text(json.dumps(page))
    return files


def test_a_study_from_file_to_report_with_metrics(two, tmp_path):
    out = tmp_path / "out"
    told = export_study(file(two, "name = 'mine'\ncriteria = ['preference']"), out)
    assert "keep sealed" in told and (out / "study.toml").read_text().startswith("raters = 2")
    with pytest.raises(PalimpsestError, match="No votes were given"):
        import_study([], out, names=False)
    with pytest.raises(ValueError, match="import the votes first"):
        report_study(out, None)
    assert "2 raters from 2 files" in import_study(answered(out), out, names=False)
    assert "preference   zqflow over zqddpm" in report_study(out, None)
    figures = {
        "zqflow.scene.colour": {"value": 0.9},
        "zqddpm.scene.colour": {"value": 0.2},
        "zqflow.fd[x]": {"value": 9.0},
        "zqddpm.fd[x]": {"value": 3.0},
        "zqflow.kd": {"value": None},
    }
    keys = tuple(map(key_of, WORDS))
    singly = {
        f"{model}.scene.shape{part}": Samples(own, (value,) * len(own))
        for model, value in (("zqflow", 1.0), ("zqddpm", 0.0))
        for part, own in (("", keys[:3]), (".unseen", keys[3:]))
    } | {f"{model}.nearest": Samples(keys, (value,) * len(keys)) for model, value in (("zqflow", 1.0), ("zqddpm", 0.0))}
    (tmp_path / "report.json").write_text(json.dumps({"figures": figures, "samples": to_json(singly)}))
    report_study(out, tmp_path / "report.json")
    fits = {
        (one["metric"], one["over"]): one["accuracy"] for one in json.loads((out / "study.json").read_text())["metrics"]
    }
    assert fits["scene.colour", "models"]["value"] == 1 and fits["fd[x]", "models"]["value"] == 0, (
        "a lower fd is better"
    )
    assert fits["scene.shape", "prompts"]["value"] > 0.8 and len(fits) == 4
    assert fits["nearest", "prompts"]["value"] < 0.2, "of copies, fewer are better"
    (tmp_path / "report.json").write_text(json.dumps({"figures": figures, "samples": {"zqflow.kd": {"keys": 3}}}))
    with pytest.raises(PalimpsestError, match=r"report.json: the samples of zqflow.kd cannot be read"):
        report_study(out, tmp_path / "report.json")
    (tmp_path / "report.json").write_text(json.dumps({"figures": {"gan.kd": {"value": 1.0}}}))
    with pytest.raises(PalimpsestError, match="no figure of two of the models zqflow, zqddpm"):
        report_study(out, tmp_path / "report.json")


def test_what_people_said_stands_in_the_report_of_an_evaluation(two, tmp_path):
    out = tmp_path / "out"
    export_study(file(two, "name = 'mine'\ncriteria = ['preference']"), out)
    evaluation = ["eval", "--texts", tmp_path / "texts.txt", "--reference", tmp_path / "real.txt"]
    for name in ("texts", "real"):
        (tmp_path / f"{name}.txt").write_text("a red star\na blue ring\ntwo stars\n", encoding="utf-8")
    said = finish(*evaluation, "--study", out, "--out", tmp_path / "scores", code=2)
    assert "import the votes first" in said and not (tmp_path / "scores").exists(), "before anything is measured"
    import_study(answered(out), out, names=False)
    finish(*evaluation, "--study", out, "--out", tmp_path / "scores")
    own = json.loads((tmp_path / "scores" / "report.json").read_text())["figures"]
    report_study(out, None)
    people = json.loads((out / "study.json").read_text())["figures"]
    assert people and {name: own[name] for name in people} == people
    assert "texts.txt.entropy[words|n=3]" in own
    assert "People: What people prefer" in (tmp_path / "scores" / "report.html").read_text()


def test_what_was_registered_cannot_be_changed_afterwards(two, tmp_path):
    out = tmp_path / "out"
    export_study(file(two), out)
    assert registered(out).study.exclude.min_gold == 0.8
    path = out / "registered.json"
    path.write_text(path.read_text().replace('"min_gold": 0.8', '"min_gold": 0.1'))
    with pytest.raises(PalimpsestError, match="was changed after it was registered"):
        registered(out)
    with pytest.raises(PalimpsestError, match="holds no study"):
        registered(tmp_path)


def test_plan_and_simulate_say_what_they_found(tmp_path):
    told = plan_study(Effort(mde=0.1, raters=3, rate=15, pairs=3))
    assert "194" in told and "104" in told and "at 15 an hour" in told  # ceil(194 * 1.6 / 3)
    told = simulate_study(Truth(strengths=(1.0, -1.0)), prompts=20, raters=2, seed=1, studies=1, out=None)
    assert "preference: model A over model B" in told and "95 % interval" in told
